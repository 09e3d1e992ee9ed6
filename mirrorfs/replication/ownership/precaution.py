"""Before anything is removed: does the datastore look as if its snapshots had been removed on purpose?

A disk that is not mounted, a new empty datastore in the place of a lost one, or one that was restored in part would,
taken at face value, empty the mirror: at the very moment when it is the last copy.
"""

from __future__ import annotations

from mirrorfs.datastore.names import CHUNKS_NAME, SnapshotId
from mirrorfs.datastore.tree import Tree
from mirrorfs.journal.journal import JournalReader, Position
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.state.state import StateTransaction

_RECORDS_AT_ONCE = 1000


def doubt_about(datastore: str, tree: Tree, state: CommittedState, journal: JournalReader) -> str | None:
    """Return why the mirror should not follow the datastore now, as a sentence; None when all looks well.

    Snapshots that went while mirrorfs was watching, as the journal tells, went on purpose. Blocks for a look at each
    snapshot that the bucket holds.
    """
    held = state.view(_mirrored)
    if not held:
        return None
    advice = (
        "Nothing is removed from the mirror, and nothing else is mirrored. If this is on purpose, mount once with "
        "--allow-removals; else bring the datastore back (mirrorfs restore), or mirror it to another name."
    )
    if not _is_there(tree, CHUNKS_NAME):
        return (
            f"{datastore} holds no datastore (it has no directory {CHUNKS_NAME}), but its mirror holds {len(held)} "
            f"snapshots: is its disk mounted? {advice}"
        )
    gone = [path for path in held if not _is_there(tree, SnapshotId.parse(path).manifest_path)]
    unexplained = _unexplained(gone, tree, state, journal) if gone else []
    is_most = len(unexplained) > 1 and 2 * len(unexplained) > len(held)
    if unexplained and (len(gone) == len(held) or is_most):
        return (
            f"{len(unexplained)} of the {len(held)} snapshots that the mirror holds are not in {datastore} any more, "
            f"and went while mirrorfs was not watching. {advice}"
        )
    return None


def _mirrored(transaction: StateTransaction) -> list[str]:
    """Return the snapshots in the mirror, without those whose removal is held, or was and is approved of."""
    return [
        path
        for path, snapshot in transaction.snapshots.all()
        if snapshot.phase.counts_references and transaction.retention.held(path) is None
    ]


def _is_there(tree: Tree, path: str) -> bool:
    try:
        return tree.exists(path)
    except OSError:
        # What cannot be read is not gone.
        return True


def _unexplained(gone: list[str], tree: Tree, state: CommittedState, journal: JournalReader) -> list[str]:
    """Return those of `gone` that the journal did not see going, neither themselves nor a directory they lay in."""
    telling: dict[bytes, list[str]] = {}
    for path in gone:
        manifest = SnapshotId.parse(path).manifest_path
        for name in _with_ancestors(manifest):
            # A directory that is there was recorded when it was made: that explains nothing.
            if not _is_there(tree, name):
                telling.setdefault(name.encode(), []).append(path)
    position = state.view(lambda transaction: transaction.progress.position())
    explained: set[str] = set()
    after = _sequence(position, journal)
    while records := journal.read(after, _RECORDS_AT_ONCE):
        for record in records:
            explained.update(telling.get(record.path, ()))
        after = records[-1].sequence
    return [path for path in gone if path not in explained]


def _with_ancestors(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _sequence(position: Position | None, journal: JournalReader) -> int:
    return position.sequence if position is not None and position.generation == journal.generation else 0
