"""A plain pass-through in a process of its own, and areas in which a check runs natively and through the mount."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from mirrorfs.filesystem.mount_table import detach, is_mounted
from mirrorfs.filesystem.operations import PassThrough
from tests.filesystem.slow_backing_process import SlowBackingProcess

_START_SECONDS = 20
_END_SECONDS = 10
_TEST_SECONDS = 300

_running: set["PassThroughProcess"] = set()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have one worker run all of these: some drop the kernel's caches, on which others rely while a disk is stuck."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.xdist_group("kernel-caches"))


class PassThroughProcess:
    """A daemon that passes `mountpoint` to `backing`, and its output."""

    def __init__(
        self,
        backing: Path,
        mountpoint: Path,
        *options: str,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self.backing = backing
        self.mountpoint = mountpoint
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mirrorfs.filesystem", str(backing), str(mountpoint), *options],
            stdout=subprocess.PIPE,
            preexec_fn=prepare,
        )
        _running.add(self)
        assert self._process.stdout is not None
        self._output = self._process.stdout

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_mounted(self) -> None:
        assert self._line() == b"mounted\n"

    def statistics(self) -> dict[str, int]:
        os.kill(self.pid, signal.SIGUSR1)
        result: dict[str, int] = json.loads(self._line())
        return result

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int:
        return self._process.wait(timeout=_END_SECONDS)

    def stop(self) -> None:
        """Ends it whatever state it is in, and never waits for long."""
        _running.discard(self)
        if is_mounted(str(self.mountpoint)):
            detach(str(self.mountpoint))
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout=_END_SECONDS)
        self._output.close()

    def _line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            readable, _, _ = select.select([self._output], [], [], _START_SECONDS)
            assert readable, "the daemon does not answer"
            data = os.read(self._output.fileno(), 4096)
            assert data, "the daemon has ended"
            line += data
        return line


Mounter = Callable[..., PassThroughProcess]


def _new_directory() -> Path:
    return Path(tempfile.mkdtemp(prefix="pass-through-test-"))


def _new_mount(base: Path, options: tuple[str, ...], prepare: Callable[[], None] | None) -> PassThroughProcess:
    for name in ("backing", "mountpoint"):
        (base / name).mkdir(exist_ok=True)
        (base / name).chmod(0o755)
    base.chmod(0o755)
    return PassThroughProcess(base / "backing", base / "mountpoint", *options, prepare=prepare)


@pytest.fixture(scope="session")
def shared_mount() -> Iterator[PassThroughProcess]:
    """One mount for all checks that do not care."""
    base = _new_directory()
    process = _new_mount(base, ("suid", "dev"), None)
    try:
        process.wait_until_mounted()
        yield process
    finally:
        process.stop()
        shutil.rmtree(base)


@pytest.fixture
def mounter() -> Iterator[Mounter]:
    """Makes mounts of its own for a test: mounter(*options, base=..., prepare=...)."""
    bases: list[Path] = []
    processes: list[PassThroughProcess] = []

    def mount(*options: str, base: Path | None = None, prepare: Callable[[], None] | None = None) -> PassThroughProcess:
        if base is None:
            base = _new_directory()
            bases.append(base)
        process = _new_mount(base, options, prepare)
        processes.append(process)
        process.wait_until_mounted()
        return process

    try:
        yield mount
    finally:
        for process in processes:
            process.stop()
        for base in bases:
            shutil.rmtree(base)


@pytest.fixture
def slow_base() -> Iterator[tuple[Path, SlowBackingProcess]]:
    """A directory for `mounter` whose backing directory is a slow file system."""
    base = Path(tempfile.mkdtemp(prefix="pass-through-test-"))
    for name in ("disk", "backing"):
        (base / name).mkdir()
    slow = SlowBackingProcess(base / "disk", base / "backing")
    try:
        slow.wait_until_mounted()
        yield base, slow
    finally:
        slow.stop()
        shutil.rmtree(base)


@pytest.fixture
def slow(slow_base: tuple[Path, SlowBackingProcess], mounter: Mounter) -> tuple[PassThroughProcess, SlowBackingProcess]:
    base, backing = slow_base
    return mounter(base=base), backing


@pytest.fixture(autouse=True)
def _no_test_hangs() -> Iterator[None]:
    """Kills the daemons of a test that takes too long: signals do not reach those who wait for a mount."""

    def kill() -> None:
        for process in list(_running):
            process.kill()

    watchdog = threading.Timer(_TEST_SECONDS, kill)
    watchdog.daemon = True
    watchdog.start()
    yield
    watchdog.cancel()


@pytest.fixture
def memory_base() -> Iterator[Path]:
    """A directory in memory, for tests of very many files: how fast the disk is does not matter to them."""
    base = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="pass-through-test-"))
    yield base
    shutil.rmtree(base)


@pytest.fixture(scope="session")
def native_directory() -> Iterator[Path]:
    base = _new_directory()
    base.chmod(0o755)
    yield base
    shutil.rmtree(base)


@pytest.fixture(params=["native", "mount"])
def area(request: pytest.FixtureRequest, native_directory: Path) -> Iterator[Path]:
    """An empty directory, once on the backing file system and once in a mount: both must behave alike."""
    if request.param == "mount":
        mount: PassThroughProcess = request.getfixturevalue("shared_mount")
        base = mount.mountpoint
    else:
        base = native_directory
    directory = Path(tempfile.mkdtemp(dir=base))
    directory.chmod(0o777)
    previous = Path.cwd()
    os.chdir(directory)
    try:
        yield directory
    finally:
        os.chdir(previous)
        shutil.rmtree(directory)


@pytest.fixture
async def operations(tmp_path: Path) -> AsyncIterator[PassThrough]:
    """The requests of a mount over `tmp_path`, without the kernel."""
    descriptor = os.open(tmp_path, os.O_RDONLY)
    operations = PassThrough(descriptor)
    try:
        yield operations
    finally:
        operations.close()
        os.close(descriptor)
