"""A store, or a gateway before it, that refuses some objects and takes others: one line, and no standstill."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.end_to_end.mirrors import MirrorUnderTest
from tests.harness.content import BackupPlan, BlobPlan, ImagePlan
from tests.harness.writer import DatastoreWriter
from tests.stores.fault_proxy import FaultProxy

_LARGE = BackupPlan(images=(ImagePlan("drive-scsi0.img", 40 * 65536, 65536),), blobs=(BlobPlan("a.conf", 300),))
_SMALL = BackupPlan(images=(), blobs=(BlobPlan("a.conf", 300),))
_LIMIT = 10_000


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_gateway_with_a_limit_is_one_line_and_small_objects_still_go(
    proxied_mirror: MirrorUnderTest, fault_proxy: FaultProxy
) -> None:
    mirror, path = proxied_mirror, str(proxied_mirror.datastore)
    fault_proxy.largest_body = _LIMIT
    mirror.mount()
    with DatastoreWriter(mirror.datastore, seed=31) as writer:
        large = [writer.backup("vm/1", plan=_LARGE), writer.backup("vm/2", plan=_LARGE)]
        small = writer.backup("host/3", plan=_SMALL)
    done = mirror.run("wait", path, "--timeout", "90")
    assert done.returncode == 1
    assert mirror.published() == [small.path]

    (problem,) = mirror.status()["problems"]
    sick = {digest for snapshot in large for digest in snapshot.chunks}
    assert problem["count"] > len(sick) / 2
    assert "413" in problem["reason"]
    assert "client_max_body_size" in problem["reason"]
    status = mirror.run("status", path)
    assert status.returncode == 1
    assert status.stdout.count("client_max_body_size") == 1
    assert f"problems    {problem['count']}" in status.stdout
    metrics = mirror.run("metrics", path).stdout
    assert f'mirrorfs_problems{{datastore="{path}",kind="chunk"}} {float(problem["count"])}' in metrics
    # In the log too; and next to nothing was sent in vain.
    assert mirror.log.count("client_max_body_size") == 1
    assert len(fault_proxy.requests("PUT")) < len(sick)

    fault_proxy.largest_body = None
    until(lambda: len(mirror.published()) == 3)
    mirror.wait()
    assert mirror.status()["problems"] == []
    assert mirror.log.count("what the store refused (413) is all taken") == 1
    assert mirror.audit() == []


def test_a_policy_that_denies_chunks_alone_is_told(proxied_mirror: MirrorUnderTest, fault_proxy: FaultProxy) -> None:
    mirror, path = proxied_mirror, str(proxied_mirror.datastore)
    mirror.mount()
    rule = fault_proxy.answer(403, "AccessDenied", "PUT", "*/.chunks/*")
    with DatastoreWriter(mirror.datastore, seed=32) as writer:
        snapshot = writer.backup("vm/1", plan=_LARGE)

    def is_told() -> bool:
        # Something else must be served beside, so that it is seen not to be the store as a whole.
        with DatastoreWriter(mirror.datastore, seed=33) as writer:
            writer.backup("host/2", plan=_SMALL)
        return mirror.run("status", path).returncode == 1

    until(is_told)
    waiting = mirror.status()["waiting"]
    assert waiting["reason"] == "access-denied"
    assert "AccessDenied" in mirror.run("status", path).stdout
    assert f'mirrorfs_needs_administrator{{datastore="{path}"}} 1.0' in mirror.run("metrics", path).stdout
    assert mirror.log.count("AccessDenied") <= 3
    rule.release()
    mirror.wait()
    assert snapshot.path in mirror.published()
    assert mirror.status()["waiting"] is None
