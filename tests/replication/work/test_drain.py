"""From the journal to the workers: everything is read, and the position never passes what is not done."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from mirrorfs.journal.journal import JournalReader, JournalWriter, Position
from mirrorfs.replication.work.drain import Drain
from tests.replication.datastore import FIRST, MANIFEST, SECOND, chunk_path, content_key, digest_of, published
from tests.replication.world import World

pytestmark = pytest.mark.trio


def record(directory: Path, *paths: str, trimmed_to: int = 0) -> Position:
    """What a filesystem process leaves; the position is that of the last record."""
    journal = JournalWriter(str(directory))
    for path in paths:
        journal.append(path.encode())
    journal.trim(Position(journal.generation, trimmed_to))
    position = Position(journal.generation, journal.sequence)
    journal.close()
    return position


@asynccontextmanager
async def draining(world: World, directory: Path, saved: list[Position]) -> AsyncIterator[Drain]:
    journal = JournalReader(str(directory))
    async with world.running(reconciles=False, newest=journal.last_sequence) as running:
        mirror = running.mirror
        drain = Drain(journal, mirror.state, running.worklist, mirror)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain.intake)
            nursery.start_soon(drain.save_position, saved.append)
            yield drain
            nursery.cancel_scope.cancel()
    journal.close()


async def settle(drain: Drain) -> None:
    with trio.fail_after(20):
        await drain.reconcile()
        await drain.settled()


async def test_what_the_journal_says_is_done_and_the_position_follows(world: World, directory: Path) -> None:
    world.datastore.back_up(FIRST, ["a"])
    end = record(directory / "journal", chunk_path(digest_of("a")), ".lock", f"{FIRST}/{MANIFEST}", ".gc-status")
    saved: list[Position] = []
    async with draining(world, directory / "journal", saved) as drain:
        await settle(drain)
        world.check()
        while drain.position != end:
            await trio.testing.wait_all_tasks_blocked()
        assert saved[-1] == end
        assert saved == sorted(saved, key=lambda position: position.sequence)
    world.store.requests.clear()
    async with draining(world, directory / "journal", saved) as drain:
        assert drain.position == end
        await settle(drain)
    assert world.store.requests == []


async def test_the_position_waits_for_what_is_not_done(world: World, directory: Path) -> None:
    world.datastore.back_up(FIRST, ["a"])
    world.datastore.back_up(SECOND, ["b"])
    end = record(directory / "journal", ".lock", f"{FIRST}/{MANIFEST}", f"{SECOND}/{MANIFEST}")
    gate = world.store.gate("put", content_key(f"{FIRST}/{MANIFEST}"))
    saved: list[Position] = []
    async with draining(world, directory / "journal", saved) as drain:
        await gate.reached.wait()
        while SECOND not in published(world.store.objects):
            await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert drain.position == Position(end.generation, 1)
        with trio.move_on_after(0.05) as scope:
            await drain.reconcile()
            await drain.settled()
        assert scope.cancelled_caught
        gate.opened.set()
        await settle(drain)
        while drain.position != end:
            await trio.testing.wait_all_tasks_blocked()
    world.check()


async def test_nothing_is_settled_before_the_datastore_was_looked_at(world: World, directory: Path) -> None:
    record(directory / "journal", ".lock")
    async with draining(world, directory / "journal", []) as drain:
        assert not drain.reconciled
        with trio.move_on_after(0.05) as scope:
            await drain.settled()
        assert scope.cancelled_caught
        await settle(drain)
        assert drain.reconciled


async def test_a_journal_trimmed_for_a_state_that_is_lost_keeps_nobody_waiting(world: World, directory: Path) -> None:
    end = record(directory / "journal", ".lock", ".gc-status", trimmed_to=2)
    async with draining(world, directory / "journal", []) as drain:
        await settle(drain)
        while drain.position != end:
            await trio.testing.wait_all_tasks_blocked()


async def test_another_generation_is_read_from_its_beginning(world: World, directory: Path) -> None:
    record(directory / "old", *(f"vm/{number}/owner" for number in range(9)))
    async with draining(world, directory / "old", []) as drain:
        await settle(drain)
        while drain.position.sequence < 9:
            await trio.testing.wait_all_tasks_blocked()
    world.datastore.back_up(FIRST, ["a"])
    end = record(directory / "new", f"{FIRST}/{MANIFEST}")
    async with draining(world, directory / "new", []) as drain:
        while drain.position != end:
            await trio.testing.wait_all_tasks_blocked()
    assert published(world.store.objects) == {FIRST}


async def test_whoever_waits_waits_for_what_reconciling_finds_however_far_the_journal_has_grown(
    world: World, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(directory / "journal", *(f"vm/{number}/owner" for number in range(50)))
    world.datastore.back_up(FIRST, ["a"])
    gate = world.store.gate("put", content_key(f"{FIRST}/{MANIFEST}"))
    settled = trio.Event()
    async with draining(world, directory / "journal", []) as drain, trio.open_nursery() as nursery:

        async def wait() -> None:
            await drain.settled()
            settled.set()

        # Asked when the journal had one record; the other records have been read when reconciling finds something.
        with monkeypatch.context() as patch:
            patch.setattr(JournalReader, "last_sequence", lambda _: 1)
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked(0.05)
        await drain.reconcile()
        await gate.reached.wait()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not settled.is_set()
        gate.opened.set()
        with trio.fail_after(10):
            await settled.wait()
    world.check()
