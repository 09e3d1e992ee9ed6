"""SIGTERM ends a mount within 5 s whatever is under way, and its journal is trusted afterwards; two end it at once."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mirrorfs.filesystem.mount_table import detach, is_mounted
from mirrorfs.journal.journal import JournalReader
from tests.end_to_end.mirrors import MirrorUnderTest
from tests.end_to_end.test_crashes import TINY
from tests.harness.writer import DatastoreWriter
from tests.stores.fault_proxy import FaultProxy

_FORCED = "ending by force"
_DISTRUSTED = "it is begun anew"

_WRITE_ON = """
import os, sys, time
os.chdir(sys.argv[1])
from tests.end_to_end.test_crashes import TINY
from tests.harness.writer import DatastoreWriter
with DatastoreWriter(os.getcwd(), seed=9, default_plan=TINY) as writer:
    writer.backup("ct/1")
    print("busy", flush=True)
    while True:
        writer.backup("ct/1")
        # More would only take long to be mirrored and looked through afterwards.
        time.sleep(0.1)
"""


# It is called otherwise, since a datastore that lies in a mirrorfs is refused: it has its mirror.
_ANOTHER_FILE_SYSTEM = """
from mirrorfs.filesystem import mount
mount.SUBTYPE = "sick"
from mirrorfs.filesystem.__main__ import main
main()
"""


@contextmanager
def busy_with(mirror: MirrorUnderTest) -> Iterator[None]:
    """A process that has its working directory and files in the mount, and makes one backup after the other."""
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITE_ON, str(mirror.datastore)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 30)[0]
        assert process.stdout.readline() == b"busy\n"
        yield
    finally:
        process.kill()
        process.wait(20)


def end(pid: int, *signals: signal.Signals, pause: float = 0.0) -> None:
    """Send the signals to a process, and return when it has ended. Its deadline is in `supervision/ending.py`."""
    process = os.pidfd_open(pid)
    try:
        for number in signals[:-1]:
            signal.pidfd_send_signal(process, number)
            time.sleep(pause)
        poll = select.poll()
        poll.register(process, select.POLLIN)
        assert not poll.poll(0), "it has ended before"
        signal.pidfd_send_signal(process, signals[-1])
        assert poll.poll(60_000), "it does not end"
    finally:
        os.close(process)


def session(mirror: MirrorUnderTest) -> dict[str, object]:
    """The note about how the journal was closed."""
    note: dict[str, object] = json.loads((mirror.state / "journal" / "session.json").read_text())
    return note


def generation(mirror: MirrorUnderTest) -> str:
    """Which journal it is: another after one that was distrusted."""
    journal = JournalReader(str(mirror.state / "journal"))
    try:
        return journal.generation
    finally:
        journal.close()


def assert_that_it_goes_on(mirror: MirrorUnderTest, before: str) -> None:
    """Mount again with the same journal, and have everything published."""
    assert generation(mirror) == before
    mirror.mount()
    assert _DISTRUSTED not in mirror.log
    mirror.wait()
    assert mirror.audit() == []
    assert mirror.published()
    assert generation(mirror) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_time_while_it_is_used_and_the_store_hangs(
    proxied_mirror: MirrorUnderTest, fault_proxy: FaultProxy, number: signal.Signals
) -> None:
    mirror = proxied_mirror
    hanging = fault_proxy.hold("PUT", "*/.chunks/*")
    mirror.mount()
    before, uploader = generation(mirror), os.pidfd_open(mirror.uploader_pid())
    try:
        with busy_with(mirror):
            assert hanging.reached.wait(30)
            end(mirror.mount_pid(), number)
            assert not is_mounted(str(mirror.datastore))
        assert select.select([uploader], [], [], 0)[0], "the uploader has outlived its mount"
    finally:
        os.close(uploader)
        hanging.release()
    assert session(mirror)["clean"] is True or _FORCED in mirror.log
    assert_that_it_goes_on(mirror, before)


def test_it_ends_soon_when_nothing_holds_it(mirror: MirrorUnderTest) -> None:
    mirror.mount()
    before = generation(mirror)
    with DatastoreWriter(mirror.datastore, seed=9, default_plan=TINY) as writer:
        writer.backup("ct/1")
    end(mirror.mount_pid(), signal.SIGTERM)
    assert session(mirror)["clean"] is True
    assert_that_it_goes_on(mirror, before)


def test_it_ends_in_time_though_the_uploader_is_stopped(mirror: MirrorUnderTest) -> None:
    mirror.mount()
    before = generation(mirror)
    os.kill(mirror.uploader_pid(), signal.SIGSTOP)
    with busy_with(mirror):
        end(mirror.mount_pid(), signal.SIGTERM)
    assert session(mirror)["clean"] is True or _FORCED in mirror.log
    assert_that_it_goes_on(mirror, before)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(mirror: MirrorUnderTest, second: signal.Signals) -> None:
    mirror.mount()
    before = generation(mirror)
    with busy_with(mirror):
        end(mirror.mount_pid(), signal.SIGTERM, second, pause=0.5)
    assert f"{mirror.datastore} is unmounted" not in mirror.log
    assert_that_it_goes_on(mirror, before)


def test_an_uploader_that_is_told_to_end_does_so(mirror: MirrorUnderTest) -> None:
    mirror.mount()
    uploader = mirror.uploader_pid()
    end(uploader, signal.SIGTERM)
    mirror.wait()
    assert mirror.uploader_pid() != uploader


@pytest.fixture
def sick_disk(mirror: MirrorUnderTest) -> Iterator[subprocess.Popen[bytes]]:
    """The process of the file system in which the datastore lies; when it is stopped, that file system hangs."""
    disk, shown = mirror.base / "disk", mirror.base / "shown"
    for directory in (disk, shown):
        directory.mkdir()
    mirror.datastore.rename(disk / "datastore")
    process = subprocess.Popen(
        [sys.executable, "-c", _ANOTHER_FILE_SYSTEM, str(disk), str(shown)], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 30)[0]
        assert process.stdout.readline() == b"mounted\n"
        mirror.datastore.symlink_to(shown / "datastore")
        yield process
        process.send_signal(signal.SIGCONT)
        mirror.tear_down()
    finally:
        process.kill()
        process.wait(20)
        detach(str(shown))


def test_it_ends_in_time_though_the_disk_hangs(mirror: MirrorUnderTest, sick_disk: subprocess.Popen[bytes]) -> None:
    # Not over the datastore: on the way there a sick file system would keep everybody.
    mountpoint = mirror.base / "mountpoint"
    mountpoint.mkdir()
    # Nothing is written through the mount: a request that the kernel does not let be killed would prove nothing of us.
    with DatastoreWriter(mirror.datastore, seed=9, default_plan=TINY) as writer:
        writer.backup("ct/1")
    mirror.mount("--mountpoint", str(mountpoint))
    before = generation(mirror)
    sick_disk.send_signal(signal.SIGSTOP)
    waiting = subprocess.Popen(["ls", "-l", str(mountpoint / "ct" / "1")], stdout=subprocess.DEVNULL)
    try:
        # Until the request is with the disk, which nobody can see from outside.
        time.sleep(0.5)
        assert waiting.poll() is None
        end(mirror.mount_pid(), signal.SIGTERM)
        assert not is_mounted(str(mountpoint))
    finally:
        waiting.kill()
        waiting.wait(20)
    assert _FORCED in mirror.log
    sick_disk.send_signal(signal.SIGCONT)
    assert generation(mirror) == before
    mirror.mount("--mountpoint", str(mountpoint))
    assert _DISTRUSTED not in mirror.log
    assert generation(mirror) == before
