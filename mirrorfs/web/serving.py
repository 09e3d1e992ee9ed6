"""Sockets and HTTP/1.1: one request a connection, so many at a time, so long and so large at most."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from http import HTTPStatus

import h11
import trio

from mirrorfs.web.gate import is_loopback
from mirrorfs.web.overview import Overview
from mirrorfs.web.pages import SECURITY_HEADERS, Answer, Pages, Request, sentence

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 64
LONGEST_HEAD = 16 * 1024
_READ_SIZE = 4096
_ASK_SECONDS = 10.0
_ANSWER_SECONDS = 40.0
_SEND_SECONDS = 30.0
# So much, so long is read of what nobody has asked for: else the kernel throws our answer away with it.
_DRAINED = 256 * 1024
_DRAIN_SECONDS = 1.0

Listeners = list[trio.SocketListener]


async def listen(address: str, port: int) -> Listeners:
    """Listen on all that a name or an address stands for. Raises OSError."""
    return await trio.open_tcp_listeners(port, host=address)


def are_local(listeners: Listeners) -> bool:
    """Tell whether nobody but this machine reaches them."""
    return all(is_loopback(listener.socket.getsockname()[0]) for listener in listeners)


async def serve(listeners: Listeners, overview: Overview, pages: Pages, tell: Callable[[], None]) -> None:
    """Serve the page until SIGINT or SIGTERM. `tell` is called when these end it in good order."""
    slots = trio.CapacityLimiter(MOST_CONNECTIONS)

    async def converse(stream: trio.SocketStream) -> None:
        try:
            async with stream:
                if slots.available_tokens < 1:
                    await _refuse_another(stream)
                    return
                async with slots:
                    await _converse(stream, pages)
        except trio.BrokenResourceError:
            # Whoever has asked is gone.
            log.debug("a connection was ended by the other side")
        except Exception:
            # Whatever is wrong with one answer must not take the page from the others.
            log.exception("a request could not be answered")

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        tell()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(overview.sample)
            nursery.start_soon(partial(trio.serve_listeners, converse, listeners, handler_nursery=nursery))
            await anext(signals)
            nursery.cancel_scope.cancel()


async def _refuse_another(stream: trio.SocketStream) -> None:
    answer = sentence(HTTPStatus.SERVICE_UNAVAILABLE, "Too many others look at this page now: try again.")
    with trio.move_on_after(_DRAIN_SECONDS):
        await _send(stream, h11.Connection(h11.SERVER), answer)


async def _converse(stream: trio.SocketStream, pages: Pages) -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=LONGEST_HEAD)
    answer = await _answer_to(stream, connection, pages)
    if answer is None:
        return
    with trio.move_on_after(_SEND_SECONDS):
        await _send(stream, connection, answer)
    with trio.move_on_after(_DRAIN_SECONDS):
        await stream.send_eof()
        drained = 0
        while drained < _DRAINED and (data := await stream.receive_some(_READ_SIZE)):
            drained += len(data)


async def _answer_to(stream: trio.SocketStream, connection: h11.Connection, pages: Pages) -> Answer | None:
    """Return the answer to what comes in; None if nothing does."""
    try:
        with trio.fail_after(_ASK_SECONDS):
            request = await _request(stream, connection)
    except trio.TooSlowError:
        return sentence(HTTPStatus.REQUEST_TIMEOUT, f"No whole request came within {_ASK_SECONDS:g} s.")
    except h11.RemoteProtocolError as error:
        if error.error_status_hint == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            text = f"A request has at most {LONGEST_HEAD} bytes here."
            return sentence(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text)
        return sentence(HTTPStatus.BAD_REQUEST, "This is no request of HTTP/1.1.")
    if request is None:
        return None
    try:
        with trio.fail_after(_ANSWER_SECONDS):
            answer = await pages.answer(request)
    except trio.TooSlowError:
        answer = sentence(HTTPStatus.SERVICE_UNAVAILABLE, "The mirror takes too long to answer: try again.")
    return replace(answer, is_head=request.method == "HEAD")


async def _request(stream: trio.SocketStream, connection: h11.Connection) -> Request | None:
    """Read the head of a request; None if whoever has connected says nothing. Raises h11.RemoteProtocolError."""
    received = 0
    while True:
        match connection.next_event():
            case h11.Request() as event:
                method, target, version = (
                    word.decode("latin-1") for word in (event.method, event.target, event.http_version)
                )
                return Request(method, target, version, list(event.headers))
            case h11.ConnectionClosed():
                return None
            case _:
                data = await stream.receive_some(_READ_SIZE)
                received += len(data)
                if received > LONGEST_HEAD:
                    raise h11.RemoteProtocolError("too long", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
                connection.receive_data(data)


async def _send(stream: trio.SocketStream, connection: h11.Connection, answer: Answer) -> None:
    headers = {
        "Content-Type": answer.content_type,
        "Content-Length": str(len(answer.body)),
        "Connection": "close",
        **SECURITY_HEADERS,
        **answer.headers,
    }
    response = h11.Response(
        status_code=answer.status.value, headers=list(headers.items()), reason=answer.status.phrase.encode()
    )
    content = [] if answer.is_head else [h11.Data(data=answer.body)]
    for event in (response, *content, h11.EndOfMessage()):
        data = connection.send(event)
        if data:
            await stream.send_all(data)
