"""A restored datastore read from disk once more: each snapshot whole, each chunk good, and a sum over all of it.

The listing that the sum is of is what this prints in the restored datastore, so that anybody can make it again:

    find . -type f ! -name .lock | LC_ALL=C sort | tr '\\n' '\\0' | xargs -0 sha256sum
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import trio

from mirrorfs.datastore.blob import check_blob, check_chunk, check_encryption
from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.manifest import check_listed_file, parse_manifest
from mirrorfs.datastore.names import CHUNKS_NAME, CLIENT_LOG_NAME, SnapshotId, chunk_path
from mirrorfs.datastore.tree import Tree
from mirrorfs.recovery.progress import Problem

_DIRECTORIES_AT_ONCE = 64
_MAGIC_SIZE = 8
_PART = 1 << 20
_LEFT_OUT = frozenset({".lock"})


@dataclass(frozen=True, slots=True)
class ReadBack:
    """What was found: how many files outside of `.chunks` and how many chunks, their bytes, the SHA-256 of the listing
    of all of them, and what is not as it should be.
    """

    files: int
    chunks: int
    bytes: int
    listing_sha256: str
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    """Lines of the listing, and what they are about."""

    lines: bytes
    count: int
    bytes: int
    problems: list[Problem]


async def read_back(
    root: int, snapshots: Iterable[SnapshotId], *, parallelism: int, told: Callable[[int], None]
) -> ReadBack:
    """Read everything below the descriptor `root`, in which `snapshots` have to be whole.

    `told` hears, in the trio thread, how many bytes have been read. Memory is that of an index and of a few chunks.
    Raises OSError.
    """
    tree, listing = Tree(root), hashlib.sha256()
    problems: list[Problem] = []
    total = chunks = files = 0
    for snapshot in snapshots:
        problems += await trio.to_thread.run_sync(_problems_of, root, snapshot)
    for batches in await trio.to_thread.run_sync(_windows, tree, parallelism):
        for part in await _in_order(tree, batches):
            listing.update(part.lines)
            problems += part.problems
            chunks, total = chunks + part.count, total + part.bytes
        told(total)
    for path in await trio.to_thread.run_sync(lambda: list(_other_files(root))):
        part = await trio.to_thread.run_sync(_read_file, root, path)
        listing.update(part.lines)
        files, total = files + part.count, total + part.bytes
        told(total)
    return ReadBack(files, chunks, total, listing.hexdigest(), tuple(dict.fromkeys(problems)))


def _windows(tree: Tree, parallelism: int) -> list[list[list[int]]]:
    """Return the chunk directories in their order, in parts that are read at the same time."""
    numbers = sorted(tree.chunk_directories())
    batches = [numbers[first : first + _DIRECTORIES_AT_ONCE] for first in range(0, len(numbers), _DIRECTORIES_AT_ONCE)]
    return [batches[first : first + parallelism] for first in range(0, len(batches), parallelism)]


async def _in_order(tree: Tree, batches: list[list[int]]) -> list[_Part]:
    """Read several batches of chunk directories at the same time; what is found of them comes in their order."""
    parts: list[_Part | None] = [None] * len(batches)

    async def read(place: int) -> None:
        parts[place] = await trio.to_thread.run_sync(_read_chunks, tree, batches[place])

    async with trio.open_nursery() as nursery:
        for place in range(len(batches)):
            nursery.start_soon(read, place)
    return [part for part in parts if part is not None]


def _read_chunks(tree: Tree, numbers: list[int]) -> _Part:
    lines, problems, count, size = bytearray(), [], 0, 0
    for number in numbers:
        for digest in sorted(tree.chunk_directory(number)):
            path = chunk_path(digest)
            data = tree.read_chunk(digest)
            try:
                check_chunk(data, digest, content=True)
            except DatastoreError as error:
                problems.append(Problem(path, str(error)))
            lines += _line(hashlib.sha256(data).hexdigest(), path)
            count, size = count + 1, size + len(data)
    return _Part(bytes(lines), count, size, problems)


def _problems_of(root: int, snapshot: SnapshotId) -> list[Problem]:
    """Look whether a snapshot has all that its manifest lists, and whether all chunks that it needs are there."""
    tree, path = Tree(root), snapshot.manifest_path
    problems: list[Problem] = []
    try:
        manifest = parse_manifest(tree.read(path))
        for file in manifest.files:
            path = f"{snapshot.path}/{file.filename}"
            index = check_listed_file(file, tree.read(path))
            if index is not None:
                problems += _problems_of_chunks(root, index.unique_digests(), is_encrypted=file.chunks_are_encrypted)
        path = f"{snapshot.path}/{CLIENT_LOG_NAME}"
        if tree.exists(path):
            check_blob(tree.read(path))
    except FileNotFoundError:
        problems.append(Problem(path, "it is not there any more"))
    except DatastoreError as error:
        problems.append(Problem(path, str(error)))
    return problems


def _problems_of_chunks(root: int, digests: Iterable[bytes], *, is_encrypted: bool) -> Iterator[Problem]:
    """Look at how the chunks that an index needs begin; all of each is read with the others."""
    for digest in digests:
        try:
            descriptor = os.open(chunk_path(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
            try:
                check_encryption(os.read(descriptor, _MAGIC_SIZE), digest, is_encrypted=is_encrypted)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            yield Problem(chunk_path(digest), "it is not there any more")
        except DatastoreError as error:
            yield Problem(chunk_path(digest), str(error))


def _other_files(root: int, directory: str = "") -> Iterator[str]:
    """Name all files outside of `.chunks`, in the order of the bytes of their paths."""
    descriptor = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
    try:
        with os.scandir(descriptor) as entries:
            found = {f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name for entry in entries}
    finally:
        os.close(descriptor)
    # A directory is sorted with its slash, as the paths of what is in it are.
    for name in sorted(found, key=os.fsencode):
        path = f"{directory}{name}"
        if name.endswith("/"):
            if path != f"{CHUNKS_NAME}/":
                yield from _other_files(root, path)
        elif name not in _LEFT_OUT:
            yield path


def _read_file(root: int, path: str) -> _Part:
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
    try:
        while data := os.read(descriptor, _PART):
            digest.update(data)
            size += len(data)
    finally:
        os.close(descriptor)
    return _Part(_line(digest.hexdigest(), path), 1, size, [])


def _line(digest: str, path: str) -> bytes:
    return f"{digest}  ./{path}\n".encode()
