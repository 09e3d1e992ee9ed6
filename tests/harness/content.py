"""What is in the backups: bytes made from (seed, group, generation), the same every time, so that a run can be
replayed from one integer and the next generation shares most of its chunks with the one before."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

from tests.harness.formats import encode_blob, encode_encrypted_looking_blob

MEBIBYTE = 1024 * 1024
LARGEST_FIXED_CHUNK = 4 * MEBIBYTE


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """A disk image, backed up with a fixed index. Sizes in bytes; chunk_size is 64 KiB to 4 MiB in real life."""

    name: str
    size: int
    chunk_size: int = LARGEST_FIXED_CHUNK


@dataclass(frozen=True, slots=True)
class ArchivePlan:
    """A file archive, backed up with a dynamic index: chunks of a quarter to four times average_chunk_size bytes."""

    name: str
    size: int
    average_chunk_size: int = 4 * MEBIBYTE


@dataclass(frozen=True, slots=True)
class BlobPlan:
    """A small file, stored as one blob; size in bytes before compression."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class BackupPlan:
    """What one backup consists of. The fractions (0 to 1) are of chunks: changed from one generation to the
    next, compressible, and all zeros; the rest is random bytes."""

    images: tuple[ImagePlan, ...] = ()
    archives: tuple[ArchivePlan, ...] = ()
    blobs: tuple[BlobPlan, ...] = ()
    changed_fraction: float = 0.25
    compressible_fraction: float = 0.4
    zero_fraction: float = 0.1


def plan_of_size(size: int, chunk_size: int = LARGEST_FIXED_CHUNK) -> BackupPlan:
    """A backup with some of everything, about size bytes in all: an image, an archive, its catalog, a blob."""
    half = size // 2
    return BackupPlan(
        images=(ImagePlan("drive-scsi0.img", size - half, chunk_size),),
        archives=(
            ArchivePlan("root.pxar", max(half, 1), chunk_size),
            ArchivePlan("catalog.pcat1", max(min(half // 64, MEBIBYTE), 64), chunk_size),
        ),
        blobs=(BlobPlan("qemu-server.conf", 700),),
    )


SMALL_PLAN = plan_of_size(2 * MEBIBYTE, chunk_size=128 * 1024)


@dataclass(frozen=True, slots=True)
class ChunkRecipe:
    """How to make one chunk's content: slot is its place in the archive, end the offset behind it there."""

    slot: int
    end: int
    length: int
    key: bytes
    kind: str

    def content(self) -> bytes:
        if self.kind == "zero":
            return bytes(self.length)
        source = random.Random(self.key)
        if self.kind == "random":
            return source.randbytes(self.length)
        pattern = source.randbytes(max(16, self.length // 16))
        return (pattern * (self.length // len(pattern) + 1))[: self.length]


@dataclass(frozen=True, slots=True)
class BackupContent:
    """The bytes of one generation of one group's backup. label stands for the data, not for the group: two
    groups with the same label hold the same data."""

    seed: int
    label: str
    generation: int
    plan: BackupPlan

    def image_chunks(self, image: ImagePlan) -> list[ChunkRecipe]:
        return [
            self._recipe(
                image.name, slot, start, min(image.chunk_size, image.size - start), self._version(image.name, slot)
            )
            for slot, start in enumerate(range(0, image.size, image.chunk_size))
        ]

    def archive_chunks(self, archive: ArchivePlan) -> list[ChunkRecipe]:
        return list(self._archive_chunks(archive))

    def _archive_chunks(self, archive: ArchivePlan) -> Iterator[ChunkRecipe]:
        start = slot = 0
        while start < archive.size:
            version = self._version(archive.name, slot)
            spread = 16 ** _fraction(self.seed, self.label, archive.name, slot, version, "length")
            length = min(max(1, int(archive.average_chunk_size / 4 * spread)), archive.size - start)
            yield self._recipe(archive.name, slot, start, length, version)
            start += length
            slot += 1

    def blob(self, blob: BlobPlan) -> bytes:
        key = _key(self.seed, self.label, blob.name, self._version(blob.name, 0))
        line = f"# {self.label} {key.hex()}\n".encode()
        return (line * (blob.size // len(line) + 1))[: blob.size]

    def identifier(self, name: str) -> bytes:
        """16 bytes for an index' uuid."""
        return _key(self.seed, self.label, name, self.generation, "uuid")[:16]

    def _recipe(self, name: str, slot: int, start: int, length: int, version: int) -> ChunkRecipe:
        choice = _fraction(self.seed, self.label, name, slot, version, "kind")
        kind = "random"
        if choice < self.plan.zero_fraction:
            kind = "zero"
        elif choice < self.plan.zero_fraction + self.plan.compressible_fraction:
            kind = "compressible"
        return ChunkRecipe(slot, start + length, length, _key(self.seed, self.label, name, slot, version), kind)

    def _version(self, name: str, slot: int) -> int:
        """The last generation, up to this one, in which this part of the data changed."""
        for generation in range(self.generation, 0, -1):
            if _fraction(self.seed, self.label, name, slot, generation, "changed") < self.plan.changed_fraction:
                return generation
        return 0


@dataclass(frozen=True, slots=True)
class EncodedChunk:
    """A chunk as it goes to disk, and its name in hex."""

    digest: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class Encoder:
    """Turns content into DataBlobs as a client would; with a key they look encrypted (random payloads, names
    that nobody can recompute without the key), without being so."""

    key: bytes | None = None
    compress: bool = True

    @property
    def crypt_mode(self) -> str:
        return "none" if self.key is None else "encrypt"

    def digest(self, content: bytes) -> str:
        return hashlib.sha256(content + (self.key or b"")).hexdigest()

    def encode(self, content: bytes) -> bytes:
        plain = encode_blob(content, compress=self.compress)
        if self.key is None:
            return plain
        source = random.Random(hashlib.sha256(self.key + content).digest())
        payload_size = len(plain) - 12
        return encode_encrypted_looking_blob(
            source.randbytes(payload_size),
            source.randbytes(16),
            source.randbytes(16),
            compressed=payload_size < len(content),
        )

    def encode_chunk(self, content: bytes) -> EncodedChunk:
        return EncodedChunk(self.digest(content), self.encode(content))


def encryption_key(seed: int) -> bytes:
    """The key of a seed's encrypted-looking backups."""
    return _key(seed, "encryption key")


def _key(*parts: object) -> bytes:
    return hashlib.blake2b(repr(parts).encode(), digest_size=32).digest()


def _fraction(*parts: object) -> float:
    return int.from_bytes(_key(*parts)[:7], "little") / (1 << 56)
