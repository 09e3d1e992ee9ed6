"""Whether the bucket is still this mirror's is looked at before what counts, and on its own."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.objectstore.errors import StoreReason, StoreUnavailable
from mirrorfs.objectstore.retry import Condition
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.replication.ownership.claim import Claim, claim_prefix, parse_claim
from mirrorfs.replication.ownership.watch import OwnershipWatch
from mirrorfs.replication.work.bucket import Bucket
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.state.identity import Identity
from mirrorfs.state.state import State
from tests.replication.world import FakeStore, Killed, die_at

pytestmark = pytest.mark.trio

CLAIM, IN_USE = "name/.mirrorfs/claim.json", "name/.in-use"
_PATIENCE = 30.0
OWN = Identity("/mnt/datastore", "bucket", "name", "own")


@dataclass(slots=True)
class WatchedStore(FakeStore):
    """A dictionary with a condition, as ObjectStore has one."""

    condition: Condition = field(default_factory=Condition)

    @property
    def claim(self) -> Claim:
        return parse_claim(self.objects[CLAIM])

    def fall_and_recover(self) -> None:
        series = self.condition.begin()
        self.condition.failed(series, StoreUnavailable("ask", "it is down", StoreReason.SERVER_ERROR))
        for _ in range(3):
            self.condition.failed(series, StoreUnavailable("ask", "it is down", StoreReason.SERVER_ERROR))
        assert not self.condition.is_up
        self.condition.succeeded(self.condition.begin())
        assert self.condition.is_up


@dataclass(slots=True)
class Watched:
    """A claimed prefix, the watch over it, and what it has said."""

    bucket: Bucket
    store: WatchedStore
    state: CommittedState
    watch: OwnershipWatch
    lost: list[str]
    stale: list[str]

    async def begin(self) -> None:
        self.watch.begin(await claim_prefix(self.bucket, OWN, self.state, take_over=False))

    def used_by(self) -> str | None:
        return self.state.view(lambda transaction: transaction.identity.used_by())


async def is_passed(watched: Watched, work: Callable[[], Awaitable[None]]) -> bool:
    """Whether it returns; else something was said, and it waits to be cancelled."""
    passed = False

    async def do() -> None:
        nonlocal passed
        await work()
        passed = True
        nursery.cancel_scope.cancel()

    with trio.fail_after(_PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(do)
            await until(lambda: bool(watched.lost or watched.stale))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    return passed


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another task brings about."""
    with trio.fail_after(_PATIENCE):
        while not condition():  # noqa: ASYNC110 - it is a dictionary and lists that are looked at
            await trio.sleep(0.01)


def pace(monkeypatch: pytest.MonkeyPatch, *, look: float = 3600.0, renewal: float = 3600.0) -> None:
    """How often it looks, and how long one new epoch serves, in seconds."""
    monkeypatch.setattr("mirrorfs.replication.ownership.watch._LOOK_SECONDS", look)
    monkeypatch.setattr("mirrorfs.replication.ownership.watch._RENEWAL_SECONDS", renewal)
    monkeypatch.setattr("mirrorfs.replication.ownership.watch._REFUSED_PAUSE_SECONDS", 0.01)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[State]:
    """Closed after all tasks of a test, which may be about to write, have ended: that is when plain fixtures end."""
    state = State(str(tmp_path / "state"))
    yield state
    state.close()


@pytest.fixture
async def watched(opened: State, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    pace(monkeypatch)
    store = WatchedStore()
    bucket = Bucket(BucketLayout("name"), cast(ObjectStore, store))
    state = CommittedState(opened)
    nursery.start_soon(state.run)
    lost: list[str] = []
    stale: list[str] = []
    watch = OwnershipWatch(bucket, state, lost=lost.append, stale=stale.append)
    made = Watched(bucket, store, state, watch, lost, stale)
    await made.begin()
    yield made
    nursery.cancel_scope.cancel()


async def test_a_bucket_that_is_ours_is_confirmed_by_a_look_that_begins_after_the_question(watched: Watched) -> None:
    watched.store.requests.clear()
    assert await is_passed(watched, watched.watch.confirm)
    assert watched.store.keys_of("get") == [CLAIM, IN_USE]
    assert await is_passed(watched, watched.watch.confirm)
    assert watched.store.keys_of("get") == [CLAIM, IN_USE] * 2


async def test_those_who_ask_at_one_moment_share_a_look(watched: Watched) -> None:
    watched.store.requests.clear()
    gate = watched.store.gate("get", IN_USE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watched.watch.confirm)
        await gate.reached.wait()
        # The look that is under way may have passed what they are asking about.
        for _ in range(5):
            nursery.start_soon(watched.watch.confirm)
        await trio.testing.wait_all_tasks_blocked()
        gate.opened.set()
    assert watched.store.keys_of("get") == [CLAIM, IN_USE] * 2


async def test_a_new_epoch_is_put_before_a_removal_at_most_once_in_a_few_seconds(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = watched.store.claim
    assert await is_passed(watched, watched.watch.confirm_for_removal)
    second = watched.store.claim
    assert second == replace(first, epoch=second.epoch)
    assert second.epoch != first.epoch
    assert await is_passed(watched, watched.watch.confirm_for_removal)
    assert watched.store.claim == second
    pace(monkeypatch, renewal=0.0)
    assert await is_passed(watched, watched.watch.confirm_for_removal)
    assert watched.store.claim != second
    assert not watched.lost
    assert not watched.stale


async def test_what_no_epoch_came_before_gets_one_after_it(
    watched: Watched, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a state from between the two is known to be older, too."""
    await watched.watch.confirm_for_removal()
    await watched.watch.confirm_for_removal()
    epoch = watched.store.claim.epoch
    pace(monkeypatch, renewal=0.01)
    nursery.start_soon(watched.watch.keep_looking)
    await until(lambda: watched.store.claim.epoch != epoch)


async def test_what_was_published_gets_an_epoch_after_it_with_the_next_look(
    watched: Watched, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch = watched.store.claim.epoch
    await watched.watch.confirm()
    pace(monkeypatch, renewal=0.01, look=0.05)
    nursery.start_soon(watched.watch.keep_looking)
    await until(lambda: watched.store.claim.epoch != epoch)
    # And none without a reason.
    later, looks = watched.store.claim.epoch, len(watched.store.requests)
    await until(lambda: len(watched.store.requests) > looks + 5)
    assert watched.store.claim.epoch == later


async def test_a_state_from_before_a_removal_is_known_to_be_old_at_its_next_start(
    watched: Watched, tmp_path: Path, nursery: trio.Nursery
) -> None:
    chunk = bytes(32)
    epochs = watched.state.view(lambda transaction: transaction.identity.epochs())
    await watched.watch.confirm_for_removal()
    older = CommittedState(State(str(tmp_path / "older")))
    nursery.start_soon(older.run)
    await older.apply(lambda transaction: transaction.identity.set_epochs(epochs))
    await older.apply(lambda transaction: transaction.chunks.confirm(chunk, 1, 1))
    await claim_prefix(watched.bucket, OWN, older, take_over=False)
    assert older.view(lambda transaction: transaction.chunks.get(chunk)) is None
    older.close()


async def other_claim(watched: Watched, **changes: str) -> None:
    watched.store.objects[CLAIM] = replace(watched.store.claim, **changes).encode()


@pytest.mark.parametrize("question", ["confirm", "confirm_for_removal"])
async def test_a_take_over_is_noticed_before_anything_is_done(watched: Watched, question: str) -> None:
    await other_claim(watched, hostname="there", machine="other", mirror_id="other", epoch="other")
    before = dict(watched.store.objects)
    assert not await is_passed(watched, getattr(watched.watch, question))
    assert not await is_passed(watched, watched.watch.confirm)
    (said,) = watched.lost
    assert "/mnt/datastore on there" in said
    assert "--take-over" in said
    assert watched.store.objects == before
    assert not watched.watch.has_looked_since(0.0)


async def test_a_copy_of_this_machine_that_writes_too_is_noticed(watched: Watched) -> None:
    await other_claim(watched, epoch="its own")
    assert not await is_passed(watched, watched.watch.confirm)
    (said,) = watched.lost
    assert "is a copy of this machine running?" in said


async def test_a_server_that_moves_in_is_noticed_and_noted_for_the_next_start(watched: Watched) -> None:
    watched.store.objects[IN_USE] = json.dumps({"hostname": "pbs1"}).encode()
    assert not await is_passed(watched, watched.watch.confirm)
    (said,) = watched.lost
    assert "in use by pbs1 now" in said
    assert watched.used_by() == "pbs1"


async def test_a_server_that_was_there_and_has_left_has_the_state_made_anew(watched: Watched) -> None:
    del watched.store.objects[IN_USE]
    assert not await is_passed(watched, watched.watch.confirm)
    assert not watched.lost
    (said,) = watched.stale
    assert ".in-use is gone" in said
    assert watched.used_by() is not None
    await watched.begin()
    assert watched.state.view(lambda transaction: transaction.identity.has_strangers())


async def test_a_bucket_that_was_emptied_has_the_state_made_anew(watched: Watched) -> None:
    watched.store.objects.clear()
    assert not await is_passed(watched, watched.watch.confirm)
    assert "the claim is gone" in watched.stale[0]


async def test_a_claim_of_ours_that_the_store_brings_late_is_no_copy_of_this_machine(watched: Watched) -> None:
    """An uploader was killed while its PUT was under way, and the store carries it out after the next one's."""
    late = watched.store.objects[CLAIM]
    await watched.begin()
    watched.store.objects[CLAIM] = late
    assert not await is_passed(watched, watched.watch.confirm)
    assert not watched.lost
    assert "an earlier claim of this mirror" in watched.stale[0]


async def test_a_crash_around_a_renewal_is_no_take_over(watched: Watched) -> None:
    before = dict(watched.store.objects)
    epochs = watched.state.view(lambda transaction: transaction.identity.epochs())
    await watched.watch.confirm_for_removal()
    coming = replace(epochs, coming=watched.store.claim.epoch)
    for objects in (before, dict(watched.store.objects)):
        await watched.state.apply(lambda transaction: transaction.identity.set_epochs(coming))
        watched.store.objects = dict(objects)
        await watched.state.apply(lambda transaction: transaction.chunks.confirm(bytes(32), 1, 1))
        await watched.begin()
        assert watched.state.view(lambda transaction: transaction.chunks.get(bytes(32))) is not None


async def test_evidence_has_the_bucket_compared(watched: Watched) -> None:
    assert not await is_passed(watched, lambda: watched.watch.doubt("a chunk is not there"))
    assert watched.stale == ["a chunk is not there: the bucket is compared with what is known of it"]
    assert watched.state.view(lambda transaction: transaction.progress.inspecting())
    assert not await is_passed(watched, watched.watch.confirm)


async def test_killed_when_evidence_was_noted_the_next_start_compares(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        die_at(patch, "watch.doubted", 1)
        with pytest.raises(Killed):
            await watched.watch.doubt("a chunk is not there")
    assert not watched.stale
    assert watched.state.view(lambda transaction: transaction.progress.inspecting())


async def test_killed_when_a_use_was_noted_the_next_start_knows(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    del watched.store.objects[IN_USE]
    with monkeypatch.context() as patch:
        die_at(patch, "watch.use-recorded", 1)
        with pytest.raises(Killed):
            await watched.watch.confirm()
    assert not watched.stale
    await watched.begin()
    assert watched.state.view(lambda transaction: transaction.identity.has_strangers())


async def test_it_looks_by_itself_once_a_minute(
    watched: Watched, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    pace(monkeypatch, renewal=0.01, look=0.05)
    nursery.start_soon(watched.watch.keep_looking)
    await other_claim(watched, epoch="its own")
    await until(lambda: len(watched.lost) == 1)


async def test_it_looks_by_itself_after_an_outage(watched: Watched, nursery: trio.Nursery) -> None:
    nursery.start_soon(watched.watch.keep_looking)
    await trio.testing.wait_all_tasks_blocked()
    await other_claim(watched, epoch="its own")
    watched.store.fall_and_recover()
    await until(lambda: len(watched.lost) == 1)


async def test_what_cannot_be_read_is_no_answer(watched: Watched, nursery: trio.Nursery) -> None:
    """A captive portal, a proxy: whose the bucket is, is not known, and nothing is done until it is."""
    claim = watched.store.objects[CLAIM]
    watched.store.objects[CLAIM] = b"<html>please log in</html>"
    watched.store.requests.clear()
    passed = trio.Event()

    async def ask() -> None:
        await watched.watch.confirm()
        passed.set()

    nursery.start_soon(ask)
    await until(lambda: len(watched.store.requests) > 5)
    assert not passed.is_set()
    watched.store.objects[CLAIM] = claim
    with trio.fail_after(_PATIENCE):
        await passed.wait()
    assert not watched.lost
    assert not watched.stale


async def test_a_renewal_never_takes_the_place_of_a_claim_that_came_meanwhile(
    watched: Watched, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    pace(monkeypatch, renewal=0.0)
    gate = watched.store.gate("put", CLAIM)
    nursery.start_soon(watched.watch.confirm_for_removal)
    with trio.fail_after(_PATIENCE):
        await gate.reached.wait()
    other = replace(watched.store.claim, hostname="there", epoch="other").encode()
    watched.store.objects[CLAIM] = other
    gate.opened.set()
    await until(lambda: bool(watched.lost))
    assert "taken over" in watched.lost[0]
    assert watched.store.objects[CLAIM] == other
