"""What goes first: PBS before the uploader, and what is new and small before a first mirror's bulk."""

from __future__ import annotations

import os
import subprocess

from tests.end_to_end.mirrors import MirrorUnderTest
from tests.stores.fault_proxy import FaultProxy

_SECONDS = 60.0


def test_a_manifest_waits_neither_for_chunks_nor_for_the_snapshots_of_a_first_mirror(
    proxied_mirror: MirrorUnderTest, fault_proxy: FaultProxy
) -> None:
    mirror = proxied_mirror
    mirror.mount("--parallel", "2")
    with mirror.writer() as writer:
        published = writer.backup("vm/1")
    mirror.wait()
    mirror.umount()
    with mirror.writer() as writer:
        # More than there are workers for what is only come upon.
        for number in range(2, 9):
            writer.backup(f"vm/{number}")
    chunks = fault_proxy.hold("PUT", "*/.chunks/*")
    mirror.mount("--parallel", "2")
    assert fault_proxy.wait_until_waiting(2, "PUT", "*/.chunks/*", timeout=_SECONDS)
    manifest = fault_proxy.hold("PUT", f"*/{published.path}/index.json.blob", times=1)
    with mirror.writer() as writer:
        writer.set_notes(published.name, "seen")
    assert manifest.reached.wait(_SECONDS)
    manifest.release()
    chunks.release()
    mirror.wait()
    assert len(mirror.published()) == 8
    assert mirror.audit() == []


def test_the_uploader_alone_has_a_lower_priority(mirror: MirrorUnderTest) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    for options, nice, disk in (
        ((), 5, "best-effort: prio 7"),
        (("--nice", "9", "--disk-priority", "idle"), 9, "idle"),
    ):
        mirror.mount(*options)
        pid = mirror.uploader_pid()
        assert os.getpriority(os.PRIO_PROCESS, pid) == max(nice, own)
        assert subprocess.check_output(["ionice", "-p", str(pid)], text=True).strip() == disk
        assert os.getpriority(os.PRIO_PROCESS, mirror.mount_pid()) == own
        mirror.umount()
