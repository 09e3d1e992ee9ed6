"""What the tests of the object store share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import pytest
import trio
from botocore.awsrequest import AWSPreparedRequest

from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.connection import Connection
from mirrorfs.objectstore.deadlines import RequestUnderWay
from mirrorfs.objectstore.retry import Patience
from mirrorfs.objectstore.store import ObjectStore, open_store
from mirrorfs.objectstore.transport import Transport
from mirrorfs.objectstore.url import StoreOptions
from tests.stores.seaweedfs import StoreServer
from tests.stores.server import StoreAccess

QUICK = Patience(first=0.05, ceiling=0.2)
"""For outages of a fraction of a second."""
SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"

Given = tuple[int, Mapping[str, str], bytes]


@dataclass
class Script:
    """What is answered: to each request what `answer` says of it; and the requests that came."""

    answer: Callable[[AWSPreparedRequest, bytes], Given] = lambda request, body: (200, {}, b"")
    requests: list[AWSPreparedRequest] = field(default_factory=list)

    def always(self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        self.answer = lambda request, sent: (status, headers or {}, body)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials of nobody."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, keys: None) -> Script:
    """Answers in the place of the network."""
    script = Script()

    def send(
        self: Transport, request: AWSPreparedRequest, body: bytes, under_way: RequestUnderWay
    ) -> tuple[int, dict[str, str], bytes]:
        script.requests.append(request)
        status, headers, received = script.answer(request, body)
        return status, {name.lower(): value for name, value in headers.items()}, received

    monkeypatch.setattr(Transport, "_send_and_receive", send)
    # To read credentials and profile again after each refusal takes most of the time, and is for other tests.
    monkeypatch.setattr(Connection, "_forget", lambda self, made: None)
    return script


@pytest.fixture
def client(script: Script) -> S3Client:
    """A client that `script` answers."""
    return S3Client("bucket", StoreOptions(endpoint_url="http://192.0.2.1"))


class LogWatcher(logging.Handler):
    """Collects what the object store layer logs, and tells a waiting task of the first line with a given text."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []
        self._awaited: list[tuple[str, trio.Event]] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        self.lines.append(line)
        for text, event in self._awaited:
            if text in line:
                event.set()

    def count(self, text: str) -> int:
        return sum(text in line for line in self.lines)

    async def wait_for(self, text: str) -> None:
        """To be called before the line can come, or after."""
        event = trio.Event()
        self._awaited.append((text, event))
        if self.count(text) == 0:
            await event.wait()


@pytest.fixture
def log_watcher() -> Iterator[LogWatcher]:
    """Watches mirrorfs.objectstore at level INFO."""
    watcher = LogWatcher()
    logger = logging.getLogger("mirrorfs.objectstore")
    previous = logger.level
    logger.addHandler(watcher)
    logger.setLevel(logging.INFO)
    yield watcher
    logger.removeHandler(watcher)
    logger.setLevel(previous)


def use_credentials(access: StoreAccess | StoreServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the credentials of the store where boto3's usual chain finds them."""
    for name, value in access.environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def credentials(store: StoreServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The credentials of the session store in the environment."""
    use_credentials(store, monkeypatch)


def open_at(endpoint_url: str, bucket: str, patience: Patience = QUICK, parallelism: int = 4) -> ObjectStore:
    """An ObjectStore as the tests use it."""
    return open_store(bucket, StoreOptions(endpoint_url=endpoint_url), patience=patience, parallelism=parallelism)


@pytest.fixture
def objects(store: StoreServer, shared_bucket: str, credentials: None) -> ObjectStore:
    """The shared bucket of the session store, not probed yet."""
    return open_at(store.endpoint_url, shared_bucket)
