"""A datastore made by hand, small enough to be replicated hundreds of times, and what a bucket must hold of it."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tests.datastore import formats as make
from tests.harness import formats as read

CHUNK_DIRECTORIES = 4
CHUNK_SIZE = 65536
FIRST = "vm/100/2026-01-01T00:00:00Z"
SECOND = "vm/100/2026-01-02T00:00:00Z"
ELSEWHERE = "ns/a/ct/7/2026-01-01T00:00:00Z"
INDEX = "drive.img.fidx"
CONFIG = "qemu-server.conf.blob"
MANIFEST = "index.json.blob"
PREFIX = "mirror"

Objects = Mapping[str, bytes]


def digest_of(label: str) -> bytes:
    """The name of a chunk; all names lie in few directories, which makes reconciling quick."""
    value = hashlib.sha256(label.encode()).digest()
    return bytes([0, value[0] % CHUNK_DIRECTORIES]) + value[2:]


def chunk_path(digest: bytes) -> str:
    return f".chunks/{digest.hex()[:4]}/{digest.hex()}"


def chunk_key(label: str) -> str:
    return f"{PREFIX}/{chunk_path(digest_of(label))}"


def content_key(path: str) -> str:
    return f"{PREFIX}/.cnt/{path}"


@dataclass(frozen=True, slots=True)
class Datastore:
    """Writes the final names at once: how they come about is the business of the interception's tests."""

    root: Path

    def create(self) -> None:
        for number in range(CHUNK_DIRECTORIES):
            (self.root / ".chunks" / f"{number:04x}").mkdir(parents=True)

    def write(self, path: str, data: bytes) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{target.name}.tmp_abcdef")
        temporary.write_bytes(data)
        temporary.rename(target)

    def remove(self, path: str) -> None:
        (self.root / path).unlink()

    def write_chunk(self, label: str, version: int = 0) -> None:
        """Two versions stand for two compressions of the same content."""
        self.write(chunk_path(digest_of(label)), make.encrypted_blob(f"{label} {version}".encode() * 20))

    def remove_chunk(self, label: str) -> None:
        self.remove(chunk_path(digest_of(label)))

    def write_plain_chunk(self, content: bytes) -> bytes:
        """A chunk whose name is what it must be, the SHA-256 of its content; returns that."""
        digest = hashlib.sha256(content).digest()
        self.write(chunk_path(digest), make.plain_blob(content))
        return digest

    def quarantine_chunk(self, label: str) -> None:
        path = self.root / chunk_path(digest_of(label))
        path.rename(f"{path}.0.bad")

    def back_up(self, snapshot: str, labels: Sequence[str], *, notes: str = "", config: bytes = b"cores: 4") -> None:
        """A whole backup; labels are the chunks of its disk."""
        for label in labels:
            if not (self.root / chunk_path(digest_of(label))).exists():
                self.write_chunk(label)
        self.write_files(snapshot, labels, config=config)
        self.write_manifest(snapshot, notes=notes)

    def write_files(self, snapshot: str, labels: Sequence[str], *, config: bytes = b"cores: 4") -> None:
        group = self.root / snapshot.rpartition("/")[0]
        group.mkdir(parents=True, exist_ok=True)
        if not (group / "owner").exists():
            (group / "owner").write_text("root@pam\n")
        digests = [digest_of(label) for label in labels]
        self.write(f"{snapshot}/{INDEX}", make.fixed_index(digests, len(labels) * CHUNK_SIZE, CHUNK_SIZE))
        self.write(f"{snapshot}/{CONFIG}", make.plain_blob(config))

    def write_manifest(self, snapshot: str, *, notes: str = "", size: int | None = None) -> None:
        """Of the files as they are now; `size` is that of the disk, of whole chunks unless it is said."""
        index = (self.root / snapshot / INDEX).read_bytes()
        config = (self.root / snapshot / CONFIG).read_bytes()
        entries = index[4096:]
        files = [
            make.listed(INDEX, size or len(entries) // 32 * CHUNK_SIZE, hashlib.sha256(entries).digest()),
            make.listed(CONFIG, len(config), hashlib.sha256(config).digest()),
        ]
        backup_type, backup_id, time = snapshot.split("/")[-3:]
        manifest = make.manifest_blob(
            files,
            backup_type=backup_type,
            backup_id=backup_id,
            backup_time=int(datetime.fromisoformat(time).timestamp()),
            unprotected={"notes": notes},
        )
        self.write(f"{snapshot}/{MANIFEST}", manifest)

    def forget(self, snapshot: str) -> None:
        shutil.rmtree(self.root / snapshot)

    def forget_group(self, group: str) -> None:
        shutil.rmtree(self.root / group)

    def files(self) -> dict[str, bytes]:
        """Everything in it by path."""
        return {
            os.path.relpath(os.path.join(directory, name), self.root): Path(directory, name).read_bytes()
            for directory, _, names in os.walk(self.root)
            for name in names
        }


def broken_snapshots(objects: Objects) -> list[str]:
    """Where P1 does not hold: read with the harness' own parsing, which shares nothing with mirrorfs."""
    return [
        f"{key}: {problem}"
        for key in objects
        if key.startswith(content_key("")) and key.endswith(f"/{MANIFEST}")
        for problem in _missing_of(key, objects)
    ]


def _missing_of(manifest_key: str, objects: Objects) -> list[str]:
    problems = []
    directory = manifest_key.rpartition("/")[0]
    for file in read.manifest_files(objects[manifest_key]):
        try:
            digests = read.check_listed_file(file, objects[f"{directory}/{file.name}"])
            for digest in digests:
                read.decode_blob(objects[f"{PREFIX}/.chunks/{digest[:4]}/{digest}"])
        except (KeyError, ValueError) as error:
            problems.append(f"{file.name} {error!r}")
    return problems


def published(objects: Objects) -> set[str]:
    """The snapshots whose manifest is in the bucket."""
    start, end = content_key(""), f"/{MANIFEST}"
    return {key[len(start) : -len(end)] for key in objects if key.startswith(start) and key.endswith(end)}


def referenced(objects: Objects) -> set[str]:
    """The keys of all chunks that published snapshots need."""
    indexes = [content_key(f"{snapshot}/{INDEX}") for snapshot in published(objects)]
    return {
        f"{PREFIX}/.chunks/{digest[:4]}/{digest}"
        for key in indexes
        for digest in read.decode_index(key, objects[key]).digests
    }


def expected_objects(datastore: Datastore, objects: Objects) -> dict[str, bytes]:
    """What P2 asks the bucket to hold of a sound datastore, given the chunks of `objects` that nobody has any more."""
    files = datastore.files()
    finished = {path.rpartition("/")[0] for path in files if path.endswith(f"/{MANIFEST}")}
    groups = {snapshot.rpartition("/")[0] for snapshot in finished}
    expected = {}
    for path, data in files.items():
        directory, _, name = path.rpartition("/")
        if directory in finished or (directory in groups and name in ("owner", "notes")):
            expected[content_key(path)] = data
        elif path.startswith(".chunks/") and not path.endswith(".bad"):
            expected[f"{PREFIX}/{path}"] = data
    for directory, names, _ in os.walk(datastore.root):
        if directory.endswith("/ns"):
            relative = os.path.relpath(directory, datastore.root)
            expected |= {content_key(f"{relative}/{name}/.namespace"): b"" for name in names}
    expected |= {key: objects[key] for key in referenced(objects) if key in objects and key not in expected}
    return expected


def difference(datastore: Datastore, objects: Objects) -> dict[str, str]:
    """Where P2 does not hold, key by key; empty if it does."""
    expected = expected_objects(datastore, objects)
    found = {key: data for key, data in objects.items() if not key.startswith(f"{PREFIX}/.mirrorfs/")}
    return {
        key: "missing" if key not in found else "left over" if key not in expected else "other bytes"
        for key in sorted(expected.keys() | found.keys())
        if expected.get(key) != found.get(key)
    }


def notes_of(manifest: bytes) -> str:
    document = read.decode_manifest_document(manifest)
    unprotected = document["unprotected"]
    assert isinstance(unprotected, dict)
    return str(unprotected["notes"])
