"""The control socket: whatever a client does, or whatever an answer meets, the uploader goes on."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from mirrorfs.database.errors import DatabaseCorrupt
from mirrorfs.replication.control import Handler, Tell, serve_control
from mirrorfs.replication.questions import Answer, ask

pytestmark = pytest.mark.trio


@asynccontextmanager
async def serving(path: Path, handlers: Mapping[str, Handler]) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_control, str(path), handlers)
        with trio.fail_after(5):
            while not await trio.Path(path).exists():
                await trio.testing.wait_all_tasks_blocked()
            yield str(path)
        nursery.cancel_scope.cancel()


async def asked(path: str, command: str, timeout: float = 3) -> Answer:
    return await trio.to_thread.run_sync(ask, path, command, timeout)


async def fine() -> Answer:
    return {"well": True}


async def test_an_answer_that_fails_is_an_error_and_the_next_one_is_answered(directory: Path) -> None:
    async def unreadable() -> Answer:
        raise OSError(5, "Input/output error")

    async def unspeakable() -> Answer:
        return {"of no JSON": object()}

    handlers = {"status": unreadable, "wait": unspeakable, "fine": fine}
    async with serving(directory / "control", handlers) as path:
        assert "Input/output error" in (await asked(path, "status"))["error"]
        assert "could not answer" in (await asked(path, "wait"))["error"]
        assert await asked(path, "fine") == {"well": True}
        assert "unknown" in (await asked(path, "other"))["error"]


async def test_a_client_that_goes_away_ends_what_was_done_for_it(directory: Path) -> None:
    begun, ended = trio.Event(), trio.Event()

    async def wait() -> Answer:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()
        return {}

    async with serving(directory / "control", {"wait": wait, "fine": fine}) as path:
        client = await trio.open_unix_socket(path)
        await client.send_all(b'{"command": "wait"}\n{"command": "fine"}\n')
        await begun.wait()
        await client.aclose()
        await ended.wait()
        assert await asked(path, "fine") == {"well": True}


async def test_several_commands_on_one_connection_are_answered_in_order(directory: Path) -> None:
    async with serving(directory / "control", {"fine": fine}) as path:
        client = await trio.open_unix_socket(path)
        await client.send_all(b'{"command": "fine"}\nnonsense\n{"command": "fine"}\n')
        received = b""
        while received.count(b"\n") < 3:
            received += await client.receive_some()
        await client.aclose()
    assert [list(json.loads(line)) for line in received.splitlines()] == [["well"], ["error"], ["well"]]


@pytest.mark.parametrize("answer", [b"", b'{"well": tr', b'{"well": true}'])
async def test_an_answer_that_breaks_off_is_none(directory: Path, answer: bytes) -> None:
    path = str(directory / "control")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(path)
        listening.listen()

        def answer_half() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(answer)

        thread = threading.Thread(target=answer_half)
        thread.start()
        try:
            with pytest.raises(ConnectionResetError):
                await asked(path, "status")
        finally:
            thread.join(5)


async def test_what_is_told_comes_before_the_answer(directory: Path) -> None:
    async def count(request: Mapping[str, Any], tell: Tell) -> Answer:
        async with trio.open_nursery() as nursery:
            for number in range(request["to"]):
                nursery.start_soon(tell, {"number": number})
        return {"well": True}

    heard: list[Answer] = []

    def asked_to_count(path: str) -> Answer:
        return ask(path, "count", 5, arguments={"to": 100}, told=heard.append)

    async with trio.open_nursery() as nursery:
        path = str(directory / "control")
        nursery.start_soon(serve_control, path, {"fine": fine}, {"count": count})
        with trio.fail_after(10):
            while not await trio.Path(path).exists():
                await trio.testing.wait_all_tasks_blocked()
            assert await trio.to_thread.run_sync(asked_to_count, path) == {"well": True}
            assert await asked(path, "fine") == {"well": True}
        nursery.cancel_scope.cancel()
    assert sorted(told["number"] for told in heard) == list(range(100))


async def test_damage_of_the_state_ends_the_uploader_rather_than_an_answer(directory: Path) -> None:
    async def damaged() -> Answer:
        raise DatabaseCorrupt("the state is damaged", "/state")

    with pytest.RaisesGroup(DatabaseCorrupt, flatten_subgroups=True):
        async with serving(directory / "control", {"status": damaged}) as path:
            with pytest.raises(ConnectionResetError):
                await asked(path, "status")
            await trio.sleep_forever()
