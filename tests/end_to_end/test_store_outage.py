"""A store that is down, slow, or answers wrongly: backups do not notice, and the bucket is right in the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.end_to_end.mirrors import MirrorUnderTest
from tests.end_to_end.test_crashes import TINY, work
from tests.harness.names import chunk_path
from tests.harness.writer import DatastoreWriter
from tests.stores.fault_proxy import FaultProxy, Rule
from tests.stores.seaweedfs import StoreServer

_DOWN = "The object store is not usable."
_UP = "The object store is usable again"


@pytest.fixture
def own_mirror(base: Path, own_store: StoreServer) -> Iterator[MirrorUnderTest]:
    """A mirror into a store that this test may kill."""
    under_test = MirrorUnderTest(base, own_store, own_store.create_bucket(), own_store.endpoint_url)
    under_test.create()
    yield under_test
    under_test.tear_down()


def tiny_writer(mirror: MirrorUnderTest) -> DatastoreWriter:
    return DatastoreWriter(mirror.datastore, seed=11, default_plan=TINY)


def wait_until_down(mirror: MirrorUnderTest) -> None:
    """Until the uploader has noticed, which it does at its next request."""
    deadline = time.monotonic() + 90
    while mirror.status()["store"]["up"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_backups_go_on_while_the_store_is_dead(own_mirror: MirrorUnderTest, own_store: StoreServer) -> None:
    mirror, path = own_mirror, str(own_mirror.datastore)
    mirror.mount()
    with tiny_writer(mirror) as writer:
        first = writer.backup("vm/1")
        mirror.wait()
        own_store.kill()
        made = [writer.backup("vm/1"), writer.backup("vm/2")]
        writer.forget(first.name)
        writer.set_notes(made[0].name, "while the store was dead")
        writer.collect_garbage(age_seconds=0, safety_seconds=0)
        made.append(writer.backup("ct/3"))
    wait_until_down(mirror)
    status = mirror.run("status", path)
    assert status.returncode == 0
    assert f"bucket {mirror.bucket} at {mirror.endpoint_url} is not usable since" in status.stdout
    assert mirror.status()["backlog"]["items"] > 0

    drained = mirror.run("umount", "--drain", "--timeout", "1", path)
    assert drained.returncode == 1
    for words in ("not everything is published after 1 s", "the store is not usable", "stays mounted"):
        assert words in drained.stderr
    assert len(drained.stderr.strip().splitlines()) == 2
    assert mirror.status()["datastore"] == path

    assert mirror.log.count(_DOWN) == 1
    assert mirror.log.count(_UP) == 0
    own_store.restart()
    mirror.wait()
    assert mirror.published() == sorted(snapshot.path for snapshot in made)
    assert mirror.audit() == []
    assert mirror.log.count(_DOWN) == 1
    assert mirror.log.count(_UP) == 1
    assert mirror.succeed("umount", "--drain", path)


def test_unmounting_while_the_store_is_dead_loses_nothing(own_mirror: MirrorUnderTest, own_store: StoreServer) -> None:
    mirror = own_mirror
    mirror.mount()
    with tiny_writer(mirror) as writer:
        made = [writer.backup("vm/1")]
        mirror.wait()
        own_store.kill()
        made.append(writer.backup("vm/1"))
    wait_until_down(mirror)
    mirror.umount()
    done = mirror.run(*mirror.mount_arguments())
    assert done.returncode == 0
    assert done.stderr.startswith("Replication waits: ")
    with tiny_writer(mirror) as writer:
        made.append(writer.backup("vm/2"))
    own_store.restart()
    mirror.wait()
    assert mirror.published() == sorted(snapshot.path for snapshot in made)
    assert mirror.audit() == []


# A name and what is armed; each is met by a whole life of backups, notes, removals and a garbage collection.
FAULTS: dict[str, Callable[[FaultProxy], Rule]] = {
    "500 on some chunks": lambda proxy: proxy.answer(500, "InternalError", "PUT", "*/.chunks/*", times=5),
    "500 on manifests": lambda proxy: proxy.answer(500, "InternalError", "PUT", "*/index.json.blob", times=4),
    "503 for a while": lambda proxy: proxy.answer(503, "SlowDown", times=15),
    "a load balancer without a store": lambda proxy: proxy.answer(502, "BadGateway", times=10),
    "connections break before": lambda proxy: proxy.drop_before(times=8),
    "the answer to PUT is lost": lambda proxy: proxy.drop_after("PUT", times=8),
    "the answer to DELETE is lost": lambda proxy: proxy.drop_after("POST", times=4),
    "GET breaks off": lambda proxy: proxy.truncate("GET", "*idx", times=3),
    "PUT is corrupted on its way": lambda proxy: proxy.corrupt("PUT", times=2),
    "everything is slow": lambda proxy: proxy.delay(0.1, times=30),
}


def test_faults_on_the_way_to_the_store(proxied_mirror: MirrorUnderTest, fault_proxy: FaultProxy) -> None:
    mirror = proxied_mirror
    mirror.mount()
    for number, (name, arm) in enumerate(FAULTS.items()):
        # Of another seed each: what is in the bucket already would not be sent.
        with DatastoreWriter(mirror.datastore, seed=100 + number, default_plan=TINY) as writer:
            # Something to be deleted and, for that, read.
            gone = writer.backup("host/gone")
            mirror.wait()
            rule = arm(fault_proxy)
            work(writer)
            writer.forget(gone.name)
            mirror.wait()
            assert rule.reached.is_set(), f"{name}: nothing has met this fault"
            assert rule.remaining == 0, f"{name}: it was met less often than is armed"
            assert mirror.audit() == [], name
            for snapshot in writer.snapshots("vm/1"):
                writer.set_protected(snapshot, protected=False)
            writer.forget_group("vm/1")
            writer.collect_garbage(age_seconds=0, safety_seconds=0)
        fault_proxy.clear()
    mirror.wait()
    assert mirror.store.access.keys(mirror.bucket, f"{mirror.name}/.c") == []
    assert mirror.status()["problems"] == []


def test_a_lost_state_is_rebuilt_through_a_bad_line(proxied_mirror: MirrorUnderTest, fault_proxy: FaultProxy) -> None:
    mirror = proxied_mirror
    mirror.mount()
    with tiny_writer(mirror) as writer:
        made = [writer.backup("vm/1") for _ in range(3)]
    mirror.wait()
    mirror.umount()
    mirror.state.rename(mirror.base / "lost")
    rules = [
        fault_proxy.truncate("GET", "*/index.json.blob", times=2),
        fault_proxy.truncate("GET", "*idx", times=2),
        fault_proxy.answer(500, "InternalError", "GET", "", times=2),
    ]
    mirror.run(*mirror.mount_arguments())
    with tiny_writer(mirror) as writer:
        writer.forget(made[0].name)
    mirror.wait()
    assert all(rule.reached.is_set() for rule in rules)
    assert mirror.published() == sorted(snapshot.path for snapshot in made[1:])
    assert mirror.audit() == []
    assert "incomplete in the bucket" not in mirror.log


def test_one_object_that_the_store_never_gets_right(proxied_mirror: MirrorUnderTest, fault_proxy: FaultProxy) -> None:
    mirror = proxied_mirror
    with tiny_writer(mirror) as writer:
        sick, well = writer.backup("vm/1"), writer.backup("vm/2")
        digest = max(sick.chunks - well.chunks)
    mirror.mount()
    mirror.umount()
    mirror.state.rename(mirror.base / "before")
    mirror.name = "again"
    # Behind the probe, which sends nothing under such a name.
    rule = fault_proxy.corrupt("PUT", f"*/{digest}")
    mirror.mount()
    done = mirror.run("wait", str(mirror.datastore), "--timeout", "60")
    assert done.returncode == 1
    assert rule.reached.is_set()
    reasons = {problem["name"]: problem["reason"] for problem in mirror.status()["problems"]}
    assert set(reasons) == {sick.path, chunk_path(digest)}
    assert all(digest in reason for reason in reasons.values())
    assert mirror.published() == [well.path]
    assert mirror.auditor().audit_bucket() == []
    fault_proxy.clear()
    # It is looked at again at each start, and every ten minutes.
    mirror.umount()
    mirror.mount()
    mirror.wait()
    assert mirror.status()["problems"] == []
    assert mirror.audit() == []


def test_a_store_that_is_down_when_mounting_gives_one_line(
    proxied_mirror: MirrorUnderTest, fault_proxy: FaultProxy
) -> None:
    fault_proxy.refuse_connections()
    proxied_mirror.mount()
    with proxied_mirror.writer() as writer:
        writer.backup("vm/1")
    fault_proxy.accept_connections()
    proxied_mirror.wait()
    assert proxied_mirror.log.count("The object store is not usable") == 1
    assert proxied_mirror.log.count("The object store is usable again") == 1
