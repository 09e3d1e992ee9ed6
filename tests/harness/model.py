"""What the imitation of PBS believes to hold: the truth that datastore and bucket are compared with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.harness.backup import WrittenSnapshot
from tests.harness.departures import Departures
from tests.harness.formats import MANIFEST_NAME
from tests.harness.names import is_below, namespace_path
from tests.harness.scan import FoundDatastore, FoundSnapshot, file_sha256


@dataclass(frozen=True, slots=True)
class HeldSnapshot:
    """A finished snapshot: SHA-256 by file name (manifest included), and whether it is protected."""

    files: dict[str, str]
    is_protected: bool = False
    has_log: bool = False

    def with_manifest(self, raw: bytes) -> HeldSnapshot:
        """The snapshot after its manifest was replaced."""
        files = {**self.files, MANIFEST_NAME: hashlib.sha256(raw).hexdigest()}
        return HeldSnapshot(files, self.is_protected, self.has_log)


@dataclass(slots=True)
class Model:
    """Paths are relative to the datastore. An operation that was cut short leaves what is below its scope (a path of
    a snapshot, group or namespace) open, until `resolve` has looked what became of it; an operation that was answered
    leaves nothing open, except to a power cut (`unsynced`). Scopes of a removal that was cut short are `half_removed`
    as well, until what it left is removed. `rotten` chunks are bad or gone on the disk, by
    a fault; those that were inserted again since are `healed`. `had_power_cut` until `resolve` has looked."""

    snapshots: dict[str, HeldSnapshot] = field(default_factory=dict)
    namespaces: set[str] = field(default_factory=set)
    open_scopes: set[str] = field(default_factory=set)
    half_removed: set[str] = field(default_factory=set)
    unsynced: set[str] = field(default_factory=set)
    unsynced_moves: dict[str, tuple[str, ...]] = field(default_factory=dict)
    rotten: set[str] = field(default_factory=set)
    healed: set[str] = field(default_factory=set)
    had_power_cut: bool = False
    departures: Departures = field(default_factory=Departures)

    # -- what happened -------------------------------------------------------------------------------------

    def wrote(self, written: WrittenSnapshot) -> None:
        """A backup was finished: all that was done before is durable, since that is what syncfs means to PBS."""
        files = {file.listed.name: file.sha256 for file in written.files}
        self._came(written.path, HeldSnapshot(files).with_manifest(written.manifest))
        self.healed |= written.inserted
        self.synced()

    def found(self, root: Path, snapshot: FoundSnapshot) -> None:
        """A snapshot came to be in a way that tells no content: take it from the disk."""
        directory = root / snapshot.name.path
        files = {name: file_sha256(directory / name) for name in (*snapshot.files, MANIFEST_NAME)}
        held = HeldSnapshot(files, (directory / ".protected").exists(), (directory / "client.log.blob").exists())
        self._came(snapshot.name.path, held)

    def _came(self, path: str, held: HeldSnapshot) -> None:
        before = self.snapshots.get(path)
        self.snapshots[path] = held
        if before is None or before.files != held.files:
            self.departures.came(path)

    def changed_manifest(self, path: str, raw: bytes) -> None:
        """A manifest was replaced, which is answered only when it is durable."""
        self.snapshots[path] = self.snapshots[path].with_manifest(raw)
        self.synced()

    def changed(self, path: str, *, is_protected: bool | None = None, has_log: bool | None = None) -> None:
        """Something beside the manifest changed, which may get lost in a power cut."""
        before = self.snapshots[path]
        self.snapshots[path] = HeldSnapshot(
            before.files,
            before.is_protected if is_protected is None else is_protected,
            before.has_log if has_log is None else has_log,
        )
        self.unsynced.add(path)

    def came_and_went(self, scope: str) -> None:
        """Below this path something was there for a moment, which a power cut may bring back."""
        self.departures.open(scope)
        self.unsynced.add(scope)

    def removed_below(self, scope: str) -> None:
        """A snapshot, group or namespace is gone."""
        for path in self.below(scope):
            del self.snapshots[path]
            self.departures.left(path)
        self.namespaces = {name for name in self.namespaces if not is_below(namespace_path(name), scope)}
        self.unsynced.add(scope)

    def moved(self, old: str, new: str) -> None:
        """A tree has got another name."""
        for path in self.below(old):
            target = new + path[len(old) :]
            self._came(target, self.snapshots.pop(path))
            self.departures.left(path)
            self.unsynced_moves[target] = (*self.unsynced_moves.pop(path, ()), path)
        for name in sorted(self.namespaces):
            path = namespace_path(name)
            if is_below(path, old):
                self.namespaces.discard(name)
                self.namespaces.add("/".join((new + path[len(old) :]).split("/")[1::2]))
        self.unsynced |= {old, new}

    def made_namespace(self, name: str) -> None:
        """A namespace, written a/b, and those above it are there."""
        parts = name.split("/")
        self.namespaces |= {"/".join(parts[:count]) for count in range(1, len(parts) + 1)}
        self.unsynced.add(namespace_path(parts[0]))

    def synced(self) -> None:
        """Everything until now survives a power cut."""
        self.rotten -= self.healed
        self.healed.clear()
        self.unsynced.clear()
        self.unsynced_moves.clear()

    def lost_power(self) -> None:
        """What was not durable is open again."""
        self.healed.clear()
        self.open_scopes |= self.unsynced
        self.had_power_cut = True

    def copied(self) -> Model:
        """What PBS believes to hold now, to be put back later."""
        return replace(
            self,
            snapshots=dict(self.snapshots),
            namespaces=set(self.namespaces),
            open_scopes=set(self.open_scopes),
            half_removed=set(self.half_removed),
            unsynced=set(self.unsynced),
            unsynced_moves=dict(self.unsynced_moves),
            rotten=set(self.rotten),
            healed=set(self.healed),
        )

    def put_back(self, before: Model) -> None:
        """The disk is what it was when `before` was copied: what has left since is back, what has come is gone."""
        for path in sorted(self.snapshots.keys() - before.snapshots.keys()):
            self.departures.left(path)
        for path, held in before.snapshots.items():
            if path not in self.snapshots or self.snapshots[path].files != held.files:
                self.departures.came(path)
        self.snapshots, self.namespaces = dict(before.snapshots), set(before.namespaces)
        self.open_scopes, self.unsynced = set(before.open_scopes), set(before.unsynced)
        self.half_removed = set(before.half_removed)
        self.unsynced_moves = dict(before.unsynced_moves)
        self.rotten, self.healed = set(before.rotten), set(before.healed)

    # -- questions -----------------------------------------------------------------------------------------

    def below(self, scope: str) -> list[str]:
        """The snapshots that are `scope` or stand below it."""
        return sorted(path for path in self.snapshots if is_below(path, scope))

    def is_open(self, path: str) -> bool:
        """Whether an operation that was cut short leaves open what became of a snapshot."""
        return any(is_below(path, scope) for scope in self.open_scopes)

    def groups(self) -> list[str]:
        """The paths of all groups with snapshots."""
        return sorted({path.rpartition("/")[0] for path in self.snapshots})

    # -- comparing -----------------------------------------------------------------------------------------

    def resolve(self, found: FoundDatastore) -> list[str]:
        """Take what was left open from the disk, compare all the rest with it; gives what is wrong, as sentences."""
        wrong = [*self._lost_in_moves(found)]
        scopes, self.open_scopes = self.open_scopes, set()
        for scope in scopes:
            self._take(found, scope)
        if self.had_power_cut:
            # What is there after one is on the disk. Without one, some of it may still be in memory alone.
            self.synced()
            self.had_power_cut = False
        return wrong + list(self._differences(found))

    def _take(self, found: FoundDatastore, scope: str) -> None:
        for path in self.below(scope):
            if path not in found.damaged and path not in found.finished:
                del self.snapshots[path]
                self.departures.left_some_time(path)
        for path, snapshot in found.finished.items():
            if is_below(path, scope):
                self.found(found.root, snapshot)
        # Whether a damaged snapshot was there before cannot be told until its chunks are good again.
        self.open_scopes |= {path for path in found.damaged if is_below(path, scope) and path not in self.snapshots}
        kept = {name for name in self.namespaces if not is_below(namespace_path(name), scope)}
        there = {name for name in found.namespaces if is_below(namespace_path(name), scope)}
        self.namespaces = kept | there

    def _lost_in_moves(self, found: FoundDatastore) -> Iterable[str]:
        """Renames that a power cut may have undone leave the snapshot under one of its names."""
        there = {**found.finished, **found.damaged}
        for new, names in self.unsynced_moves.items():
            if new in self.snapshots and not there.keys() & {new, *names}:
                yield f"{new} (before: {', '.join(names)}) is gone from the disk"

    def _differences(self, found: FoundDatastore) -> Iterable[str]:
        for path, held in self.snapshots.items():
            if path in found.damaged:
                reasons = [reason for reason in found.damaged[path] if not self._is_known_rot(reason)]
                yield from (f"{path} is damaged on the disk: {reason}" for reason in reasons)
            elif path not in found.finished:
                yield f"{path} is gone from the disk, though PBS holds it"
            else:
                yield from _file_differences(found.root / path, path, held)
        for path in sorted(set(found.finished) - set(self.snapshots)):
            yield f"{path} is on the disk, though PBS has removed it"
        for name in sorted(self.namespaces ^ set(found.namespaces)):
            yield f"namespace {name} is {'not ' if name in self.namespaces else ''}on the disk"

    def _is_known_rot(self, reason: str) -> bool:
        return any(digest in reason for digest in self.rotten - self.healed)


def _file_differences(directory: Path, path: str, held: HeldSnapshot) -> Iterable[str]:
    for name, expected in held.files.items():
        if not (directory / name).exists():
            yield f"{path}/{name} is gone from the disk"
        elif file_sha256(directory / name) != expected:
            yield f"{path}/{name} has other bytes than PBS has written"
    if (directory / ".protected").exists() != held.is_protected:
        yield f"{path} is {'not ' if held.is_protected else ''}protected on the disk"
    if held.has_log and not (directory / "client.log.blob").exists():
        yield f"{path}/client.log.blob is gone from the disk"
