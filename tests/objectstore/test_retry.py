"""The law of backing off and the store's condition, on a clock of our own."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing

from mirrorfs.objectstore.errors import ObjectMissing, StoreReason, StoreUnavailable
from mirrorfs.objectstore.retry import Condition, Patience, Persistence
from tests.objectstore.conftest import LogWatcher

pytestmark = pytest.mark.trio

DOWN = "is not usable"
UP = "is usable again"


def unavailable(reason: StoreReason = StoreReason.UNREACHABLE, retry_after: float | None = None) -> StoreUnavailable:
    return StoreUnavailable("store a/b in bucket c", "Connection refused", reason, retry_after)


class Service:
    """An operation that fails for as long as it is told, and remembers when it was tried."""

    def __init__(self, reason: StoreReason = StoreReason.UNREACHABLE, retry_after: float | None = None) -> None:
        self.reason = reason
        self.retry_after = retry_after
        self.is_well = False
        self.tried_at: list[float] = []

    async def request(self) -> str:
        await trio.lowlevel.checkpoint()
        self.tried_at.append(trio.current_time())
        if not self.is_well:
            raise unavailable(self.reason, self.retry_after)
        return "done"

    async def recover_at(self, seconds: float) -> None:
        await trio.sleep_until(seconds)
        self.is_well = True


async def test_the_longest_wait_doubles_up_to_the_ceiling_and_never_overflows() -> None:
    patience = Patience(first=1.0, ceiling=60.0)
    assert [patience.longest_wait(failures) for failures in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert patience.longest_wait(10**9) == 60


async def test_waits_are_jittered_below_the_law_and_never_end(autojump_clock: trio.testing.MockClock) -> None:
    service = Service()
    patience = Patience(first=1.0, ceiling=60.0)
    persistence = Persistence(patience, Condition(), random.Random(7))
    async with trio.open_nursery() as nursery:
        start = trio.current_time()
        nursery.start_soon(service.recover_at, start + 24 * 3600.0)
        assert await persistence.repeat(service.request) == "done"
    waits = [later - earlier for earlier, later in zip(service.tried_at, service.tried_at[1:], strict=False)]
    assert all(wait <= patience.longest_wait(number) for number, wait in enumerate(waits, start=1))
    late = waits[10:]
    # Drawn evenly between nothing and the ceiling: neither one fixed wait, nor a hammering.
    assert 27 < sum(late) / len(late) < 33
    assert min(late) < 1
    assert max(late) > 59


async def test_an_outage_is_one_line_down_and_one_up_however_many_wait(
    autojump_clock: trio.testing.MockClock, log_watcher: LogWatcher
) -> None:
    service = Service()
    condition = Condition()
    persistence = Persistence(Patience(), condition)
    finished = 0

    async def one() -> None:
        nonlocal finished
        await persistence.repeat(service.request)
        finished += 1

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(one)
        nursery.start_soon(service.recover_at, trio.current_time() + 3600)
        await trio.sleep(1800)
        assert not condition.is_up
        assert condition.last_error is not None
        assert condition.last_error.reason is StoreReason.UNREACHABLE
    assert finished == 20
    assert condition.is_up
    assert (log_watcher.count(DOWN), log_watcher.count(UP), len(log_watcher.lines)) == (1, 1, 2)


async def test_one_success_wakes_all_who_wait(autojump_clock: trio.testing.MockClock) -> None:
    service = Service()
    persistence = Persistence(Patience(first=1000.0, ceiling=1000.0), Condition(), random.Random(1))
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(persistence.repeat, service.request)
        await trio.sleep(0.5)
        assert len(service.tried_at) == 10
        service.is_well = True
    # Without being woken, ten draws between 0 and 1000 s would lie far apart.
    assert len(set(service.tried_at[10:])) == 1


async def test_throttled_requests_do_not_all_come_back_at_once(autojump_clock: trio.testing.MockClock) -> None:
    service = Service(StoreReason.THROTTLED)
    persistence = Persistence(Patience(first=1000.0, ceiling=1000.0), Condition(), random.Random(1))
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(persistence.repeat, service.request)
        await trio.sleep(0.5)
        service.is_well = True
    assert len(set(service.tried_at[10:])) == 10


@pytest.mark.parametrize(("asked", "honoured"), [(30.0, 30.0), (7 * 24 * 3600.0, 60.0)])
async def test_the_time_that_a_store_asks_for_is_granted_up_to_the_ceiling(
    autojump_clock: trio.testing.MockClock, asked: float, honoured: float
) -> None:
    condition = Condition()
    service = Service(StoreReason.SERVER_ERROR, retry_after=asked)
    persistence = Persistence(Patience(first=1.0, ceiling=60.0), condition, random.Random(1))
    healthy = Service()
    healthy.is_well = True

    async def healthy_traffic() -> None:
        for _ in range(600):
            await trio.sleep(1.0)
            await persistence.repeat(healthy.request)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(persistence.repeat, service.request)
        await healthy_traffic()
        service.is_well = True
    waits = [later - earlier for earlier, later in zip(service.tried_at, service.tried_at[1:], strict=False)]
    assert min(waits) >= honoured
    assert max(waits) <= honoured + 60.0
    # Those who were sent away together do not come back together.
    assert len(set(waits)) > 1


async def test_an_hour_of_denial_is_two_lines_and_a_bounded_number_of_tries(
    autojump_clock: trio.testing.MockClock, log_watcher: LogWatcher
) -> None:
    service = Service(StoreReason.ACCESS_DENIED)
    condition = Condition()
    persistence = Persistence(Patience(), condition, random.Random(5))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(persistence.repeat, service.request)
        nursery.start_soon(service.recover_at, trio.current_time() + 3600)
        await trio.sleep(60)
        assert not condition.is_up
        assert condition.last_error is not None
        assert "ListBucket" in str(condition.last_error)
    assert condition.is_up
    assert (log_watcher.count(DOWN), log_watcher.count(UP), len(log_watcher.lines)) == (1, 1, 2)
    assert 60 < len(service.tried_at) < 250
    assert max(later - earlier for earlier, later in zip(service.tried_at, service.tried_at[1:], strict=False)) <= 60


@pytest.mark.parametrize("reason", [StoreReason.SERVER_ERROR, StoreReason.ACCESS_DENIED])
async def test_one_sick_request_among_healthy_ones_leaves_the_condition_alone(
    autojump_clock: trio.testing.MockClock, log_watcher: LogWatcher, reason: StoreReason
) -> None:
    sick, healthy = Service(reason), Service()
    healthy.is_well = True
    condition = Condition()
    persistence = Persistence(Patience(), condition, random.Random(3))

    async def healthy_traffic() -> None:
        for _ in range(6000):
            await trio.sleep(0.1)
            await persistence.repeat(healthy.request)
            assert condition.is_up

    async with trio.open_nursery() as nursery:
        nursery.start_soon(persistence.repeat, sick.request)
        await healthy_traffic()
        assert len(sick.tried_at) > 15
        sick.is_well = True
    assert (log_watcher.count(DOWN), log_watcher.count(UP)) == (0, 0)
    assert log_watcher.count("serves others") == 1
    assert log_watcher.count("Nothing fails alone") == 1


async def test_sick_requests_with_rare_traffic_beside_do_not_flap(
    autojump_clock: trio.testing.MockClock, log_watcher: LogWatcher
) -> None:
    sick, healthy = Service(StoreReason.UNREACHABLE), Service()
    healthy.is_well = True
    persistence = Persistence(Patience(), Condition(), random.Random(3))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(persistence.repeat, sick.request)
        for _ in range(100):
            await trio.sleep(600)
            await persistence.repeat(healthy.request)
        sick.is_well = True
    assert log_watcher.count(DOWN) == log_watcher.count(UP) <= 2


async def test_a_request_that_began_before_the_outage_does_not_end_it(
    autojump_clock: trio.testing.MockClock, log_watcher: LogWatcher
) -> None:
    condition = Condition()
    early, failing, later = condition.begin(), condition.begin(), condition.begin()
    condition.failed(failing, unavailable())
    condition.succeeded(early)
    assert not condition.is_up
    condition.begin_again(later)
    condition.succeeded(later)
    assert condition.is_up
    assert (log_watcher.count(DOWN), log_watcher.count(UP)) == (1, 1)


async def test_a_failure_that_began_in_an_outage_is_no_case_of_its_own_after_it(
    autojump_clock: trio.testing.MockClock, log_watcher: LogWatcher
) -> None:
    condition = Condition()
    late, other = condition.begin(), condition.begin()
    for _ in range(3):
        condition.failed(late, unavailable(StoreReason.ACCESS_DENIED))
        condition.begin_again(late)
    condition.begin_again(other)
    condition.succeeded(other)
    condition.failed(late, unavailable(StoreReason.ACCESS_DENIED))
    assert condition.is_up
    assert (log_watcher.count(DOWN), log_watcher.count(UP), len(log_watcher.lines)) == (1, 1, 2)


async def test_patience_with_a_total_ends_with_the_last_error(autojump_clock: trio.testing.MockClock) -> None:
    service = Service(StoreReason.BUCKET_MISSING)
    start = trio.current_time()
    with pytest.raises(StoreUnavailable) as caught:
        await Persistence(Patience(total=100.0), Condition()).repeat(service.request)
    assert caught.value.reason is StoreReason.BUCKET_MISSING
    assert trio.current_time() - start == pytest.approx(100.0)


async def test_a_total_of_nothing_fails_at_once(autojump_clock: trio.testing.MockClock) -> None:
    service = Service()
    with pytest.raises(StoreUnavailable):
        await Persistence(Patience(total=0.0), Condition()).repeat(service.request)
    assert len(service.tried_at) == 1


async def test_an_answer_is_an_answer_even_if_it_is_no(autojump_clock: trio.testing.MockClock) -> None:
    condition = Condition()
    condition.failed(condition.begin(), unavailable())
    assert not condition.is_up

    async def missing() -> None:
        await trio.lowlevel.checkpoint()
        raise ObjectMissing("read a from bucket c", "there is no such object")

    with pytest.raises(ObjectMissing):
        await Persistence(Patience(), condition).repeat(missing)
    assert condition.is_up


async def test_waiting_can_be_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    with trio.move_on_after(10) as scope:
        await Persistence(Patience(), Condition()).repeat(Service().request)
    assert scope.cancelled_caught
