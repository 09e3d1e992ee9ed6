"""An open datastore as one server process sees it: making one, its lock, inserting and touching chunks,
replacing small files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tests.harness.content import EncodedChunk, Encoder
from tests.harness.names import chunk_path, temporary_stem
from tests.harness.process_lock import ProcessLock
from tests.harness.system_calls import Identity, SystemCalls

SyncLevel = Literal["none", "file", "filesystem"]
InsertOutcome = Literal["inserted", "touched"]


@dataclass(frozen=True, slots=True)
class Store:
    """Path, calls and lock of an open datastore. makes_chunk_directories: the datastore was made without the
    65,536 chunk directories, they come as they are needed (quick to set up, and not what the server does)."""

    path: str
    calls: SystemCalls
    lock: ProcessLock
    identity: Identity
    sync_level: SyncLevel = "filesystem"
    makes_chunk_directories: bool = False

    def at(self, relative: str) -> str:
        return f"{self.path}/{relative}" if relative else self.path

    def replace(self, purpose: str, relative: str, data: bytes, *, chown: bool = False) -> None:
        """Make or replace a small file of the tree through a temporary one."""
        directory, name = os.path.split(relative)
        self.calls.replace_file(
            purpose, os.path.join(self.at(directory), name), temporary_stem(name), data, chown=chown
        )

    def insert_chunk(self, chunk: EncodedChunk) -> InsertOutcome:
        """stat, and utimensat when a file of the same size is there, else a temporary file renamed."""
        path = self.at(chunk_path(chunk.digest))
        existing = self.calls.stat("chunk", path)
        if existing is not None and existing.st_size == len(chunk.raw):
            self.calls.touch("chunk", path)
            return "touched"
        if self.makes_chunk_directories:
            os.makedirs(os.path.dirname(path), mode=0o750, exist_ok=True)
        sync = self.sync_level == "file"
        self.calls.replace_file("chunk", path, chunk.digest, chunk.raw, sync=sync)
        if sync:
            folder = self.calls.open("chunk-folder", os.path.dirname(path), os.O_RDONLY)
            with self.calls.closing("chunk-folder", folder):
                self.calls.sync_descriptor("chunk-folder", folder)
        return "inserted"

    def sync_file_system(self) -> None:
        """What makes a finished backup durable at the default sync level."""
        if self.sync_level == "filesystem":
            with self.calls.closing("datastore", self.calls.open("datastore", self.path, os.O_RDONLY)) as folder:
                self.calls.sync_file_system("datastore", folder)

    def check_access_times(self, wait: Callable[[float], None] = time.sleep) -> bool:
        """The check of newer servers, which refuse the datastore when it fails: insert the all-zero 4 MiB chunk,
        stat it, wait a second, set its atime by utimensat, stat again. True when atime moved and mtime did not."""
        chunk = Encoder().encode_chunk(bytes(4 * 1024 * 1024))
        self.insert_chunk(chunk)
        path = self.at(chunk_path(chunk.digest))
        before = self.calls.stat("atime-check", path)
        wait(1.0)
        self.calls.touch("atime-check", path)
        after = self.calls.stat("atime-check", path)
        return (
            before is not None
            and after is not None
            and after.st_atime_ns > before.st_atime_ns
            and after.st_mtime_ns == before.st_mtime_ns
        )


def create_datastore(
    path: str, calls: SystemCalls, *, chunk_directories: Literal["all", "when needed"] = "all"
) -> None:
    """What the manager does, as root: every directory made and given to backup:backup, an empty .lock renamed
    into place. The directory itself may exist already. With "when needed" the 65,536 chunk directories are left
    out, which takes no time and is enough for a test that does not look at them."""
    parent = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY)
    try:
        calls.step("datastore", "mkdir")
        if not os.path.isdir(path):
            os.mkdir(os.path.basename(os.path.abspath(path)), 0o755, dir_fd=parent)
    finally:
        os.close(parent)
    folder = calls.open("datastore", path, os.O_RDONLY | os.O_DIRECTORY)
    with calls.closing("datastore", folder):
        calls.change_owner("datastore", folder)
    _make_owned_directory(path + "/.chunks", calls)
    calls.replace_file("lock-file", path + "/.lock", ".lock", b"", chown=True)
    if chunk_directories == "all":
        for number in range(0x10000):
            _make_owned_directory(f"{path}/.chunks/{number:04x}", calls)
    calls.stat("datastore", path + "/.chunks")
    calls.close("lock-file", calls.open("lock-file", path + "/.lock", os.O_RDWR | os.O_CREAT))


def _make_owned_directory(path: str, calls: SystemCalls) -> None:
    calls.make_directory("datastore", path, 0o750)
    calls.change_owner_of_path("datastore", path)


def open_store(
    path: str, calls: SystemCalls, identity: Identity, *, sync_level: SyncLevel, makes_chunk_directories: bool
) -> Store:
    """The server's first access: stat .chunks, open .lock for good, try .gc-status."""
    calls.stat("first-access", path + "/.chunks")
    lock = ProcessLock.attach(path, calls)
    try:
        calls.close("first-access", calls.open("first-access", path + "/.gc-status", os.O_RDONLY))
    except FileNotFoundError:
        pass  # no garbage collection has run yet
    except BaseException:
        lock.detach()
        raise
    return Store(path, calls, lock, identity, sync_level, makes_chunk_directories)
