"""Rates are kept, by any number of threads and processes together, and change at once."""

from __future__ import annotations

import heapq
import os
import subprocess
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirrorfs import interpreter
from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.throttle import Flow, Throttle
from mirrorfs.objectstore.url import StoreOptions
from tests.stores.seaweedfs import StoreServer

MIB = 1024.0**2
MINUTE = 60.0


class Scene:
    """Users of one throttle, each of whom takes a piece, and after `pause` seconds the next one, by a fake clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waited = 0.0
        self.throttles = [Throttle(clock=lambda: self.now, sleep=self._sleep)]

    def _sleep(self, seconds: float) -> None:
        self.waited += seconds

    def share(self) -> Throttle:
        """Have another process' view of it."""
        other = Throttle(os.dup(self.throttles[0].descriptor), clock=lambda: self.now, sleep=self._sleep)
        self.throttles.append(other)
        return other

    def run(self, seconds: float, users: int, size: int, pause: float, at: Callable[[float], None]) -> list[float]:
        """Return what was taken in each minute."""
        begin = self.now
        minutes = [0.0] * round(seconds / MINUTE)
        turns = [(begin, user) for user in range(users)]
        while turns[0][0] < begin + seconds:
            self.now, user = turns[0]
            at(self.now - begin)
            throttle = self.throttles[user % len(self.throttles)]
            piece = throttle.piece(Flow.UP, size)
            done = self.now + throttle.take(Flow.UP, piece) + pause
            if done < begin + seconds:
                minutes[int((done - begin) // MINUTE)] += piece
            heapq.heapreplace(turns, (done, user))
        return minutes


@settings(max_examples=20, deadline=None)
@given(
    rate=st.floats(64 * 1024, 1e9),
    users=st.integers(1, 64),
    processes=st.integers(1, 4),
    size=st.sampled_from([4096, 256 * 1024]),
)
def test_a_rate_is_kept_within_five_percent_over_a_minute(rate: float, users: int, processes: int, size: int) -> None:
    scene = Scene()
    for _ in range(processes - 1):
        scene.share()
    # Few enough pieces a second for a test.
    rate = min(rate, size * 16.0)
    scene.throttles[0].set_rate(Flow.UP, rate)
    first, *minutes = scene.run(3 * MINUTE, users, size, 0.0, lambda _: None)
    assert first <= rate * MINUTE * 1.05
    for amount in minutes:
        assert amount == pytest.approx(rate * MINUTE, rel=0.05)


def test_a_pause_is_made_up_for_by_a_second_at_most() -> None:
    scene = Scene()
    throttle = scene.throttles[0]
    throttle.set_rate(Flow.REQUESTS, 10.0)
    scene.now += 3600.0
    waits = [throttle.take(Flow.REQUESTS) for _ in range(31)]
    assert waits[:11] == pytest.approx([0.0] * 11, abs=1e-6)
    assert waits[30] == pytest.approx(2.0)


def test_another_rate_holds_at_once() -> None:
    scene = Scene()

    def change(at: float) -> None:
        if at >= MINUTE:
            scene.throttles[0].set_rate(Flow.UP, 2 * MIB)

    scene.throttles[0].set_rate(Flow.UP, 20 * MIB)
    before, after = scene.run(2 * MINUTE, 8, 256 * 1024, 0.0, change)
    assert before == pytest.approx(20 * MIB * MINUTE, rel=0.05)
    assert after == pytest.approx(2 * MIB * MINUTE, rel=0.05)


def test_without_a_rate_nothing_waits_and_each_flow_has_its_own() -> None:
    scene = Scene()
    throttle = scene.throttles[0]
    assert throttle.take(Flow.DOWN, 1e12) == throttle.take(Flow.DOWN, 1e12) == 0.0
    throttle.set_rate(Flow.UP, MIB)
    assert throttle.take(Flow.DOWN, 1e12) == 0.0
    assert throttle.piece(Flow.DOWN, 1 << 20) == 1 << 20
    assert throttle.set_rate(Flow.UP, None)
    assert not throttle.set_rate(Flow.UP, None)
    assert throttle.take(Flow.UP, 1e12) == throttle.take(Flow.UP, 1e12) == 0.0


def test_another_process_shares_it() -> None:
    throttle = Throttle()
    throttle.set_rate(Flow.UP, MIB)
    script = (
        "import sys\nfrom mirrorfs.objectstore.throttle import Flow, Throttle\n"
        f"throttle = Throttle(int(sys.argv[1]), sleep=lambda seconds: None)\nthrottle.take(Flow.UP, 600 * {MIB})\n"
    )
    subprocess.run(
        [*interpreter.command("x")[:2], "-c", script, str(throttle.descriptor)],
        pass_fds=[throttle.descriptor],
        check=True,
    )
    slept: list[float] = []
    other = Throttle(os.dup(throttle.descriptor), sleep=slept.append)
    assert other.take(Flow.UP, 1) == pytest.approx(600, abs=120)
    assert slept


def test_what_is_sent_and_read_and_each_request_is_counted(
    store: StoreServer, shared_bucket: str, prefix: str, credentials: None
) -> None:
    slept: list[float] = []
    throttle = Throttle(clock=lambda: 0.0, sleep=slept.append)
    client = S3Client(shared_bucket, StoreOptions(endpoint_url=store.endpoint_url), throttle=throttle)
    body = bytes(512 * 1024)
    for flow, rate in ((Flow.UP, 64 * 1024.0), (Flow.DOWN, 64 * 1024.0), (Flow.REQUESTS, 1.0)):
        throttle.set_rate(flow, rate)
    client.put_object(prefix, body, crc32c=None, md5=None)
    # Pieces of a quarter of a second wait for all those before them.
    assert sum(slept) == pytest.approx(sum(number / 4 for number in range(32)))
    slept.clear()
    assert len(client.get_object(prefix, len(body))) == len(body)
    assert max(slept) == pytest.approx(7.0, abs=1.0)
    slept.clear()
    for _ in range(3):
        client.look(prefix)
    assert slept == [pytest.approx(2.0), pytest.approx(3.0), pytest.approx(4.0)]
