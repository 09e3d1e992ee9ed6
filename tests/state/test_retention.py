"""The state's records about leaving the bucket: what goes in comes out, and counts are of what they say."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mirrorfs.database.errors import DatabaseCorrupt
from mirrorfs.state.retention import DeletedPhase, DeletedSnapshot, HeldRemoval, Refusal
from mirrorfs.state.snapshots import SnapshotPhase, SnapshotState
from mirrorfs.state.state import State, StateTransaction

SNAPSHOT = "vm/100/2026-01-01T00:00:00Z"
LONG = "/".join(f"ns/{character * 100}" for character in "abcd") + f"/vm/{'g' * 120}/2026-01-01T00:00:00Z"
DIGESTS = [sha256(bytes([number])).digest() for number in range(4)]


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    opened = State(str(tmp_path / "state"))
    yield opened
    opened.close()


@pytest.mark.parametrize("path", [SNAPSHOT, LONG])
@pytest.mark.parametrize("phase", DeletedPhase)
def test_a_deleted_snapshot(state: State, path: str, phase: DeletedPhase) -> None:
    deleted = DeletedSnapshot(path, {"a.fidx": "00"}, ("a.fidx", "index.json.blob"), phase, 1.5, 2.5)
    state.update(lambda transaction: transaction.retention.set_deleted(deleted))
    assert state.view(lambda transaction: transaction.retention.deleted(path)) == deleted
    assert state.view(lambda transaction: list(transaction.retention.all_deleted())) == [deleted]
    state.update(lambda transaction: transaction.retention.forget_deleted(path))
    assert state.view(lambda transaction: list(transaction.retention.all_deleted())) == []


def test_held_removals(state: State) -> None:
    removals = [HeldRemoval(SNAPSHOT, 1.0, False), HeldRemoval(LONG, 2.0, True)]
    for removal in removals:
        state.update(lambda transaction, removal=removal: transaction.retention.set_held(removal))  # type: ignore[misc]
    assert sorted(state.view(lambda transaction: list(transaction.retention.all_held())), key=str) == sorted(
        removals, key=str
    )
    state.update(lambda transaction: transaction.retention.forget_held(LONG))
    assert state.view(lambda transaction: transaction.retention.held(LONG)) is None
    assert state.view(lambda transaction: transaction.retention.held(SNAPSHOT)) == removals[0]


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 9)), max_size=12), st.integers(0, 300))
def test_removals_of_a_day_are_counted(
    tmp_path_factory: pytest.TempPathFactory, waves: list[tuple[int, int]], day: int
) -> None:
    state = State(str(tmp_path_factory.mktemp("removals")))
    try:
        now = 0
        noted: list[tuple[int, int]] = []
        for pause, count in waves:
            now += pause
            noted.append((now, count))
            state.update(
                lambda transaction, now=now, count=count: transaction.retention.note_removals(now, count, now - day)  # type: ignore[misc]
            )
        counted = state.view(lambda transaction: transaction.retention.removals_since(now - day))
        assert counted == sum(count for at, count in noted if at > now - day)
    finally:
        state.close()


def test_refusals(state: State) -> None:
    refusals = [Refusal("p/.chunks/a", "locked", 5.0), Refusal("p/.chunks/b", "locked", 6.0)]

    def refuse(transaction: StateTransaction) -> None:
        for refusal in refusals:
            transaction.retention.set_refused(refusal.key, refusal.reason, refusal.retry_at)

    state.update(refuse)
    assert state.view(lambda transaction: transaction.retention.refusals(1)) == (2, refusals[:1])
    state.update(lambda transaction: transaction.retention.clear_refused(["p/.chunks/a", "p/.chunks/unknown"]))
    assert state.view(lambda transaction: transaction.retention.refusals(9)) == (1, refusals[1:])
    assert state.view(lambda transaction: transaction.retention.refused("p/.chunks/b")) == refusals[1]


def _locked_before(state: State, moment: float) -> list[bytes]:
    return state.view(
        lambda transaction: [digest for digest in DIGESTS if transaction.locks.chunk_locked_until(digest) < moment]
    )


def test_a_lock_is_known_until_the_object_changes_or_goes(state: State) -> None:
    published = SnapshotState(SnapshotPhase.PUBLISHED, {}, 0.0)

    def lock(transaction: StateTransaction) -> None:
        transaction.commit_snapshot(SNAPSHOT, published, DIGESTS)
        transaction.locks.set_snapshot_locked(SNAPSHOT, 100.0)
        transaction.locks.set_chunks_locked(DIGESTS, 100.0)

    state.update(lock)
    assert _locked_before(state, 100.0) == []
    state.update(lambda transaction: transaction.chunks.doubt(DIGESTS[0]))
    state.update(lambda transaction: transaction.chunks.forget(DIGESTS[1]))
    assert _locked_before(state, 100.0) == DIGESTS[:2]
    assert state.view(lambda transaction: transaction.locks.snapshot_locked_until(SNAPSHOT)) == 100.0
    state.update(lambda transaction: transaction.commit_snapshot(SNAPSHOT, published, DIGESTS[2:]))
    assert state.view(lambda transaction: transaction.locks.snapshot_locked_until(SNAPSHOT)) == 0.0


def test_quarantined_chunks_tell_whether_the_bucket_has_a_copy(state: State) -> None:
    def quarantine(transaction: StateTransaction) -> None:
        transaction.chunks.confirm(DIGESTS[0], 10, 1)
        transaction.quarantine.set_since(DIGESTS[0], 5.0)
        transaction.quarantine.set_since(DIGESTS[1], 6.0)

    state.update(quarantine)
    count, examples = state.view(lambda transaction: transaction.quarantine.examples(10))
    assert count == 2
    assert {(chunk.digest, chunk.since, chunk.has_good_copy) for chunk in examples} == {
        (DIGESTS[0], 5.0, True),
        (DIGESTS[1], 6.0, False),
    }
    number = int.from_bytes(DIGESTS[0][:2], "big")
    assert state.view(lambda transaction: transaction.quarantine.in_directory(number)) == {DIGESTS[0]}
    state.update(lambda transaction: transaction.quarantine.set_since(DIGESTS[0], None))
    assert state.view(lambda transaction: transaction.quarantine.since(DIGESTS[0])) is None


def test_a_snapshot_with_the_same_files_is_found(state: State) -> None:
    files = {"a.fidx": "00", "b.blob": "11"}
    for path in (SNAPSHOT, LONG):
        state.update(
            lambda transaction, path=path: transaction.snapshots.set(  # type: ignore[misc]
                path, SnapshotState(SnapshotPhase.COMMITTED, files, 0.0)
            )
        )
    assert state.view(lambda transaction: transaction.snapshots.with_files(dict(reversed(files.items())))) == LONG
    assert state.view(lambda transaction: transaction.snapshots.with_files({"a.fidx": "01"})) is None
    state.update(lambda transaction: transaction.snapshots.forget(SNAPSHOT))
    assert state.view(lambda transaction: transaction.snapshots.with_files(files)) == LONG
    state.update(lambda transaction: transaction.snapshots.forget(LONG))
    assert state.view(lambda transaction: transaction.snapshots.with_files(files)) is None


def test_nothing_of_another_bucket_is_kept(state: State) -> None:
    def fill(transaction: StateTransaction) -> None:
        transaction.retention.set_deleted(DeletedSnapshot(SNAPSHOT, {}, (), DeletedPhase.KEPT, 0.0, 0.0))
        transaction.retention.set_held(HeldRemoval(SNAPSHOT, 0.0, False))
        transaction.retention.set_refused("key", "locked", 0.0)
        transaction.forget_bucket()

    state.update(fill)
    assert state.view(lambda transaction: list(transaction.retention.all_deleted())) == []
    assert state.view(lambda transaction: list(transaction.retention.all_held())) == []
    assert state.view(lambda transaction: transaction.retention.refusals(1)) == (0, [])


def test_a_damaged_entry_is_said_to_be_one(state: State) -> None:
    def damage(transaction: StateTransaction) -> None:
        deleted = DeletedSnapshot(SNAPSHOT, {}, (), DeletedPhase.KEPT, 0.0, 0.0)
        transaction.retention.set_deleted(deleted)
        # Reached into on purpose: nothing writes such an entry.
        transaction._transaction.put(SNAPSHOT.encode(), b'{"path": 1}', db=transaction._databases[b"deleted"])

    state.update(damage)
    with pytest.raises(DatabaseCorrupt):
        state.view(lambda transaction: transaction.retention.deleted(SNAPSHOT))
