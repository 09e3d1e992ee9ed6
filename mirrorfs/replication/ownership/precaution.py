"""Before anything is removed: does the datastore look as if its snapshots had been removed on purpose?

A disk that is not mounted, a new empty datastore in the place of a lost one, or one that was restored in part would,
taken at face value, empty the mirror: at the very moment when it is the last copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mirrorfs.datastore.names import CHUNKS_NAME, SnapshotId
from mirrorfs.datastore.tree import Tree
from mirrorfs.journal.journal import JournalSource, Position
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.state.snapshots import SnapshotPhase, SnapshotState
from mirrorfs.state.state import StateTransaction

_RECORDS_AT_ONCE = 1000

Known = Mapping[str, SnapshotState]


@dataclass(frozen=True, slots=True)
class Datastore:
    """A datastore as a start finds it, with what its journal has not dealt with yet.

    `mounted_at` is the newest sequence that the journal had when what mounts the datastore opened it.
    """

    path: str
    tree: Tree
    journal: JournalSource
    mounted_at: int = 0


def doubt_about(datastore: Datastore, state: CommittedState) -> str | None:
    """Return why the mirror should not follow the datastore now, as a sentence; None when all looks well.

    Snapshots that went while mirrorfs was watching, as the journal tells, went on purpose. What somebody else may have
    put into the bucket tells nothing about the datastore. Blocks for a look at each snapshot that the bucket holds.
    """
    known = state.view(_mirrored)
    if not known:
        return None
    advice = (
        "Nothing is removed from the mirror, and nothing else is mirrored. If this is on purpose, mount once with "
        "--allow-removals; else bring the datastore back (mirrorfs restore), or mirror it to another name."
    )
    if not _is_there(datastore.tree, CHUNKS_NAME):
        return (
            f"{datastore.path} holds no datastore (it has no directory {CHUNKS_NAME}), but its mirror holds "
            f"{len(known)} snapshots: is its disk mounted? {advice}"
        )
    gone = _gone(known, datastore.tree)
    missed = _unexplained(gone, known, datastore, state) if gone else []
    is_most = len(missed) > 1 and 2 * len(missed) > len(known)
    if missed and (len(gone) == len(known) or is_most):
        return (
            f"{len(missed)} of the {len(known)} snapshots that the mirror holds are not in {datastore.path} any more, "
            f"and went while mirrorfs was not watching. {advice}"
        )
    return None


def missed_snapshots(datastore: Datastore, state: CommittedState) -> list[SnapshotId]:
    """Return the snapshots in the mirror that the datastore has not, and that the journal did not see going.

    Without those whose removal is held, or was and is approved of. Blocks as `doubt_about` does.
    """
    known = state.view(_undecided)
    return [SnapshotId.parse(path) for path in _unexplained(_gone(known, datastore.tree), known, datastore, state)]


def gone_snapshots(datastore: Datastore, state: CommittedState) -> list[SnapshotId]:
    """Return the snapshots in the mirror that the datastore has not, however they went. Blocks as the others do."""
    return [SnapshotId.parse(path) for path in _gone(state.view(_standing), datastore.tree)]


def _standing(transaction: StateTransaction) -> Known:
    return {path: snapshot for path, snapshot in transaction.snapshots.all() if snapshot.phase.counts_references}


def _undecided(transaction: StateTransaction) -> Known:
    """Return the snapshots in the mirror, without those whose removal is held, or was and is approved of."""
    standing = _standing(transaction)
    return {path: snapshot for path, snapshot in standing.items() if transaction.retention.held(path) is None}


def _mirrored(transaction: StateTransaction) -> Known:
    """Return those that this mirror itself has put into the bucket, as far as that is known."""
    undecided = _undecided(transaction)
    if not transaction.identity.has_strangers():
        return undecided
    return {path: snapshot for path, snapshot in undecided.items() if snapshot.phase is not SnapshotPhase.ADOPTED}


def _gone(known: Known, tree: Tree) -> list[str]:
    return [path for path in known if not _is_there(tree, SnapshotId.parse(path).manifest_path)]


def _is_there(tree: Tree, path: str) -> bool:
    try:
        return tree.exists(path)
    except OSError:
        # What cannot be read is not gone.
        return True


def _unexplained(gone: Sequence[str], known: Known, datastore: Datastore, state: CommittedState) -> list[str]:
    """Return those of `gone` that the journal did not see going, neither themselves nor a directory they lay in."""
    telling: dict[bytes, list[str]] = {}
    for path in gone:
        manifest = SnapshotId.parse(path).manifest_path
        for name in _with_ancestors(manifest):
            # A directory that is there was recorded when it was made: that explains nothing.
            if not _is_there(datastore.tree, name):
                telling.setdefault(name.encode(), []).append(path)
    journal = datastore.journal
    explained: set[str] = set()
    after = _sequence(state.view(lambda transaction: transaction.progress.position()), journal)
    while records := journal.read(after, _RECORDS_AT_ONCE):
        for record in records:
            # One of an earlier mount may be of the snapshot's coming.
            is_watched = record.sequence > datastore.mounted_at
            explained.update(
                path for path in telling.get(record.path, ()) if is_watched or record.time > known[path].since
            )
        after = records[-1].sequence
    return [path for path in gone if path not in explained]


def _with_ancestors(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _sequence(position: Position | None, journal: JournalSource) -> int:
    return position.sequence if position is not None and position.generation == journal.generation else 0
