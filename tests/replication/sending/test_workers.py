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
