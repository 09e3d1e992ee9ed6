"""The launcher leaves nothing behind, and the proxy does what its rules say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from tests.ends_of_processes import ends_within
from tests.stores.fault_proxy import FaultProxy
from tests.stores.seaweedfs import StoreServer
from tests.stores.server import StoreAccess

REPOSITORY = Path(__file__).parents[2]


@contextmanager
def launched(temporary: Path, data_dir: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """The launcher as a program, and what it has printed."""
    environment = {**os.environ, "TMPDIR": str(temporary)}
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "tests.stores.seaweedfs", "--data-dir", str(data_dir), "--bucket", "demo"]
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
    finally:
        process.terminate()
        process.communicate()


def sockets_of(pid: int) -> list[Path]:
    """The Unix sockets of a process that have a name."""
    own = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            own.add(os.readlink(link))
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return [Path(row[7]) for row in rows if len(row) > 7 and f"socket:[{row[6]}]" in own]


def access_to(ready: dict[str, str]) -> StoreAccess:
    return StoreAccess(ready["endpoint_url"], ready["access_key"], ready["secret_key"])


def test_the_program_ends_in_good_order_and_keeps_the_data(tmp_path: Path) -> None:
    temporary, data_dir = tmp_path / "t", tmp_path / "d"
    temporary.mkdir()
    with launched(temporary, data_dir) as (process, ready):
        access_to(ready).client().put_object(Bucket="demo", Key="a", Body=b"content")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert ends_within(int(ready["pid"]), 0)
    assert list(temporary.iterdir()) == []
    with launched(temporary, data_dir) as (process, ready):
        assert access_to(ready).keys("demo") == ["a"]


def test_the_store_dies_with_a_killed_launcher(tmp_path: Path) -> None:
    with launched(tmp_path, tmp_path / "d") as (process, ready):
        sockets = sockets_of(int(ready["pid"]))
        process.kill()
        assert ends_within(int(ready["pid"]), 60)
    for path in sockets:
        path.unlink(missing_ok=True)


def test_a_held_request_waits_for_its_release(fault_proxy: FaultProxy, store: StoreServer, shared_bucket: str) -> None:
    client = access_through(fault_proxy, store).client()
    rule = fault_proxy.hold("PUT", "held/*")
    putting = threading.Thread(
        target=client.put_object, kwargs={"Bucket": shared_bucket, "Key": "held/a", "Body": b"content"}
    )
    putting.start()
    assert rule.reached.wait(10)
    assert store.access.keys(shared_bucket, "held/") == []
    client.put_object(Bucket=shared_bucket, Key="free/a", Body=b"content")
    rule.release()
    putting.join(10)
    assert store.access.keys(shared_bucket, "held/") == ["held/a"]


def test_dropping_before_and_after_differ_in_what_is_stored(
    fault_proxy: FaultProxy, store: StoreServer, shared_bucket: str, prefix: str
) -> None:
    client = access_through(fault_proxy, store).client()
    fault_proxy.drop_before("PUT", "*/before")
    fault_proxy.drop_after("PUT", "*/after")
    for name in ("before", "after"):
        with pytest.raises(BotoCoreError):
            client.put_object(Bucket=shared_bucket, Key=f"{prefix}/{name}", Body=b"content")
    assert store.access.keys(shared_bucket, prefix) == [f"{prefix}/after"]
    assert [seen.status for seen in fault_proxy.requests("PUT")] == [None, None]


def test_refusing_ends_with_accepting(fault_proxy: FaultProxy, store: StoreServer, shared_bucket: str) -> None:
    client = access_through(fault_proxy, store).client()
    client.list_objects_v2(Bucket=shared_bucket)
    fault_proxy.refuse_connections()
    with pytest.raises(BotoCoreError):
        client.list_objects_v2(Bucket=shared_bucket)
    fault_proxy.accept_connections()
    client.list_objects_v2(Bucket=shared_bucket)
    assert fault_proxy.count("GET") == 2


def test_a_rule_is_used_up(fault_proxy: FaultProxy, store: StoreServer, shared_bucket: str) -> None:
    client = access_through(fault_proxy, store).client()
    fault_proxy.answer(503, "SlowDown", times=1)
    with pytest.raises(ClientError, match="SlowDown"):
        client.list_objects_v2(Bucket=shared_bucket)
    client.list_objects_v2(Bucket=shared_bucket)


def access_through(proxy: FaultProxy, store: StoreServer) -> StoreAccess:
    return StoreAccess(proxy.endpoint_url, store.access_key, store.secret_key)
