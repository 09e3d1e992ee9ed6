"""A datastore and its mirror for tests: made by the harness, uploaded with plain boto3, compared with a few lines of
our own; nothing here is shared with mirrorfs but the client that is to be tested."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import trio

from mirrorfs.objectstore.answers import CheckBeginning, ListPage, StoredObject
from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.errors import StoreReason, StoreUnavailable
from mirrorfs.objectstore.retry import AT_ONCE
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.objectstore.url import StoreAddress, StoreOptions
from mirrorfs.recovery.ownership import Owner, default_owner
from mirrorfs.recovery.restore import Manner, RestoreObserver, RestoreReport, restore_datastore
from mirrorfs.recovery.selection import Selection
from mirrorfs.recovery.source import View
from tests.harness.content import MEBIBYTE, plan_of_size
from tests.harness.writer import DatastoreWriter
from tests.stores.server import StoreAccess

LONG_AGO = 1_000_000_000 * 10**9
"""In nanoseconds: when a living datastore was used last."""
PLAN = plan_of_size(MEBIBYTE, chunk_size=64 * 1024)
_UNPUBLISHED = re.compile(r"\.lock|\.gc-status|.*\.tmp(_.*)?|.*\.bad")

Objects = dict[str, bytes]
"""Keys below the prefix, with their contents."""


def write_datastore(root: Path) -> None:
    """Two groups with increments and shared data, one of them encrypted in a namespace; notes, protection, a log."""
    with DatastoreWriter(root, seed=7, default_plan=PLAN) as writer:
        writer.create(chunk_directories="when needed")
        first = writer.backup("vm/100")
        writer.backup("vm/100")
        third = writer.backup("vm/100")
        writer.backup("host/web", data="vm/100", generation=2)
        writer.create_namespace("a/b")
        writer.create_namespace("empty")
        writer.backup("ct/200", namespace="a/b", encrypted=True)
        writer.backup("ct/200", namespace="a/b", encrypted=True)
        writer.set_protected(first.name)
        writer.set_notes(third.name, "last one")
        writer.set_verify_state(third.name, "ok")
        writer.upload_log(first.name)
        writer.set_group_notes("vm/100", "the web shop")
        writer.change_owner("vm/100", "backup@pbs!token")


def objects_of(root: Path) -> Objects:
    """What a mirror of the datastore at `root` holds, in the layout of PBS 4."""
    return {key: b"" if path is None else path.read_bytes() for key, path in objects_with_files(root)}


def objects_with_files(root: Path) -> Iterator[tuple[str, Path | None]]:
    """The keys of these objects, each with the file that has its content; that of a namespace has none."""
    for directory, _, filenames in os.walk(root):
        relative = Path(directory).relative_to(root)
        if relative.parent.name == "ns":
            yield f".cnt/{relative}/.namespace", None
        for filename in filenames:
            if not _UNPUBLISHED.fullmatch(filename):
                path = relative / filename
                yield str(path) if path.parts[0] == ".chunks" else f".cnt/{path}", root / path


def upload(access: StoreAccess, bucket: str, prefix: str, objects: Mapping[str, bytes]) -> None:
    """Put all objects below the prefix."""
    client = access.client()
    with ThreadPoolExecutor(8) as pool:
        puts = [
            pool.submit(client.put_object, Bucket=bucket, Key=f"{prefix}/{key}", Body=body)
            for key, body in objects.items()
        ]
        for put in puts:
            put.result()


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or directory as found on disk; content is None for a directory."""

    mode: str
    user: int
    group: int
    content: bytes | None


def entries_of(root: Path) -> dict[str, Entry]:
    """Everything in a datastore, by path; without the chunk directories that are empty."""
    entries: dict[str, Entry] = {}
    for directory, _, filenames in os.walk(root):
        path = Path(directory)
        if path == root or (path.parent.name == ".chunks" and not filenames):
            paths = [path / filename for filename in filenames]
        else:
            paths = [path, *(path / filename for filename in filenames)]
        entries.update((str(found.relative_to(root)), _entry(found)) for found in paths)
    return entries


def _entry(path: Path) -> Entry:
    status = path.lstat()
    content = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
    return Entry(stat.filemode(status.st_mode), status.st_uid, status.st_gid, content)


@dataclass
class Tampering:
    """What happens on the way between store and mirrorfs: `on_get` sees each downloaded object (full key and body) and
    gives what arrives instead, as does `spoiled` by the end of the key; `extra_keys` stand in every listing. `gets`
    are the keys asked for, in order.
    """

    on_get: Callable[[str, bytes], bytes] | None = None
    spoiled: Mapping[str, bytes] = field(default_factory=dict)
    extra_keys: tuple[str, ...] = ()
    gets: list[str] = field(default_factory=list)


class TamperedClient(S3Client):
    """An S3Client that suffers what a Tampering says."""

    def __init__(self, bucket: str, options: StoreOptions, tampering: Tampering) -> None:
        super().__init__(bucket, options)
        self._tampering = tampering

    def get_object(self, key: str, maximum: int, check_beginning: CheckBeginning | None = None) -> bytes:
        self._tampering.gets.append(key)
        return self._tampered(key, bytes(super().get_object(key, maximum, check_beginning)))

    def get_unsummed(self, key: str, maximum: int, check_beginning: CheckBeginning | None = None) -> bytes:
        self._tampering.gets.append(key)
        return self._tampered(key, bytes(super().get_unsummed(key, maximum, check_beginning)))

    def _tampered(self, key: str, body: bytes) -> bytes:
        for end, spoiled in self._tampering.spoiled.items():
            if key.endswith(end):
                body = spoiled
        return body if self._tampering.on_get is None else self._tampering.on_get(key, body)

    def get_version(
        self, key: str, version_id: str, maximum: int, check_beginning: CheckBeginning | None = None
    ) -> bytes:
        self._tampering.gets.append(f"{key}?versionId={version_id}")
        body = bytes(super().get_version(key, version_id, maximum, check_beginning))
        return body if self._tampering.on_get is None else self._tampering.on_get(key, body)

    def list_page(self, prefix: str, token: str | None) -> ListPage:
        page = super().list_page(prefix, token)
        extra = tuple(StoredObject(key, 7, "", None) for key in self._tampering.extra_keys)
        return ListPage(page.objects + extra, page.next_token)


def breaks_off_after(count: int) -> Callable[[str, bytes], bytes]:
    """For Tampering.on_get: the store is gone after so many chunks."""
    remaining = count

    def on_get(key: str, body: bytes) -> bytes:
        nonlocal remaining
        if "/.chunks/" in key:
            remaining -= 1
            if remaining < 0:
                raise StoreUnavailable(f"read {key}", "it was unplugged", StoreReason.UNREACHABLE)
        return body

    return on_get


@dataclass(frozen=True, slots=True)
class Mirror:
    """A mirror in a store."""

    access: StoreAccess
    bucket: str
    prefix: str

    @property
    def address(self) -> StoreAddress:
        return StoreAddress(self.bucket, self.prefix)

    def store(self, tampering: Tampering | None = None) -> ObjectStore:
        """mirrorfs' own access to it, without patience; to be made inside a trio run."""
        options = StoreOptions(endpoint_url=self.access.endpoint_url)
        return ObjectStore(TamperedClient(self.bucket, options, tampering or Tampering()), patience=AT_ONCE)

    def restore(
        self,
        target: Path,
        selection: Selection | None = None,
        *,
        owner: Owner | None = None,
        view: View = View(),  # noqa: B008 - immutable
        manner: Manner = Manner(),  # noqa: B008 - immutable
        parallelism: int = 8,
        observer: RestoreObserver | None = None,
        tampering: Tampering | None = None,
    ) -> RestoreReport:
        """Restore from it."""

        async def run() -> RestoreReport:
            return await restore_datastore(
                self.store(tampering),
                self.address,
                target,
                owner=owner or default_owner(),
                selection=selection or Selection(),
                view=view,
                manner=manner,
                parallelism=parallelism,
                observer=observer,
            )

        return trio.run(run)
