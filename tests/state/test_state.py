"""The state: counted references, exact prefixes, and no mistaking of whose state it is."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mirrorfs.database.errors import DatabaseCorrupt, DatabaseError
from mirrorfs.journal.journal import Position
from mirrorfs.state.contents import ContentState
from mirrorfs.state.counting import PartialCount, ReferenceHolder
from mirrorfs.state.identity import ForeignState, Identity, check_identity
from mirrorfs.state.problems import Problem
from mirrorfs.state.snapshots import SnapshotPhase, SnapshotState
from mirrorfs.state.state import State, StateTransaction

FILES = {"drive.img.fidx": "00"}
DIGESTS = [sha256(bytes([number])).digest() for number in range(6)]
LONG_GROUP = "/".join(f"ns/{character * 100}" for character in "abcd") + "/vm/" + "g" * 120
DIRECTORIES = ["", "vm", "vm/1", "vm/10", "ns/a", "ns", "host", "v", LONG_GROUP, LONG_GROUP + "1"]
PATHS = [
    "vm/1",
    "vm/1/2026-01-01T00:00:00Z",
    "vm/10",
    "vm/10/2026-01-01T00:00:00Z",
    "vm/1.0",
    "vm/1-0",
    "vm/1/2026-01-01T00:00:00Z/index.json.blob",
    "ct/1",
    "ns/a",
    "ns/a/vm/1",
    "ns/ab/vm/1",
    LONG_GROUP,
    LONG_GROUP + "/2026-01-01T00:00:00Z",
    LONG_GROUP + "/2026-01-01T00:00:00Z/drive.img.fidx",
    LONG_GROUP + "1/2026-01-01T00:00:00Z",
    LONG_GROUP + "1",
]


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    state = State(str(tmp_path / "state"))
    yield state
    state.close()


def snapshot_state(phase: SnapshotPhase) -> SnapshotState:
    return SnapshotState(phase, FILES, time.time())


class ReferenceModel(RuleBasedStateMachine):
    """Reference counts against a Counter, whatever else happens to the chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp(prefix="mirrorfs-state-")
        self.state = State(self.directory)
        self.references: Counter[bytes] = Counter()
        self.held: list[tuple[str, frozenset[bytes]]] = []
        self.confirmed: dict[bytes, bool] = {}
        self.number = 0

    @rule(digests=st.frozensets(st.sampled_from(DIGESTS)))
    def commit(self, digests: frozenset[bytes]) -> None:
        self.number += 1
        path = f"vm/{self.number}"
        committed = snapshot_state(SnapshotPhase.COMMITTED)
        self.state.update(lambda transaction: transaction.commit_snapshot(path, committed, digests))
        self.held.append((path, digests))
        self.references.update(digests)
        for digest in digests:
            self.confirmed.setdefault(digest, False)

    @rule(digests=st.frozensets(st.sampled_from(DIGESTS), min_size=1), data=st.data())
    def commit_in_two_parts(self, digests: frozenset[bytes], data: st.DataObject) -> None:
        up_to = data.draw(st.sampled_from(sorted(digests)))
        path = f"vm/{self.number + 1}"
        holder, count = ReferenceHolder(path), PartialCount(FILES, up_to)
        counted = {digest for digest in digests if digest <= up_to}
        self.state.update(lambda transaction: transaction.counting.count(holder, count, counted))
        assert self.state.view(lambda transaction: transaction.counting.get(holder)) == count
        self.references.update(counted)
        for digest in counted:
            self.confirmed.setdefault(digest, False)
        self.agrees()
        self.commit(digests - counted)
        self.held[-1] = path, digests

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.held) - 1))
        path, digests = self.held.pop(index)
        part = frozenset(data.draw(st.sets(st.sampled_from(sorted(digests))))) if digests else digests
        for some, left in ((part, PartialCount(FILES, b"")), (digests - part, None)):
            found = self.state.update(
                lambda transaction, left=left, some=some: transaction.counting.give_back(  # type: ignore[misc]
                    ReferenceHolder(path), left, some
                )
            )
            self.references.subtract(some)
            assert found == sorted(digest for digest in some if self.references[digest] == 0)

    @invariant()
    def no_count_is_left(self) -> None:
        paths = [f"vm/{number}" for number in range(1, self.number + 1)]
        assert not self.state.view(
            lambda transaction: [path for path in paths if transaction.counting.get(ReferenceHolder(path))]
        )

    @rule(digest=st.sampled_from(DIGESTS), operation=st.sampled_from(["confirm", "doubt", "intend"]))
    def note(self, digest: bytes, operation: str) -> None:
        match operation:
            case "confirm":
                self.state.update(lambda transaction: transaction.chunks.confirm(digest, 100, 7))
                self.confirmed[digest] = True
            case "doubt":
                self.state.update(lambda transaction: transaction.chunks.doubt(digest))
                self.confirmed[digest] = False
            case "intend":
                self.state.update(lambda transaction: transaction.chunks.intend([digest]))
                self.confirmed.setdefault(digest, False)

    @invariant()
    def agrees(self) -> None:
        found = self.state.view(lambda transaction: {digest: transaction.chunks.get(digest) for digest in DIGESTS})
        for digest, chunk in found.items():
            assert (chunk.references if chunk is not None else 0) == self.references[digest]
            assert (chunk is not None) == (digest in self.confirmed)
            assert chunk is None or chunk.confirmed == self.confirmed[digest]
        unconfirmed = self.state.view(lambda transaction: transaction.chunks.unconfirmed(DIGESTS))
        assert unconfirmed == [digest for digest in DIGESTS if not self.confirmed.get(digest)]

    def teardown(self) -> None:
        self.state.close()
        shutil.rmtree(self.directory)


TestReferences = ReferenceModel.TestCase
TestReferences.settings = settings(
    max_examples=10, stateful_step_count=10, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_a_reference_that_was_never_counted_cannot_be_given_back(state: State) -> None:
    first, second = DIGESTS[:2]
    committed = snapshot_state(SnapshotPhase.COMMITTED)
    holder = ReferenceHolder("vm/1")
    state.update(lambda transaction: transaction.commit_snapshot("vm/1", committed, {first}))
    with pytest.raises(DatabaseCorrupt, match=second.hex()):
        state.update(
            lambda transaction: transaction.counting.give_back(holder, PartialCount(FILES, second), {first, second})
        )
    assert state.view(lambda transaction: transaction.counting.get(holder)) is None
    chunk = state.view(lambda transaction: transaction.chunks.get(first))
    assert chunk is not None
    assert chunk.references == 1
    assert state.view(lambda transaction: transaction.snapshots.get("vm/1")) == committed


def note_all_paths(transaction: StateTransaction) -> None:
    for path in PATHS:
        transaction.snapshots.set(path, snapshot_state(SnapshotPhase.PUBLISHED))
        transaction.contents.confirm(path, 5, 6)


def below(paths: list[str], directory: str) -> set[str]:
    return {path for path in paths if not directory or path == directory or path.startswith(directory + "/")}


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_what_lies_in_a_directory_is_found_exactly(state: State, directory: str) -> None:
    state.update(note_all_paths)
    contents = state.view(lambda transaction: [content.path for content in transaction.contents.below(directory)])
    snapshots = state.view(lambda transaction: [path for path, _ in transaction.snapshots.below(directory)])
    assert len(contents) == len(snapshots) == len(set(contents))
    assert set(contents) == set(snapshots) == below(PATHS, directory)


@pytest.mark.parametrize("path", PATHS)
def test_what_is_forgotten_is_gone_and_nothing_else(state: State, path: str) -> None:
    state.update(note_all_paths)
    state.update(lambda transaction: transaction.snapshots.forget(path))
    state.update(lambda transaction: transaction.contents.forget([path]))
    assert state.view(lambda transaction: transaction.snapshots.get(path)) is None
    assert state.view(lambda transaction: transaction.contents.get(path)) is None
    left = state.view(lambda transaction: list(transaction.contents.all()))
    assert set(left) == {ContentState(other, 5, 6, True) for other in PATHS if other != path}
    assert len(state.view(lambda transaction: list(transaction.snapshots.all()))) == len(PATHS) - 1


def test_an_intended_object_is_not_confirmed_any_more(state: State) -> None:
    state.update(lambda transaction: transaction.contents.confirm("vm/1/owner", 5, 6))
    state.update(lambda transaction: transaction.contents.intend(["vm/1/owner"]))
    assert state.view(lambda transaction: transaction.contents.get("vm/1/owner")) == ContentState(
        "vm/1/owner", 0, 0, False
    )


def test_chunks_of_a_directory(state: State) -> None:
    inside = [b"\x12\x34" + bytes([number]) * 30 for number in (0, 1, 255)]
    outside = [b"\x12\x33" + b"\xff" * 30, b"\x12\x35" + bytes(30), b"\xff\xff" + b"\xff" * 30, bytes(32)]
    state.update(lambda transaction: transaction.chunks.intend([*inside, *outside]))
    found = state.view(lambda transaction: [digest for digest, _ in transaction.chunks.in_directory(0x1234)])
    last = state.view(lambda transaction: [digest for digest, _ in transaction.chunks.in_directory(0xFFFF)])
    assert found == inside
    assert last == [outside[2]]
    assert state.view(lambda transaction: transaction.chunks.count()) == 7


def _set_problem(transaction: StateTransaction, problem: Problem) -> None:
    transaction.problems.set(problem)


def test_problems_and_foreign_names(state: State) -> None:
    names = ["vm/1", "a" * 2000, b"\xff\xfe/x".decode("utf-8", "surrogateescape")]
    for problem in [Problem(name, "why", 1.0) for name in names]:
        state.update(functools.partial(_set_problem, problem=problem))
    assert {problem.name for problem in state.view(lambda transaction: list(transaction.problems.all()))} == set(names)
    assert state.update(lambda transaction: transaction.problems.clear(names[2])) is True
    assert state.update(lambda transaction: transaction.problems.clear(names[2])) is False
    foreign = [b"lost+found", b"\xff\xfe", b"x" * 3000]
    state.update(lambda transaction: transaction.foreign.replace(foreign))
    state.update(lambda transaction: transaction.foreign.set(b"\xff\xfe", False))
    count, examples = state.view(lambda transaction: transaction.foreign.examples(1))
    assert (count, len(examples)) == (2, 1)
    assert set(state.view(lambda transaction: transaction.foreign.examples(9))[1]) == {b"lost+found", b"x" * 3000}
    state.update(lambda transaction: transaction.foreign.replace([]))
    assert state.view(lambda transaction: transaction.foreign.examples(9)) == (0, [])


def test_it_lasts(tmp_path: Path) -> None:
    identity = Identity("/mnt/datastore", "bucket", "name")
    state = State(str(tmp_path))
    assert state.view(lambda transaction: transaction.identity.get()) is None
    assert state.view(lambda transaction: transaction.progress.position()) is None
    assert not state.view(lambda transaction: transaction.progress.adopted())
    state.update(lambda transaction: transaction.identity.set(identity))
    state.update(lambda transaction: transaction.progress.set_position(Position("g", 5)))
    state.update(lambda transaction: transaction.progress.set_adopted())
    state.close()
    state = State(str(tmp_path), read_only=True)
    assert state.view(lambda transaction: transaction.identity.get()) == identity
    assert state.view(lambda transaction: transaction.progress.position()) == Position("g", 5)
    assert state.view(lambda transaction: transaction.progress.adopted())
    with pytest.raises(DatabaseError):
        state.update(lambda transaction: transaction.progress.set_adopted())
    state.close()


def test_whose_state_it_is() -> None:
    stored = Identity("/mnt/a", "bucket", "name", "mirror")
    assert check_identity(None, stored, "/state") is stored
    assert check_identity(stored, Identity("/mnt/a", "bucket", "name"), "/state") is stored
    with pytest.raises(ForeignState, match="the datastore /mnt/a, not to /mnt/b"):
        check_identity(stored, Identity("/mnt/b", "bucket", "name"), "/state")
    with pytest.raises(ForeignState, match="s3://bucket/name, not to s3://other/name"):
        check_identity(stored, Identity("/mnt/a", "other", "name"), "/state")
    with pytest.raises(ForeignState, match="s3://bucket/name, not to s3://bucket/other"):
        check_identity(stored, Identity("/mnt/a", "bucket", "other"), "/state")


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("damage", ["garbage", "header", "half"])
def test_a_damaged_state_is_refused_again_and_again(tmp_path: Path, damage: str, read_only: bool) -> None:
    state = State(str(tmp_path))
    state.update(lambda transaction: transaction.contents.intend(f"vm/{number}/owner" for number in range(2000)))
    state.close()
    data = tmp_path / "data.mdb"
    match damage:
        case "garbage":
            data.write_bytes(os.urandom(data.stat().st_size))
        case "header":
            os.truncate(data, 50)
        case "half":
            os.truncate(data, data.stat().st_size // 2 // 4096 * 4096)
    for _ in range(2):
        with pytest.raises(DatabaseCorrupt, match="damaged"):
            State(str(tmp_path), read_only=read_only)


def test_a_state_that_is_not_there_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="cannot open"):
        State(str(tmp_path / "nowhere"), read_only=True)
