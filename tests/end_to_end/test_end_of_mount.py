"""The end of a mount in the presence of others: something over it, copies of it, users of it, and stray signals."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from mirrorfs.cli.settings_file import SETTINGS_BASE
from mirrorfs.database.directory import escaped_name
from mirrorfs.filesystem.condition import Condition, condition_of
from mirrorfs.filesystem.mount_table import is_mounted, mount_at
from mirrorfs.supervision import ending
from mirrorfs.supervision.users import lives
from tests.end_to_end.mirrors import MirrorUnderTest
from tests.end_to_end.test_crashes import TINY
from tests.harness.writer import DatastoreWriter

# A mount namespace has copies of all mounts that stand, those of other tests too, and holds them.
pytestmark = pytest.mark.xdist_group("mount-namespaces")


def run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=20)


@contextmanager
def neighbour(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that says a line when it is ready, and waits until its standard input is closed."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert select.select([process.stdout], [], [], 30)[0]
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()
        process.communicate(timeout=20)


def namespace_of_its_own() -> list[str]:
    """Has all mounts, and keeps them when they go here; uses none of them."""
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", "cd /; echo ready; read -r line"]


def in_private(mirror: MirrorUnderTest, file: str) -> list[str]:
    """Has a file of the mount open, in a namespace of its own."""
    script = f"exec 3<'{mirror.datastore / file}'; cd /; echo ready; read -r line"
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]


@contextmanager
def held_open(path: Path) -> Iterator[None]:
    """The file is open, also when the mount is gone in which it is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield
    finally:
        with suppress(OSError):
            os.close(descriptor)


@contextmanager
def watched(pid: int) -> Iterator[int]:
    """A descriptor that is readable when the process has ended."""
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def has_ended(descriptor: int, seconds: float = 30) -> bool:
    return bool(select.select([descriptor], [], [], seconds)[0])


def wait_for_log(mirror: MirrorUnderTest, text: str) -> None:
    ticking = threading.Event()
    for _ in range(300):
        if text in mirror.log:
            return
        ticking.wait(0.1)
    raise AssertionError(f"{text!r} is not in the log:\n{mirror.log}")


@pytest.fixture
def disk(mirror: MirrorUnderTest) -> Iterator[Path]:
    """The datastore lies on a disk of its own, which is mounted at its path."""
    run("mount", "-t", "tmpfs", "disk-of-the-datastore", str(mirror.datastore))
    yield mirror.datastore
    mirror.tear_down()
    while mount_at(str(mirror.datastore)) is not None:
        run("umount", "--lazy", str(mirror.datastore))


def source_at(path: Path) -> bytes:
    entry = mount_at(str(path))
    return b"" if entry is None else entry.source


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_the_disk_of_the_datastore_stays_when_the_mount_is_gone_already(
    mirror: MirrorUnderTest, disk: Path, number: signal.Signals
) -> None:
    mirror.create()
    mirror.mount()
    with held_open(disk / ".lock"), watched(mirror.mount_pid()) as process:
        run("umount", "--lazy", str(disk))
        assert source_at(disk) == b"disk-of-the-datastore"
        signal.pidfd_send_signal(process, number)
        assert has_ended(process)
    assert source_at(disk) == b"disk-of-the-datastore"
    assert "is not ours to unmount any more: disk-of-the-datastore (tmpfs)" in mirror.log


def test_what_was_mounted_over_it_stays(mirror: MirrorUnderTest) -> None:
    mirror.create()
    mirror.mount()
    run("mount", "-t", "tmpfs", "something-else", str(mirror.datastore))
    try:
        with watched(mirror.mount_pid()) as process:
            signal.pidfd_send_signal(process, signal.SIGTERM)
            assert has_ended(process)
        assert source_at(mirror.datastore) == b"something-else"
    finally:
        run("umount", "--recursive", str(mirror.datastore))
    assert condition_of(str(mirror.datastore)) is Condition.DEAD
    mirror.mount()
    mirror.wait()


def test_an_end_by_force_takes_only_its_own_away(mirror: MirrorUnderTest, disk: Path) -> None:
    """The uploader and a request hang, so that the deadline passes."""
    mirror.create()
    mirror.mount()
    with held_open(disk / ".lock"), watched(mirror.mount_pid()) as process:
        run("umount", "--lazy", str(disk))
        os.kill(mirror.uploader_pid(), signal.SIGSTOP)
        signal.pidfd_send_signal(process, signal.SIGTERM)
        assert has_ended(process)
    assert source_at(disk) == b"disk-of-the-datastore"


def test_a_bind_mount_is_named_and_does_not_keep_it(mirror: MirrorUnderTest, tmp_path: Path) -> None:
    mirror.create()
    mirror.mount()
    copy = tmp_path / "copy"
    copy.mkdir()
    run("mount", "--bind", str(mirror.datastore), str(copy))
    try:
        with watched(mirror.mount_pid()) as process:
            done = mirror.run("umount", str(mirror.datastore))
            assert (done.returncode, done.stdout) == (0, f"{mirror.datastore} is unmounted\n")
            assert has_ended(process, 0)
        assert f"a bind mount on {copy} (away with it: 'umount {copy}')" in done.stderr
        assert not is_mounted(str(mirror.datastore))
    finally:
        run("umount", "--lazy", str(copy))
    mirror.mount()
    mirror.wait()


def test_a_copy_in_another_namespace_is_named_and_does_not_keep_it(mirror: MirrorUnderTest) -> None:
    mirror.create()
    mirror.mount()
    with neighbour(*namespace_of_its_own()) as other, watched(mirror.mount_pid()) as process:
        done = mirror.run("umount", str(mirror.datastore))
        assert done.returncode == 0, done.stderr
        assert f"{mirror.datastore} in the mount namespace of sh (process {other.pid})" in done.stderr
        assert f"nsenter --mount --target {other.pid} umount {mirror.datastore}" in done.stderr
        assert has_ended(process, 0)
        mirror.mount()
        mirror.wait()


def test_whoever_uses_a_copy_in_another_namespace_uses_it(mirror: MirrorUnderTest) -> None:
    mirror.create()
    mirror.mount()
    with neighbour(*in_private(mirror, ".lock")) as other:
        done = mirror.run("umount", str(mirror.datastore))
        assert done.returncode == 1
        assert f"is in use by sh (process {other.pid}) and stays mounted" in done.stderr
        assert "--maintenance-mode type=offline" in done.stderr
        assert is_mounted(str(mirror.datastore))
        with watched(mirror.mount_pid()) as process:
            done = mirror.run("umount", "--while-in-use", str(mirror.datastore))
            assert done.returncode == 0, done.stderr
            assert f"sh (process {other.pid})" in done.stderr
            assert has_ended(process, 0)
        mirror.mount()
        mirror.wait()


def test_a_plain_umount_that_does_not_end_it_is_told(mirror: MirrorUnderTest, tmp_path: Path) -> None:
    mirror.create()
    mirror.mount()
    with neighbour(*namespace_of_its_own()) as other, watched(mirror.mount_pid()) as process:
        run("umount", "--recursive", str(mirror.datastore))
        wait_for_log(mirror, "was unmounted by somebody else")
        assert f"in the mount namespace of sh (process {other.pid})" in mirror.log
        assert not has_ended(process, 0)
        listed = mirror.run("status")
        assert f"process {mirror.mount_pid()} (unmounted, but something keeps it" in listed.stdout
        for command in ("status", "wait", "reconcile"):
            done = mirror.run(command, str(mirror.datastore))
            assert done.returncode == 1
            assert f"was unmounted, but its process {mirror.mount_pid()} still runs" in done.stderr
        refused = mirror.run(*mirror.mount_arguments())
        assert refused.returncode == 1
        assert f"end it first with 'mirrorfs umount {mirror.datastore}'" in refused.stderr
        done = mirror.run("umount", str(mirror.datastore))
        assert done.returncode == 0, done.stderr
        assert f"in the mount namespace of sh (process {other.pid})" in done.stderr
        assert has_ended(process, 0)
    mirror.mount()
    mirror.wait()


def test_a_plain_umount_that_ends_it_is_no_warning(mirror: MirrorUnderTest) -> None:
    mirror.create()
    mirror.mount()
    with watched(mirror.mount_pid()) as process:
        run("umount", "--recursive", str(mirror.datastore))
        assert has_ended(process)
    # Whoever began a namespace of mounts while it stood, as another run of tests may, held it in truth.
    told = [line for line in mirror.log.splitlines() if "somebody else" in line]
    assert [line for line in told if "in the mount namespace of" not in line] == []


def test_whoever_gets_the_device_of_a_mount_that_is_gone_does_not_hold_it(mirror: MirrorUnderTest) -> None:
    mirror.create()
    mirror.mount()
    entry = mount_at(str(mirror.datastore))
    assert entry is not None
    assert lives(entry)
    assert not lives(replace(entry, source=b"/another/datastore"))
    mirror.umount()
    # Whoever began a namespace of mounts while it stood, as another run of tests may, holds it until he ends.
    ticking = threading.Event()
    for _ in range(600):
        if not lives(entry):
            return
        ticking.wait(0.1)
    raise AssertionError("it lives without its mount")


def blocked_signals(pid: int) -> int:
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["SigBlk"], 16)


def test_signals_that_mean_nothing_leave_it_up_and_a_hang_up_opens_the_log_again(mirror: MirrorUnderTest) -> None:
    mirror.create()
    mirror.mount()
    pid, uploader = mirror.mount_pid(), mirror.uploader_pid()
    with watched(pid) as process:
        for number in ending._MEANINGLESS:
            signal.pidfd_send_signal(process, number)
            wait_for_log(mirror, f"{number.name} means nothing here")
        log = mirror.state / "mirrorfs.log"
        log.rename(log.with_name("mirrorfs.log.1"))
        signal.pidfd_send_signal(process, signal.SIGHUP)
        wait_for_log(mirror, "the log has been opened again, at SIGHUP")
        assert log.stat().st_mode & 0o777 == 0o600
        for name in (pid, uploader):
            wait_until_standard_error_is(name, log)
        # What the uploader starts may have alarms of its own.
        assert blocked_signals(uploader) == 0
        with DatastoreWriter(mirror.datastore, seed=9, default_plan=TINY) as writer:
            writer.backup("ct/1")
        mirror.wait()
        assert mirror.uploader_pid() == uploader
        assert not has_ended(process, 0)


@pytest.fixture
def settings_file(mirror: MirrorUnderTest) -> Iterator[Path]:
    """The settings file of the datastore, where an administrator has it."""
    path = Path(SETTINGS_BASE) / f"{escaped_name(str(mirror.datastore))}.toml"
    made = not path.parent.exists()
    path.parent.mkdir(mode=0o755, exist_ok=True)
    yield path
    path.unlink(missing_ok=True)
    if made:
        path.parent.rmdir()


def test_a_hang_up_has_the_settings_read_again(mirror: MirrorUnderTest, settings_file: Path) -> None:
    mirror.create()
    settings_file.write_text("parallel = 4\n")
    mirror.mount()
    first = mirror.uploader_pid()
    with DatastoreWriter(mirror.datastore, seed=9, default_plan=TINY) as writer:
        snapshot = writer.backup("ct/1").name
    mirror.wait()

    def hang_up(text: str) -> None:
        settings_file.write_text(text)
        os.kill(mirror.mount_pid(), signal.SIGHUP)

    hang_up('parallel = "many"\n')
    wait_for_log(mirror, "the settings stay as they are: ")
    hang_up('parallel = 4\nmountpoint = "/elsewhere"\n')
    wait_for_log(mirror, "mountpoint cannot change while it is mounted")
    wait_for_log(mirror, "the settings have been read again: nothing has changed")
    assert mirror.uploader_pid() == first
    settings_file.write_text('bandwidth-up = "00:00-24:00 64 MiB/s"\nmountpoint = "/elsewhere"\nparallel = 4\n')
    done = mirror.run("reload", str(mirror.datastore))
    assert (done.returncode, done.stdout) == (1, "bandwidth.up: holds now\n")
    assert "mountpoint cannot change while it is mounted" in done.stderr
    wait_for_log(mirror, "the limit of up is 6.71089e+07 a second now")
    assert mirror.run("reload", str(mirror.datastore)).stderr == done.stderr
    assert mirror.uploader_pid() == first
    settings_file.write_text("paralel = 5\n")
    assert "the nearest there is is 'parallel'" in mirror.run("reload", str(mirror.datastore)).stderr
    hang_up('parallel = 5\n[retention]\ndelete_after = "30d"\n')
    wait_for_log(mirror, "the uploader begins anew with another parallel, retention")
    with DatastoreWriter(mirror.datastore, seed=10, default_plan=TINY) as writer:
        writer.backup("ct/1")
        writer.forget(snapshot)
    mirror.wait()
    assert mirror.uploader_pid() != first
    assert list(mirror.deleted_snapshots()) == [snapshot.path]
    assert "ended unexpectedly" not in mirror.log


def wait_until_standard_error_is(pid: int, path: Path) -> None:
    ticking = threading.Event()
    for _ in range(300):
        if os.readlink(f"/proc/{pid}/fd/2") == str(path):
            return
        ticking.wait(0.1)
    raise AssertionError(f"the standard error of process {pid} is {os.readlink(f'/proc/{pid}/fd/2')}")


def run_at_once(mirror: MirrorUnderTest, *commands: Sequence[str]) -> list[subprocess.CompletedProcess[str]]:
    with ThreadPoolExecutor(len(commands)) as pool:
        return list(pool.map(lambda arguments: mirror.run(*arguments, timeout=60), commands))


def test_commands_do_not_hang_with_a_mount_that_hangs(mirror: MirrorUnderTest, tmp_path: Path) -> None:
    mirror.create()
    mirror.mount()
    link = tmp_path / "link"
    link.symlink_to(mirror.datastore)
    pid = mirror.mount_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        silent = f"the mount on {mirror.datastore} does not answer: its process {pid} is stopped"
        # At the same time, since each waits for as long as it may.
        answers = run_at_once(
            mirror,
            ("status", str(mirror.datastore)),
            ("status", str(link)),
            ("wait", str(mirror.datastore)),
            ("umount", "--drain", str(mirror.datastore)),
            ("retention", "approve", str(mirror.datastore)),
        )
        for done in answers:
            assert done.returncode == 1
            assert silent in done.stderr
        refused, listed = run_at_once(mirror, mirror.mount_arguments(), ("status",))
        assert refused.returncode == 1
        assert "does not answer" in refused.stderr
        assert f"process {pid} (does not answer" in listed.stdout
        assert listed.returncode == 0
    finally:
        os.kill(pid, signal.SIGCONT)
    mirror.wait()


def test_who_writes_into_the_datastore_is_noticed_before_it_is_covered(mirror: MirrorUnderTest) -> None:
    mirror.create()
    script = f"exec 3<>'{mirror.datastore / '.lock'}'; echo ready; read -r line"
    # The kernel keeps 15 bytes of a name, which are not enough to tell PBS's services from each other.
    server = shutil.copy("/bin/sh", mirror.base / "proxmox-backup-proxy")
    with neighbour(str(server), "-c", script) as other:
        refused = mirror.run(*mirror.mount_arguments())
        assert refused.returncode == 1
        holder = f"proxmox-backup-proxy (process {other.pid})"
        assert f"{holder} has files of {mirror.datastore} open for writing" in refused.stderr
        assert "proxmox-backup-manager datastore update STORE --maintenance-mode type=offline" in refused.stderr
        assert not is_mounted(str(mirror.datastore))
        mirror.mount("--while-in-use")
        assert f"{holder} has files of {mirror.datastore} open from before" in mirror.log


def test_readers_and_those_who_stand_in_the_datastore_do_not_keep_it_from_being_mounted(
    mirror: MirrorUnderTest,
) -> None:
    mirror.create()
    script = f"cd '{mirror.datastore}'; exec 3<.lock; echo ready; read -r line"
    with neighbour("sh", "-c", script):
        mirror.mount()
        mirror.wait()


def test_a_stopped_python_is_no_user(mirror: MirrorUnderTest) -> None:
    """Users are looked for without asking any file system for anything."""
    mirror.create()
    mirror.mount()
    script = f"import os, sys; os.chdir({str(mirror.datastore)!r}); print('ready', flush=True); sys.stdin.read()"
    with neighbour(sys.executable, "-c", script) as other:
        done = mirror.run("umount", str(mirror.datastore))
        assert done.returncode == 1
        assert f"(process {other.pid})" in done.stderr
