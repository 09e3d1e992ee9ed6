"""Bringing chunks: each once, and however many there are in little memory."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Callable, Iterable, Iterator

import pytest
import trio

from mirrorfs.datastore.errors import BlobError, DatastoreError
from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.objectstore.errors import StoreReason, StoreUnavailable
from mirrorfs.recovery.fetching import ChunkFetcher, Fetcher
from mirrorfs.recovery.pace import Pace
from mirrorfs.recovery.progress import Account, Damages, RestoreObserver
from mirrorfs.recovery.source import PresentSource
from tests.datastore.formats import plain_blob
from tests.recovery.mirror import Mirror, Tampering, upload

COUNT = 300_000


class Chunks:
    """Where chunks come to: all that `has` says are there already."""

    def __init__(self, has: Callable[[bytes], bool]) -> None:
        self.has = has
        self.written: list[bytes] = []

    def to_look_at(self, digests: Iterable[bytes], *, are_encrypted: bool) -> list[bytes]:
        return [digest for digest in digests if not self.has(digest) and digest not in self.written]

    def has_chunk(self, digest: bytes, *, is_encrypted: bool) -> bool:
        return self.has(digest)

    def write_chunk(self, digest: bytes, data: bytes, *, is_encrypted: bool) -> None:
        self.written.append(digest)


def fetcher_of(mirror: Mirror, tampering: Tampering, account: Account, parallelism: int = 8) -> Fetcher:
    source = PresentSource(mirror.store(tampering))
    return Fetcher(source, BucketLayout(mirror.prefix), parallelism, Pace(), account, RestoreObserver())


def many_digests() -> Iterator[bytes]:
    return (number.to_bytes(32, "big") for number in range(COUNT))


def test_memory_does_not_grow_with_their_number(shared_mirror: Mirror) -> None:
    told = 0

    def referenced(count: int) -> None:
        nonlocal told
        told += count

    async def run() -> None:
        account = Account()
        fetcher = fetcher_of(shared_mirror, Tampering(), account)
        chunks = ChunkFetcher(fetcher, Chunks(lambda digest: True), account, may_fetch=True)
        tracemalloc.start()
        try:
            await chunks.bring(many_digests(), 0, None, referenced, are_encrypted=False)
            assert tracemalloc.get_traced_memory()[1] < 12_000_000
        finally:
            tracemalloc.stop()

    trio.run(run)
    assert told == COUNT


def test_what_several_snapshots_need_is_brought_once(own_mirror: Mirror) -> None:
    content = [bytes([number]) * 100 for number in range(20)]
    blobs = {hashlib.sha256(data).digest(): plain_blob(data) for data in content}
    keys = {f".chunks/{digest.hex()[:4]}/{digest.hex()}": data for digest, data in blobs.items()}
    upload(own_mirror.access, own_mirror.bucket, own_mirror.prefix, keys)
    target, tampering, account = Chunks(lambda digest: False), Tampering(), Account()

    async def run() -> None:
        chunks = ChunkFetcher(fetcher_of(own_mirror, tampering, account), target, account, may_fetch=True)
        async with trio.open_nursery() as nursery:
            for rank in range(4):

                async def bring(rank: int = rank) -> None:
                    await chunks.bring(list(blobs) * 2, rank, None, lambda _: None, are_encrypted=False)

                nursery.start_soon(bring)

    trio.run(run)
    assert sorted(target.written) == sorted(blobs)
    assert len(tampering.gets) == len(blobs) == account.chunks_downloaded
    assert account.chunks_kept == 0


@pytest.mark.parametrize("is_kept", [False, True])
def test_what_is_damaged_is_raised_or_noted(own_mirror: Mirror, is_kept: bool) -> None:
    digests = [hashlib.sha256(bytes([number])).digest() for number in range(3)]
    keys = {f".chunks/{digest.hex()[:4]}/{digest.hex()}": plain_blob(b"something else") for digest in digests}
    upload(own_mirror.access, own_mirror.bucket, own_mirror.prefix, keys)
    account, damages, target = Account(), Damages(), Chunks(lambda digest: False)

    async def run() -> None:
        chunks = ChunkFetcher(fetcher_of(own_mirror, Tampering(), account), target, account, may_fetch=True)
        await chunks.bring(digests, 0, damages if is_kept else None, lambda _: None, are_encrypted=False)

    if is_kept:
        trio.run(run)
        assert damages.count == 3
        assert {problem.path.rpartition("/")[2] for problem in damages.problems} == {found.hex() for found in digests}
    else:
        with pytest.raises(BlobError, match="is damaged"):
            trio.run(run)
    assert target.written == []


def test_nothing_is_fetched_where_that_is_not_wanted(shared_mirror: Mirror) -> None:
    account = Account()

    async def run() -> None:
        fetcher = fetcher_of(shared_mirror, Tampering(), account)
        chunks = ChunkFetcher(fetcher, Chunks(lambda digest: False), account, may_fetch=False)
        await chunks.bring([bytes(32)], 0, None, lambda _: None, are_encrypted=False)

    with pytest.raises(DatastoreError, match="missing or damaged in the datastore"):
        trio.run(run)


def test_what_is_not_had_at_once_is_asked_for_again(own_mirror: Mirror) -> None:
    content = [bytes([number]) * 100 for number in range(20)]
    blobs = {hashlib.sha256(data).digest(): plain_blob(data) for data in content}
    keys = {f".chunks/{digest.hex()[:4]}/{digest.hex()}": data for digest, data in blobs.items()}
    upload(own_mirror.access, own_mirror.bucket, own_mirror.prefix, keys)
    seen: set[str] = set()

    def fails_once(key: str, body: bytes) -> bytes:
        if key not in seen:
            seen.add(key)
            raise StoreUnavailable(f"read {key}", "it was unplugged", StoreReason.UNREACHABLE)
        return body

    target, tampering, account = Chunks(lambda digest: False), Tampering(on_get=fails_once), Account()

    async def run() -> None:
        chunks = ChunkFetcher(fetcher_of(own_mirror, tampering, account), target, account, may_fetch=True)
        await chunks.bring(blobs, 0, None, lambda _: None, are_encrypted=False)

    trio.run(run)
    assert sorted(target.written) == sorted(blobs)
    assert sorted(tampering.gets) == sorted(2 * [f"{own_mirror.prefix}/{key}" for key in keys])
    assert account.chunks_downloaded == len(blobs)
