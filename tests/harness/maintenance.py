"""What the server does to finished snapshots: notes, verification, protection, logs, forgetting, namespaces, moves."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from tests.harness import formats
from tests.harness.backup import BackupRefused, last_finished_snapshot, remove_snapshot_directory, unlink_all
from tests.harness.content import EncodedChunk
from tests.harness.formats import LOG_NAME, MANIFEST_NAME, FormatError
from tests.harness.index_files import read_index
from tests.harness.names import (
    BACKUP_TYPES,
    GroupName,
    SnapshotName,
    chunk_path,
    is_namespace,
    namespace_path,
    parse_snapshot_time,
)
from tests.harness.store import InsertOutcome, Store

UnlinkOrder = Literal["as listed", "manifest first", "manifest last", "random"]


def change_unprotected(store: Store, snapshot: SnapshotName, key: str, value: object) -> bytes:
    """Read the manifest, set one key of its unprotected part (None removes it), replace it. Gives the new file."""
    path = f"{snapshot.path}/{MANIFEST_NAME}"
    document = formats.decode_manifest_document(store.calls.read_file("manifest-update", store.at(path)))
    unprotected = document.get("unprotected")
    changed = dict(unprotected) if isinstance(unprotected, dict) else {}
    if value is None:
        changed.pop(key, None)
    else:
        changed[key] = value
    raw = formats.encode_manifest({**document, "unprotected": changed})
    store.replace("manifest-update", path, raw)
    return raw


def set_protected(store: Store, snapshot: SnapshotName, *, protected: bool) -> None:
    """Under the snapshot's lock, .protected is made by open and close alone, or unlinked."""
    calls, directory = store.calls, store.at(snapshot.path)
    calls.stat("protect", directory)
    with calls.closing("protect", _lock(store, snapshot.path)):
        marker = f"{directory}/.protected"
        if protected:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            calls.close("protect", calls.open("protect", marker, flags))
        else:
            calls.unlink_expecting_nothing("protect", marker)


def upload_log(store: Store, snapshot: SnapshotName, text: bytes) -> None:
    """The client's log, after the finish and without any change to the manifest. Raises BackupRefused."""
    calls = store.calls
    calls.read_file("client-log", f"{store.at(snapshot.group.path)}/owner")
    path = f"{snapshot.path}/{LOG_NAME}"
    if calls.stat("client-log", store.at(path)) is not None:
        raise BackupRefused(f"{path} is there already")
    store.replace("client-log", path, formats.encode_blob(text))


def set_group_notes(store: Store, group: GroupName, text: str) -> None:
    store.replace("group-notes", f"{group.path}/notes", text.encode())


def change_owner(store: Store, group: GroupName, owner: str) -> None:
    store.replace("owner", f"{group.path}/owner", f"{owner}\n".encode())


# -- forgetting --------------------------------------------------------------------------------------------


def forget_snapshot(store: Store, snapshot: SnapshotName, order: UnlinkOrder = "as listed", seed: int = 0) -> None:
    """Unlink every file of a snapshot and its directory. Raises BackupRefused when it is protected or locked."""
    with store.calls.closing("forget", _lock(store, snapshot.path)):
        remove_snapshot_directory(store, snapshot.path, _arrangement(order, snapshot.path, seed))


def _arrangement(order: UnlinkOrder, path: str, seed: int) -> Callable[[list[str]], list[str]] | None:
    if order == "as listed":
        return None
    if order == "random":
        source = random.Random(f"{seed} {path}")
        return lambda names: source.sample(sorted(names), len(names))
    manifest_last = order == "manifest last"
    return lambda names: sorted(names, key=lambda name: ((name == MANIFEST_NAME) == manifest_last, name))


def list_snapshots(store: Store, group: GroupName) -> list[SnapshotName]:
    """All snapshot directories of a group, finished or not, oldest first."""
    times = (parse_snapshot_time(entry.name) for entry in store.calls.list_folder("list", store.at(group.path)))
    return sorted(SnapshotName(group, time) for time in times if time is not None)


def prune_group(store: Store, group: GroupName, keep_last: int) -> tuple[SnapshotName, ...]:
    """Forget all but the newest keep_last snapshots, but no protected ones. Gives the forgotten."""
    last_finished_snapshot(store, group)
    candidates = list_snapshots(store, group)
    forgotten = []
    for snapshot in candidates[: max(len(candidates) - keep_last, 0)]:
        with suppress(BackupRefused):
            forget_snapshot(store, snapshot)
            forgotten.append(snapshot)
    return tuple(forgotten)


def forget_group(store: Store, group: GroupName, order: UnlinkOrder = "as listed", seed: int = 0) -> None:
    """Every snapshot, then owner and notes, then the group's directory. Raises BackupRefused when one is protected
    (what was forgotten before it stays so)."""
    calls, path = store.calls, store.at(group.path)
    with calls.closing("forget", _lock(store, group.path)):
        with calls.closing("forget", calls.open_folder("forget", path)) as folder:
            for entry in calls.read_directory("forget", folder):
                time = parse_snapshot_time(entry.name)
                if time is not None:
                    calls.stat("forget", f"{path}/{entry.name}/.protected")
                    forget_snapshot(store, SnapshotName(group, time), order, seed)
        calls.stat_link("forget", path)
        unlink_all(store, group.path, None)
        calls.remove_directory("forget", path)


# -- namespaces and moves ----------------------------------------------------------------------------------


def create_namespace(store: Store, namespace: str) -> None:
    """mkdir of the namespace, which tells whether ns must be made first. Raises ValueError for a malformed name."""
    if not is_namespace(namespace):
        raise ValueError(f"not a namespace: {namespace}")
    parts = namespace.split("/")
    for depth in range(1, len(parts) + 1):
        path = store.at(namespace_path("/".join(parts[:depth])))
        try:
            store.calls.make_directory("namespace", path)
        except FileNotFoundError:
            store.calls.make_directory("namespace", os.path.dirname(path))
            store.calls.make_directory("namespace", path)


def remove_namespace(store: Store, namespace: str, *, delete_groups: bool = False) -> None:
    """From the innermost namespace upward: groups if so asked, TYPE directories, ns, the namespace itself; that
    something is not there or not empty is an expected answer."""
    for inner in _child_namespaces(store, namespace):
        remove_namespace(store, inner, delete_groups=delete_groups)
    if delete_groups:
        for group in list_groups(store, namespace):
            forget_group(store, group)
    path = namespace_path(namespace)
    with store.calls.closing("namespace", store.calls.open("namespace", store.path, os.O_RDONLY)) as root:
        for leaf in (*BACKUP_TYPES, "ns", ""):
            with suppress(OSError):  # not there, or not empty
                store.calls.remove_directory("namespace", f"{path}/{leaf}".rstrip("/"), directory=root)


def _child_namespaces(store: Store, namespace: str) -> list[str]:
    folder = store.at("/".join(filter(None, (namespace_path(namespace), "ns"))))
    try:
        entries = store.calls.list_folder("namespace", folder)
    except FileNotFoundError:
        return []
    return sorted("/".join(filter(None, (namespace, entry.name))) for entry in entries)


def list_groups(store: Store, namespace: str = "") -> list[GroupName]:
    groups = []
    for backup_type in BACKUP_TYPES:
        folder = store.at("/".join(filter(None, (namespace_path(namespace), backup_type))))
        with suppress(FileNotFoundError):
            for entry in store.calls.list_folder("namespace", folder):
                groups.append(GroupName(namespace, backup_type, entry.name))
    return sorted(groups)


def all_namespaces(store: Store, namespace: str = "") -> list[str]:
    """A namespace and all below it; the root is the empty text."""
    children = _child_namespaces(store, namespace)
    return [namespace, *(deeper for child in children for deeper in all_namespaces(store, child))]


def move_group(store: Store, group: GroupName, target: GroupName) -> None:
    """A rename of the group's whole tree, as PBS 4.2 moves groups. Raises BackupRefused."""
    with store.calls.closing("move", _lock(store, group.path)):
        _make_room_for_move(store, target.namespace, target.path)
        store.calls.make_directory("move", os.path.dirname(store.at(target.path)))
        store.calls.rename("move", store.at(group.path), store.at(target.path))


def move_snapshot(store: Store, snapshot: SnapshotName, target: GroupName) -> SnapshotName:
    """A rename of one snapshot's directory into another group, which is there. No server does this by itself; an
    administrator may. Raises BackupRefused."""
    destination = SnapshotName(target, snapshot.time)
    with store.calls.closing("move", _lock(store, snapshot.path)):
        if store.calls.stat("move", store.at(target.path)) is None:
            raise BackupRefused(f"there is no group {target.path}")
        if store.calls.stat("move", store.at(destination.path)) is not None:
            raise BackupRefused(f"{destination.path} exists")
        store.calls.rename("move", store.at(snapshot.path), store.at(destination.path))
    return destination


def move_namespace(store: Store, namespace: str, target: str) -> None:
    """A rename of the namespace's whole tree. Raises BackupRefused, and ValueError for a malformed name."""
    if not is_namespace(target):
        raise ValueError(f"not a namespace: {target}")
    _make_room_for_move(store, target.rpartition("/")[0], namespace_path(target))
    store.calls.make_directory("move", os.path.dirname(store.at(namespace_path(target))))
    store.calls.rename("move", store.at(namespace_path(namespace)), store.at(namespace_path(target)))


def _make_room_for_move(store: Store, namespace: str, target: str) -> None:
    if store.calls.stat("move", store.at(namespace_path(namespace))) is None:
        raise BackupRefused(f"there is no namespace {namespace}")
    if store.calls.stat("move", store.at(target)) is not None:
        raise BackupRefused(f"{target} exists")


# -- chunks ------------------------------------------------------------------------------------------------


def reinsert_chunk(store: Store, digest: str, *, compress: bool) -> InsertOutcome:
    """Insert a chunk's content again, compressed or not, as a client with another setting does."""
    content = formats.decode_blob(_read_plainly(store.at(chunk_path(digest)))).content
    if content is None:
        raise ValueError(f"chunk {digest} is encrypted")
    return store.insert_chunk(EncodedChunk(digest, formats.encode_blob(content, compress=compress)))


# -- verification ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VerifyOutcome:
    """bad: digests of chunks found corrupt and renamed; missing: digests that were not there."""

    snapshot: SnapshotName
    bad: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def state(self) -> str:
        return "failed" if self.bad or self.missing else "ok"


def verify_snapshot(store: Store, snapshot: SnapshotName) -> VerifyOutcome:
    """Under a shared lock: stat every chunk, read them in the order of their inodes, rename corrupt ones to .bad,
    and put the verify state into the manifest."""
    calls, directory = store.calls, store.at(snapshot.path)
    calls.stat("verify", directory)
    bad: list[str] = []
    missing: list[str] = []
    with calls.closing("verify", _lock(store, snapshot.path, shared=True)):
        raw = calls.read_file("verify", f"{directory}/{MANIFEST_NAME}")
        for file in formats.manifest_files(raw):
            if file.is_index:
                _verify_chunks(store, read_index(calls, f"{directory}/{file.name}").digests, bad, missing)
            else:
                formats.check_listed_file(file, calls.read_file("verify", f"{directory}/{file.name}"))
        outcome = VerifyOutcome(snapshot, tuple(bad), tuple(missing))
        upid = f"UPID:harness:00000433:00000D29:00000001:{snapshot.time:08X}:verify:{snapshot.path}:root@pam:"
        change_unprotected(store, snapshot, "verify_state", {"state": outcome.state, "upid": upid})
    return outcome


def _verify_chunks(store: Store, digests: tuple[str, ...], bad: list[str], missing: list[str]) -> None:
    found = []
    for digest in dict.fromkeys(digests):
        status = store.calls.stat("verify", store.at(chunk_path(digest)))
        if status is None:
            missing.append(digest)
        else:
            found.append((status.st_ino, digest))
    for _inode, digest in sorted(found):
        raw = _read_chunk(store, digest)
        try:
            formats.check_chunk(raw, digest)
        except FormatError:
            _rename_to_bad(store, digest)
            bad.append(digest)


def _read_chunk(store: Store, digest: str) -> bytes:
    calls = store.calls
    with calls.closing("verify", calls.open("verify", store.at(chunk_path(digest)), os.O_RDONLY)) as descriptor:
        size = calls.stat_descriptor("verify", descriptor).st_size
        calls.seek("verify", descriptor, 0, os.SEEK_CUR)
        raw = calls.read("verify", descriptor, size) if size else b""
        while rest := calls.read("verify", descriptor, 32):
            raw += rest
        return raw


def _rename_to_bad(store: Store, digest: str) -> None:
    path = store.at(chunk_path(digest))
    for number in range(10):
        if store.calls.stat("verify", f"{path}.{number}.bad") is None:
            store.calls.rename("verify", path, f"{path}.{number}.bad")
            return
    raise OSError(f"{path} has ten .bad files already")


# -- sync job ----------------------------------------------------------------------------------------------


def pull_snapshot(store: Store, source: str, snapshot: SnapshotName) -> None:
    """A sync job's pull from another datastore directory: manifest into index.json.tmp, chunks inserted, each
    archive into NAME.tmp and renamed, the manifest renamed last, the client's log after it when there is none here.
    Files of a snapshot that exists here are replaced when they differ; at the end those go that the manifest does not
    list."""
    calls, target = store.calls, store.at(snapshot.path)
    origin = f"{source}/{snapshot.path}"
    _make_group_for_pull(store, source, snapshot.group)
    calls.make_directory("pull", target)
    with calls.closing("pull", _lock(store, snapshot.path)):
        manifest = _read_plainly(f"{origin}/{MANIFEST_NAME}")
        _write_plainly(store, f"{target}/index.json.tmp", manifest)
        if _is_same(f"{target}/{MANIFEST_NAME}", manifest):
            calls.unlink("pull", f"{target}/index.json.tmp")
        else:
            for file in formats.manifest_files(manifest):
                _pull_file(store, source, origin, target, file)
            calls.rename("pull", f"{target}/index.json.tmp", f"{target}/{MANIFEST_NAME}")
        if calls.stat("pull", f"{target}/{LOG_NAME}") is None:
            _pull_log(store, origin, target)
        _remove_unlisted(store, target, {file.name for file in formats.manifest_files(manifest)})


def _pull_log(store: Store, origin: str, target: str) -> None:
    with suppress(FileNotFoundError):
        log = _read_plainly(f"{origin}/{LOG_NAME}")
        _write_plainly(store, f"{target}/client.log.tmp", log)
        store.calls.rename("pull", f"{target}/client.log.tmp", f"{target}/{LOG_NAME}")


def _remove_unlisted(store: Store, target: str, listed: set[str]) -> None:
    kept = listed | {MANIFEST_NAME, LOG_NAME}
    for entry in store.calls.list_folder("pull", target):
        if entry.name not in kept and not entry.name.startswith("."):
            store.calls.unlink("pull", f"{target}/{entry.name}")


def _make_group_for_pull(store: Store, source: str, group: GroupName) -> None:
    os.makedirs(store.at(group.path), exist_ok=True)
    with suppress(FileExistsError):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        descriptor = store.calls.open("owner", f"{store.at(group.path)}/owner", flags)
        with store.calls.closing("owner", descriptor):
            store.calls.write("owner", descriptor, _read_plainly(f"{source}/{group.path}/owner").rstrip(b"\n"))
            store.calls.write("owner", descriptor, b"\n")


def _pull_file(store: Store, source: str, origin: str, target: str, file: formats.ManifestFile) -> None:
    raw = _read_plainly(f"{origin}/{file.name}")
    if _is_same(f"{target}/{file.name}", raw):
        return
    for digest in dict.fromkeys(formats.check_listed_file(file, raw)):
        store.insert_chunk(EncodedChunk(digest, _read_plainly(f"{source}/{chunk_path(digest)}")))
    temporary = f"{target}/{os.path.splitext(file.name)[0]}.tmp"
    _write_plainly(store, temporary, raw)
    store.calls.rename("pull", temporary, f"{target}/{file.name}")


def _write_plainly(store: Store, path: str, data: bytes) -> None:
    descriptor = store.calls.open("pull", path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    with store.calls.closing("pull", descriptor):
        store.calls.write("pull", descriptor, data)


def _read_plainly(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _is_same(path: str, data: bytes) -> bool:
    try:
        return hashlib.sha256(_read_plainly(path)).digest() == hashlib.sha256(data).digest()
    except FileNotFoundError:
        return False


def _lock(store: Store, path: str, *, shared: bool = False) -> int:
    try:
        return store.calls.lock_folder("folder-lock", store.at(path), shared=shared)
    except BlockingIOError as error:
        raise BackupRefused(f"somebody has the lock of {path}") from error
