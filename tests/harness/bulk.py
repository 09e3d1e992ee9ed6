"""Large numbers of tiny things: a datastore of many snapshots and chunks, made directly in a directory without the
server's system calls, for tests of memory and time."""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import dataclass

from tests.harness import formats
from tests.harness.formats import MANIFEST_NAME, ManifestFile
from tests.harness.names import GroupName, SnapshotName, chunk_path
from tests.harness.store import create_datastore
from tests.harness.system_calls import BACKUP_GID, BACKUP_UID, SystemCalls, may_change_owner
from tests.harness.writer import FIRST_SNAPSHOT_TIME

_CONTENT_SIZE = 24
_CHUNK_SIZE = 65536
_SHARED_WITH_PREVIOUS = 10


@dataclass(frozen=True, slots=True)
class BulkDatastore:
    """What was made: paths of the snapshots relative to the datastore, number of chunk files."""

    snapshots: tuple[str, ...]
    chunks: int


def generate_bulk(
    path: str,
    seed: int = 0,
    *,
    snapshots: int = 1000,
    chunks: int = 100_000,
    groups: int = 20,
    content_size: int = _CONTENT_SIZE,
) -> BulkDatastore:
    """Fill a directory (made, with all chunk directories, when it is no datastore yet) with snapshots of one dynamic
    index each, that reference chunks / snapshots new chunks of `content_size` bytes and ten of the snapshot before."""
    if not os.path.isdir(f"{path}/.chunks"):
        create_datastore(path, SystemCalls())
    per_snapshot = [chunks // snapshots + (number < chunks % snapshots) for number in range(snapshots)]
    previous: list[str] = []
    paths = []
    source = random.Random(f"bulk {seed}")
    for number in range(snapshots):
        group = GroupName("", "host", f"bulk{number % groups}")
        snapshot = SnapshotName(group, FIRST_SNAPSHOT_TIME + number * 3600)
        fresh = [_write_chunk(path, source.randbytes(content_size)) for _ in range(per_snapshot[number])]
        _write_snapshot(path, snapshot, [*previous[:_SHARED_WITH_PREVIOUS], *fresh])
        previous = fresh
        paths.append(snapshot.path)
    return BulkDatastore(tuple(paths), chunks)


def _write_chunk(path: str, content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    raw = formats.encode_blob(content, compress=False)
    try:
        _write(f"{path}/{chunk_path(digest)}", raw)
    except FileNotFoundError:
        _make_directories(path, f".chunks/{digest[:4]}")
        _write(f"{path}/{chunk_path(digest)}", raw)
    return digest


def _write_snapshot(path: str, snapshot: SnapshotName, digests: list[str]) -> None:
    directory = f"{path}/{snapshot.path}"
    _make_directories(path, snapshot.path)
    if not os.path.exists(f"{path}/{snapshot.group.path}/owner"):
        _write(f"{path}/{snapshot.group.path}/owner", b"root@pam\n")
    uuid = hashlib.sha256(snapshot.path.encode()).digest()[:16]
    entries = [(_CHUNK_SIZE * (slot + 1), bytes.fromhex(digest)) for slot, digest in enumerate(digests)]
    body = formats.dynamic_index_entries(entries)
    _write(
        f"{directory}/root.pxar.didx",
        formats.with_index_csum(formats.dynamic_index_header(uuid, snapshot.time), body),
    )
    listed = ManifestFile("root.pxar.didx", _CHUNK_SIZE * len(digests), hashlib.sha256(body).hexdigest(), "none")
    group = snapshot.group
    manifest = formats.make_manifest(
        group.backup_type, group.backup_id, snapshot.time, [listed], signature=None, unprotected={}
    )
    _write(f"{directory}/{MANIFEST_NAME}", formats.encode_manifest(manifest))


def _make_directories(path: str, relative: str) -> None:
    directory = path
    for part in relative.split("/"):
        directory = f"{directory}/{part}"
        try:
            os.mkdir(directory, 0o755)
        except FileExistsError:
            continue
        if may_change_owner():
            os.chown(directory, BACKUP_UID, BACKUP_GID)


def _write(path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(descriptor, data)
        if may_change_owner():
            os.fchown(descriptor, BACKUP_UID, BACKUP_GID)
    finally:
        os.close(descriptor)
