"""No request for ever, and no refusal of everything that is told object by object."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
import trio

from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.errors import StoreReason, StoreUnavailable
from mirrorfs.objectstore.retry import AT_ONCE
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.objectstore.url import StoreOptions
from tests.stores.capabilities import HONEST
from tests.stores.fault_proxy import FaultProxy


class Trickle:
    """Accepts, and then sends a byte of a header now and then, for ever."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not self._ended.wait(0.02):
                connection.sendall(b"y")

    def end(self) -> None:
        self._ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def trickle(monkeypatch: pytest.MonkeyPatch) -> Iterator[Trickle]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret".replace(" ", "-"))
    server = Trickle()
    yield server
    server.end()


def test_what_trickles_is_given_up_though_it_is_never_silent(trickle: Trickle) -> None:
    options = StoreOptions(endpoint_url=trickle.endpoint_url, request_timeout=0.5, slowest_rate=1e6)
    client = S3Client("bucket", options)
    for ask in (
        lambda: client.get_object("m/a", 100),
        lambda: client.check_bucket("m/"),
        lambda: client.put_object("m/a", b"content", crc32c=None, md5=None),
    ):
        with pytest.raises(StoreUnavailable, match="was not done in") as caught:
            ask()
        assert caught.value.reason is StoreReason.UNREACHABLE
        assert caught.value.may_be_done
    assert client.requests_without_progress(0.0) == []


@pytest.mark.trio
async def test_a_refusal_that_meets_everything_is_one_condition(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None
) -> None:
    client = S3Client(shared_bucket, StoreOptions(endpoint_url=fault_proxy.endpoint_url))
    objects = ObjectStore(client, patience=AT_ONCE)
    await objects.probe(f"{prefix}/probe")
    rule = fault_proxy.answer(400, "InvalidPolicyOfToday", "PUT")
    for number in range(3):
        with pytest.raises(StoreUnavailable, match="InvalidPolicyOfToday") as caught:
            await objects.put(f"{prefix}/{number}", b"content")
        assert caught.value.reason is StoreReason.REFUSES_WRITES
    assert not objects.condition.is_up
    rule.release()
    await objects.put(f"{prefix}/a", b"content")
    assert objects.condition.is_up


@pytest.mark.trio
async def test_a_put_that_was_stored_late_is_not_sent_again(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None
) -> None:
    options = StoreOptions(endpoint_url=fault_proxy.endpoint_url, request_timeout=5.0)
    objects = ObjectStore(S3Client(shared_bucket, options), capabilities=HONEST)
    fault_proxy.odd("504 and a page, though done", "PUT", times=1)
    with trio.fail_after(60):
        await objects.put(f"{prefix}/a", b"content")
    assert fault_proxy.count("PUT") == 1
