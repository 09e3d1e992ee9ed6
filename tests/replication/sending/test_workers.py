"""What the uploader knows of a worker, without the worker."""

from __future__ import annotations

import socket

import trio
import trio.testing

from mirrorfs.objectstore.capabilities import StoreCapabilities
from mirrorfs.replication.sending.attempt import NOT_BEGUN
from mirrorfs.replication.sending.messages import encode_attempts
from mirrorfs.replication.sending.workers import WorkerHand, read_line

_CAPABILITIES = StoreCapabilities(True, True, True, True, True)


def test_chunks_that_a_worker_does_not_get_sent_are_told() -> None:
    clock = trio.testing.MockClock()

    async def test() -> None:
        ours, its = (trio.SocketStream(trio.socket.from_stdlib_socket(one)) for one in socket.socketpair())
        hand = WorkerHand(lambda: None)
        hand.connect(ours)
        assert hand.seconds_without_answer == 0
        async with its, ours, trio.open_nursery() as nursery:
            nursery.start_soon(hand.send, [b"a" * 32], _CAPABILITIES)
            await read_line(its)
            clock.jump(40)
            assert hand.seconds_without_answer == 40
            await its.send_all(encode_attempts([NOT_BEGUN]))
            await hand.rest()
            assert hand.seconds_without_answer == 0

    trio.run(test, clock=clock)


def test_a_hand_that_is_lost_twice_is_there_again_with_the_next_worker() -> None:
    """Whoever was sending finds first that its worker is gone, and whoever waits for its end once more."""

    async def test() -> None:
        hand = WorkerHand(lambda: None)
        ours, its = (trio.SocketStream(trio.socket.from_stdlib_socket(one)) for one in socket.socketpair())
        async with its, ours, trio.open_nursery() as nursery:
            hand.connect(ours)
            hand.disconnect()
            nursery.start_soon(hand.ready)
            await trio.testing.wait_all_tasks_blocked()
            hand.disconnect()
            hand.connect(ours)
            await trio.testing.wait_all_tasks_blocked()
            assert not nursery.child_tasks
            nursery.cancel_scope.cancel()

    trio.run(test)
