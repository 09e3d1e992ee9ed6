"""Chunks of a living datastore: touched as PBS does, believed only when they are good, and put back whole."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mirrorfs.datastore.errors import BlobError
from mirrorfs.recovery.chunk_insertion import ChunkInsertion, open_chunks
from mirrorfs.recovery.errors import RestoreError
from tests.datastore.formats import encrypted_blob, plain_blob
from tests.harness.formats import encode_blob

CONTENT = b"what a chunk holds" * 1000
DIGEST = hashlib.sha256(CONTENT).digest()
GOOD = plain_blob(CONTENT)
LONG_AGO = 1_000_000_000 * 10**9


@pytest.fixture
def root(base: Path) -> Path:
    (base / ".chunks" / DIGEST.hex()[:4]).mkdir(parents=True)
    return base


@contextmanager
def opened(root: Path) -> Iterator[ChunkInsertion]:
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with open_chunks(descriptor, root) as chunks:
            yield chunks
    finally:
        os.close(descriptor)


def place(root: Path, digest: bytes = DIGEST) -> Path:
    return root / ".chunks" / digest.hex()[:4] / digest.hex()


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    os.utime(path, ns=(LONG_AGO, LONG_AGO))


def test_a_good_chunk_is_touched_and_otherwise_left_alone(root: Path) -> None:
    write(place(root), GOOD)
    before = place(root).stat()
    with opened(root) as chunks:
        assert chunks.use(DIGEST, is_encrypted=False)
        assert chunks.use(DIGEST)
    after = place(root).stat()
    assert after.st_atime_ns > LONG_AGO
    assert (after.st_mtime_ns, after.st_ino) == (LONG_AGO, before.st_ino)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD[:-1],
        GOOD[:100] + bytes([GOOD[100] ^ 1]) + GOOD[101:],
        plain_blob(CONTENT + b"!"),
        encode_blob(bytes(200), compress=True),
        bytes(len(GOOD)),
    ],
    ids=["empty", "truncated", "a bit flipped", "other content", "other compressed content", "zeros"],
)
def test_a_damaged_chunk_is_not_used_and_is_replaced(root: Path, data: bytes) -> None:
    write(place(root), data)
    with opened(root) as chunks:
        assert not chunks.use(DIGEST, is_encrypted=False)
        chunks.insert(DIGEST, GOOD)
        assert chunks.use(DIGEST, is_encrypted=False)
    assert os.listdir(place(root).parent) == [DIGEST.hex()]


def test_a_chunk_that_is_not_there(root: Path) -> None:
    with opened(root) as chunks:
        assert not chunks.touch(DIGEST)
        assert not chunks.use(DIGEST)


def test_what_is_encrypted_takes_the_place_of_nothing_that_is_not(root: Path) -> None:
    write(place(root), encrypted_blob(b"somebody's"))
    with opened(root) as chunks:
        assert chunks.use(DIGEST, is_encrypted=True)
        assert chunks.use(DIGEST)
        with pytest.raises(BlobError, match="is encrypted, and its backup is not"):
            chunks.use(DIGEST, is_encrypted=False)
    write(place(root), GOOD)
    with opened(root) as chunks, pytest.raises(BlobError, match="is not encrypted, and its backup is"):
        chunks.use(DIGEST, is_encrypted=True)


def test_an_inserted_chunk_is_as_one_of_pbs(root: Path) -> None:
    os.chown(root / ".chunks", 12345, 54321)
    before = os.umask(0o077)
    try:
        with opened(root) as chunks:
            chunks.insert(DIGEST, GOOD)
            other = hashlib.sha256(b"in a directory that is not there yet").digest()
            chunks.insert(other, GOOD)
            chunks.synchronize()
    finally:
        os.umask(before)
    assert place(root).read_bytes() == GOOD
    for path, mode in (
        (place(root), 0o100644),
        (place(root, other), 0o100644),
        (place(root, other).parent, 0o040750),
    ):
        status = path.stat()
        assert (status.st_mode, status.st_uid, status.st_gid) == (mode, 12345, 54321), path


def test_what_a_killed_one_left_is_replaced(root: Path) -> None:
    left = place(root).with_name(f"{DIGEST.hex()}.tmp_mirror")
    left.write_bytes(GOOD[:10])
    with opened(root) as chunks:
        chunks.insert(DIGEST, GOOD)
    assert os.listdir(place(root).parent) == [DIGEST.hex()]
    assert place(root).read_bytes() == GOOD


def test_a_full_disk_leaves_no_part_of_a_chunk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with opened(root) as chunks, pytest.raises(OSError, match="No space left"):
        chunks.insert(DIGEST, GOOD)
    assert os.listdir(place(root).parent) == []


def test_links_lead_nowhere(root: Path, base: Path) -> None:
    outside = base / "outside"
    outside.mkdir()
    write(outside / "file", GOOD)
    place(root).symlink_to(outside / "file")
    with opened(root) as chunks:
        assert not chunks.use(DIGEST)
        chunks.insert(DIGEST, GOOD)
    assert not place(root).is_symlink()
    assert (outside / "file").stat().st_atime_ns == LONG_AGO
    other = hashlib.sha256(b"elsewhere").digest()
    place(root, other).parent.symlink_to(outside)
    with opened(root) as chunks, pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        chunks.insert(other, GOOD)
    assert os.listdir(outside) == ["file"]


def test_one_at_a_time(root: Path) -> None:
    with opened(root), pytest.raises(RestoreError, match="Another mirrorfs is bringing chunks back"), opened(root):
        pass
    descriptor = os.open(root / ".chunks", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)


def test_no_datastore(base: Path) -> None:
    with pytest.raises(RestoreError, match="is no datastore: there is no directory"), opened(base):
        pass
    (base / ".chunks").write_bytes(b"")
    with pytest.raises(RestoreError, match="is no datastore"), opened(base):
        pass


def test_corrupt_copies_go_only_when_the_chunk_is_good(root: Path) -> None:
    copies = [place(root).with_name(f"{DIGEST.hex()}.{number}.bad") for number in range(2)]
    for copy in copies:
        write(copy, b"corrupt")
    with opened(root) as chunks:
        assert chunks.end_quarantine(DIGEST, is_encrypted=False) == 0
        for bad in (b"", GOOD[:-1], encrypted_blob(b"of nobody")):
            write(place(root), bad)
            assert chunks.end_quarantine(DIGEST, is_encrypted=False) == 0
            assert all(copy.exists() for copy in copies)
        write(place(root), GOOD)
        assert chunks.end_quarantine(DIGEST, is_encrypted=False) == 2
    assert os.listdir(place(root).parent) == [DIGEST.hex()]


def test_what_a_verification_quarantines_meanwhile_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(place(root), GOOD)
    write(place(root).with_name(f"{DIGEST.hex()}.0.bad"), b"corrupt")
    fsync = os.fsync

    def quarantined_meanwhile(descriptor: int) -> None:
        if place(root).exists():
            place(root).rename(place(root).with_name(f"{DIGEST.hex()}.1.bad"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", quarantined_meanwhile)
    with opened(root) as chunks:
        assert chunks.end_quarantine(DIGEST, is_encrypted=False) == 1
    assert os.listdir(place(root).parent) == [f"{DIGEST.hex()}.1.bad"]
