"""What healing a datastore tells: while it goes on, and at its end."""

from __future__ import annotations

from dataclasses import dataclass

from mirrorfs.datastore.names import SnapshotId, chunk_path
from mirrorfs.recovery.digest_set import DigestSet

# What is listed: a datastore that has lost everything must not fill memory, nor the screen.
MOST_LISTED = 10_000
_MOST_SNAPSHOTS_OF_A_CHUNK = 100


@dataclass(frozen=True, slots=True)
class HealedChunk:
    """A chunk that was put back, or could be: its path in the datastore, and what was wrong with it."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class LostChunk:
    """A chunk that stays damaged: what is wrong with it in the datastore, why it was not put back, and which of the
    snapshots that were looked at it costs. Where very many need it, not all are named.
    """

    path: str
    reason: str
    obstacle: str
    snapshots: tuple[SnapshotId, ...]


@dataclass(frozen=True, slots=True)
class DamagedFile:
    """A manifest, index or blob of a snapshot that is damaged in the datastore, which healing leaves as it is."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class HealReport:
    """What healing found and did; with a dry run, what it would do.

    `chunks` were looked at, `chunk_bytes` read of them. `healed`, `lost` and `damaged_files` are at most MOST_LISTED
    each; `healed_count` and `lost_count` count all. `quarantine_ended` are the `.bad` files that were removed.
    """

    snapshots: int
    chunks: int
    chunk_bytes: int
    healed: tuple[HealedChunk, ...]
    healed_count: int
    bytes_fetched: int
    quarantine_ended: int
    lost: tuple[LostChunk, ...]
    lost_count: int
    lost_snapshots: tuple[SnapshotId, ...]
    damaged_files: tuple[DamagedFile, ...]
    damaged_files_left_out: int

    @property
    def is_good(self) -> bool:
        """Whether nothing that was looked at stays damaged."""
        return not self.lost_count and not self.damaged_files


class HealObserver:
    """Told of the progress, in the trio thread; each method does nothing unless overridden."""

    def planned(self, snapshots: int) -> None:
        """So many snapshots are going to be looked at."""

    def chunk_finished(self, size: int) -> None:
        """One more chunk has been looked at, and so many bytes of it were read."""

    def healed(self, chunk: HealedChunk) -> None:
        """A chunk was put back, or would be."""

    def lost(self, chunk: LostChunk) -> None:
        """A chunk cannot be put back; it is not known yet which further snapshots that costs."""

    def damaged(self, file: DamagedFile) -> None:
        """A file of a snapshot is damaged."""

    def snapshot_finished(self, snapshot: SnapshotId) -> None:
        """All of a snapshot has been looked at."""


@dataclass(slots=True)
class _Loss:
    reason: str
    obstacle: str
    snapshots: list[SnapshotId]


class HealAccount:
    """What was found until now. For one thread at a time."""

    def __init__(self) -> None:
        self.snapshots = 0
        self.chunks = 0
        self.chunk_bytes = 0
        self.bytes_fetched = 0
        self.quarantine_ended = 0
        self._healed: list[HealedChunk] = []
        self._healed_count = 0
        self._lost = DigestSet()
        self._lost_count = 0
        self._losses: dict[bytes, _Loss] = {}
        self._costs: set[SnapshotId] = set()
        self._damaged_files: list[DamagedFile] = []
        self._damaged_files_left_out = 0

    def heal(self, digest: bytes, reason: str) -> HealedChunk:
        """Note a chunk that was put back."""
        chunk = HealedChunk(chunk_path(digest), reason)
        self._healed_count += 1
        if len(self._healed) < MOST_LISTED:
            self._healed.append(chunk)
        return chunk

    def lose(self, digest: bytes, reason: str, obstacle: str, snapshot: SnapshotId) -> LostChunk:
        """Note a chunk that stays damaged, and the first snapshot that it costs."""
        self._lost_count += 1
        self._lost.add(digest)
        if len(self._losses) < MOST_LISTED:
            self._losses[digest] = _Loss(reason, obstacle, [])
        self.cost(digest, snapshot)
        return LostChunk(chunk_path(digest), reason, obstacle, (snapshot,))

    def is_lost(self, digest: bytes) -> bool:
        """Whether a chunk was found to stay damaged."""
        return digest in self._lost

    def cost(self, digest: bytes, snapshot: SnapshotId) -> None:
        """Note one more snapshot that a lost chunk costs."""
        self._costs.add(snapshot)
        loss = self._losses.get(digest)
        if loss is not None and snapshot not in loss.snapshots and len(loss.snapshots) < _MOST_SNAPSHOTS_OF_A_CHUNK:
            loss.snapshots.append(snapshot)

    def damage(self, file: DamagedFile) -> None:
        """Note a damaged file."""
        if len(self._damaged_files) < MOST_LISTED:
            self._damaged_files.append(file)
        else:
            self._damaged_files_left_out += 1

    @property
    def costs(self) -> frozenset[SnapshotId]:
        """The snapshots that have lost a chunk."""
        return frozenset(self._costs)

    def as_report(self, forgotten: frozenset[SnapshotId]) -> HealReport:
        """All of it, sorted; `forgotten` snapshots have gone meanwhile, and with them what only they needed."""
        lost = []
        for digest, loss in sorted(self._losses.items()):
            snapshots = tuple(sorted(frozenset(loss.snapshots) - forgotten))
            if snapshots:
                lost.append(LostChunk(chunk_path(digest), loss.reason, loss.obstacle, snapshots))
        return HealReport(
            self.snapshots,
            self.chunks,
            self.chunk_bytes,
            tuple(sorted(self._healed, key=lambda chunk: chunk.path)),
            self._healed_count,
            self.bytes_fetched,
            self.quarantine_ended,
            tuple(lost),
            self._lost_count - (len(self._losses) - len(lost)),
            tuple(sorted(self._costs - forgotten)),
            tuple(sorted(self._damaged_files, key=lambda file: file.path)),
            self._damaged_files_left_out,
        )
