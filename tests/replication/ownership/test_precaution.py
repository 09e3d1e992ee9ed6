"""A mirror does not follow a datastore that was lost, only one that was pruned."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from mirrorfs.datastore.tree import Tree
from mirrorfs.journal.journal import JournalReader, JournalWriter, Position
from mirrorfs.replication.ownership.precaution import Datastore, doubt_about, gone_snapshots, missed_snapshots
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.state.retention import HeldFor, HeldRemoval
from mirrorfs.state.snapshots import SnapshotPhase, SnapshotState
from mirrorfs.state.state import State, StateTransaction

Answer = TypeVar("Answer")
PATHS = [f"vm/{number}/2026-01-01T00:00:00Z" for number in range(5)]


class Situation:
    """A datastore with five snapshots, a state that knows them as published, and a journal."""

    def __init__(self, base: Path) -> None:
        self.root = base / "datastore"
        for path in PATHS:
            (self.root / path).mkdir(parents=True)
            (self.root / path / "index.json.blob").touch()
        (self.root / ".chunks").mkdir()
        self.state = State(str(base / "state"))
        self.journal = JournalWriter(str(base / "journal"))
        self.is_asked = False
        self.state.update(_publish_all)

    def remove(self, *paths: str) -> None:
        for path in paths:
            shutil.rmtree(self.root / path)

    def doubt(self, *, mounted_at: int = 0) -> str | None:
        return self._ask(doubt_about, mounted_at)

    def missed(self, *, mounted_at: int = 0) -> list[str]:
        found = self._ask(missed_snapshots, mounted_at)
        return [snapshot.path for snapshot in found]

    def gone(self) -> list[str]:
        return [snapshot.path for snapshot in self._ask(gone_snapshots, 0)]

    def _ask(self, question: Callable[[Datastore, CommittedState], Answer], mounted_at: int) -> Answer:
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        # LMDB opens an environment once in a process; the uploader is another one.
        if not self.is_asked:
            self.journal.close()
            self.is_asked = True
        reader = JournalReader(self.journal.directory)
        try:
            datastore = Datastore("/mnt/datastore", Tree(descriptor), reader, mounted_at)
            return question(datastore, CommittedState(self.state))
        finally:
            reader.close()
            os.close(descriptor)


def _publish_all(transaction: StateTransaction) -> None:
    for path in PATHS:
        transaction.snapshots.set(path, SnapshotState(SnapshotPhase.PUBLISHED, {}, time.time()))


def _forget_all(transaction: StateTransaction) -> None:
    for path in PATHS:
        transaction.snapshots.forget(path)


@pytest.fixture
def situation(tmp_path: Path) -> Iterator[Situation]:
    made = Situation(tmp_path)
    yield made
    made.state.close()


def test_a_datastore_that_has_all_its_snapshots_is_followed(situation: Situation) -> None:
    assert situation.doubt() is None


def test_a_few_removed_while_nobody_watched_are_followed(situation: Situation) -> None:
    situation.remove(*PATHS[:2])
    assert situation.doubt() is None


def test_most_removed_while_nobody_watched_are_doubted(situation: Situation) -> None:
    situation.remove(*PATHS[:3])
    assert "3 of the 5 snapshots" in (situation.doubt() or "")


def test_a_new_datastore_in_the_place_of_a_lost_one_is_doubted(situation: Situation) -> None:
    situation.remove(*PATHS)
    assert "5 of the 5 snapshots" in (situation.doubt() or "")


def test_a_disk_that_is_not_mounted_is_doubted(situation: Situation) -> None:
    shutil.rmtree(situation.root)
    situation.root.mkdir()
    assert "is its disk mounted?" in (situation.doubt() or "")


def test_a_mirror_that_holds_nothing_follows_an_empty_directory(situation: Situation) -> None:
    shutil.rmtree(situation.root)
    situation.root.mkdir()
    situation.state.update(_forget_all)
    assert situation.doubt() is None


@pytest.mark.parametrize("seen", ["snapshot", "manifest", "group", "type"])
def test_what_the_journal_saw_going_went_on_purpose(situation: Situation, seen: str) -> None:
    shutil.rmtree(situation.root / "vm")
    for path in PATHS:
        record = {
            "snapshot": path,
            "manifest": f"{path}/index.json.blob",
            "group": path.rsplit("/", 1)[0],
            "type": path.split("/", 1)[0],
        }[seen]
        situation.journal.append(record.encode())
    assert situation.doubt() is None


def test_directories_that_were_made_explain_nothing(situation: Situation) -> None:
    shutil.rmtree(situation.root / "vm")
    (situation.root / "vm/0").mkdir(parents=True)
    for made in ("vm", "vm/0"):
        situation.journal.append(made.encode())
    assert "5 of the 5 snapshots" in (situation.doubt() or "")


def test_records_that_are_dealt_with_explain_nothing(situation: Situation) -> None:
    for path in PATHS:
        situation.journal.append(path.encode())
    done = Position(situation.journal.generation, situation.journal.sequence)
    situation.state.update(lambda transaction: transaction.progress.set_position(done))
    situation.remove(*PATHS)
    assert situation.doubt() is not None


def test_what_went_and_is_told_by_the_journal_is_not_missed(situation: Situation) -> None:
    situation.remove(*PATHS[:2])
    situation.journal.append(PATHS[0].encode())
    assert situation.missed() == [PATHS[1]]


def test_the_record_of_a_coming_in_an_earlier_mount_explains_no_going(situation: Situation) -> None:
    """Made, published, and gone with the disk that was put back before its record was dealt with."""
    came = situation.journal.append(f"{PATHS[0]}/index.json.blob".encode())
    situation.state.update(_publish_all)
    situation.remove(PATHS[0])
    assert situation.missed(mounted_at=came) == [PATHS[0]]
    # While this mount watches, nothing goes behind its back.
    assert situation.missed(mounted_at=came - 1) == []


def test_a_going_in_an_earlier_mount_is_explained_by_a_record_younger_than_the_snapshot(situation: Situation) -> None:
    situation.remove(PATHS[0])
    went = situation.journal.append(f"{PATHS[0]}/index.json.blob".encode())
    assert situation.missed(mounted_at=went) == []


def test_what_is_held_or_approved_is_not_missed_again(situation: Situation) -> None:
    situation.remove(*PATHS[:2])
    situation.state.update(_hold_one_and_approve_another)
    assert situation.missed() == []


def test_what_is_gone_is_told_however_it_went(situation: Situation) -> None:
    situation.state.update(_hold_one_and_approve_another)
    situation.journal.append(f"{PATHS[2]}/index.json.blob".encode())
    situation.remove(*PATHS[:4])
    assert situation.gone() == PATHS[:4]


def _hold_one_and_approve_another(transaction: StateTransaction) -> None:
    transaction.retention.set_held(HeldRemoval(PATHS[0], 0.0, approved=False, reason=HeldFor.UNSEEN))
    transaction.retention.set_held(HeldRemoval(PATHS[1], 0.0, approved=True))


def test_what_somebody_else_may_have_made_tells_nothing_about_the_datastore(situation: Situation) -> None:
    situation.remove(*PATHS[:4])
    assert situation.doubt() is not None
    situation.state.update(_find_all_but_the_last)
    situation.state.update(lambda transaction: transaction.identity.set_strangers(True))
    assert situation.doubt() is None


def _find_all_but_the_last(transaction: StateTransaction) -> None:
    for path in PATHS[:4]:
        transaction.snapshots.set(path, SnapshotState(SnapshotPhase.ADOPTED, {}, time.time()))
