"""The unit's command with the unit's rights, heard by a service manager of the test's; and the helper of mount(8)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest

from mirrorfs.filesystem.mount_table import is_mounted
from mirrorfs.service import units
from tests.end_to_end.mirrors import PROGRAM, MirrorUnderTest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="services are root's")

_HEARD_SECONDS = 60.0
_WATCHDOG_SECONDS = 10.0
_HELPER = [sys.executable, "-c", "from mirrorfs.cli.mount_helper import main; main()"]


def _unit() -> list[tuple[str, str]]:
    lines = units.template(units.MOUNT, " ".join(PROGRAM)).splitlines()
    return [(key, value) for key, equals, value in (line.partition("=") for line in lines) if equals]


def _values(key: str) -> list[str]:
    return [word for name, value in _unit() if name == key for word in value.split()]


class Manager:
    """Starts the unit as systemd would, and hears it."""

    def __init__(self, mirror: MirrorUnderTest) -> None:
        self._mirror = mirror
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._address = str(mirror.base / "notify")
        self._socket.bind(self._address)
        self._socket.settimeout(_HEARD_SECONDS)
        self.log = (mirror.base / "log").open("ab")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        mirror = self._mirror
        capabilities = ",".join(f"+{word.removeprefix('CAP_').lower()}" for word in _values("CapabilityBoundingSet"))
        rights = ["setpriv", "--no-new-privs", "--inh-caps=-all", f"--bounding-set=-all,{capabilities}", "--"]
        self.process = subprocess.Popen(
            [*rights, *(word.replace("%i", str(mirror.datastore)) for word in _values("ExecStart"))],
            env={
                **mirror.environment(),
                "NOTIFY_SOCKET": self._address,
                "WATCHDOG_USEC": f"{_WATCHDOG_SECONDS * 1e6:.0f}",
                "MIRRORFS_MOUNT_TO": mirror.url,
                "MIRRORFS_MOUNT_STATE_DIR": str(mirror.state),
                "MIRRORFS_MOUNT_ENDPOINT_URL": mirror.endpoint_url,
                "MIRRORFS_MOUNT_LOG_FORMAT": "json",
            },
            stdout=subprocess.DEVNULL,
            stderr=self.log,
        )
        return self.process

    def hear(self) -> str:
        return self._socket.recv(100).decode()

    def hear_nothing(self, seconds: float) -> bool:
        """Whether it is silent for so long, after what it has said already."""
        self._socket.settimeout(0)
        with suppress(BlockingIOError):
            while True:
                self._socket.recv(100)
        self._socket.settimeout(seconds)
        try:
            self._socket.recv(100)
        except TimeoutError:
            return True
        finally:
            self._socket.settimeout(_HEARD_SECONDS)
        return False

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self._socket.close()
        self.log.close()


@pytest.fixture
def manager(mirror: MirrorUnderTest) -> Iterator[Manager]:
    made = Manager(mirror)
    yield made
    made.close()


def test_the_unit_mirrors_with_its_rights_and_survives_a_kill(mirror: MirrorUnderTest, manager: Manager) -> None:
    with mirror.writer() as writer:
        writer.backup("vm/100")
    process = manager.start()
    assert manager.hear() == "READY=1"
    assert manager.hear() == "WATCHDOG=1"
    assert mirror.status()["chunk_store"]["in_use"] == "native", "fanotify, file handles or open_tree are not allowed"
    with mirror.writer(seed=2) as writer:
        writer.backup("vm/101")
    mirror.wait()
    assert len(mirror.published()) == 2

    # One that is stopped answers nobody: systemd would end it after WatchdogSec=.
    process.send_signal(signal.SIGSTOP)
    assert manager.hear_nothing(_WATCHDOG_SECONDS / 2)
    process.kill()
    process.wait()
    assert is_mounted(str(mirror.datastore)), "the dead mount still stands"
    process = manager.start()
    assert manager.hear() == "READY=1"
    with mirror.writer(seed=3) as writer:
        writer.backup("vm/102")
    mirror.wait()
    assert mirror.audit() == []
    assert len(mirror.published()) == 3

    process.terminate()
    while (said := manager.hear()) == "WATCHDOG=1":
        continue
    assert said == "STOPPING=1"
    assert process.wait(20) == 0
    assert not is_mounted(str(mirror.datastore))
    records = [json.loads(line) for line in (mirror.base / "log").read_text().splitlines()]
    assert {record["process"] for record in records} == {"mount", "uploader"}


def test_the_unit_restarts_what_may_become_right_and_nothing_else(mirror: MirrorUnderTest, manager: Manager) -> None:
    assert _values("Restart") == ["on-failure"]
    mirror.url = "s3://"
    assert [str(manager.start().wait(60))] == _values("RestartPreventExitStatus")


def _helped(mirror: MirrorUnderTest, *words: str) -> subprocess.CompletedProcess[str]:
    """What mount(8) runs for `mount -t mirrorfs -o WORDS DATASTORE DATASTORE`."""
    datastore = str(mirror.datastore)
    return subprocess.run(
        [*_HELPER, datastore, datastore, "-o", ",".join(words)],
        env=mirror.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )


def test_mount_of_util_linux_mounts_and_unmounts(mirror: MirrorUnderTest) -> None:
    mirrored = [f"to={mirror.url}", f"state-dir={mirror.state}", f"endpoint-url={mirror.endpoint_url}"]
    done = _helped(mirror, "rw", "_netdev", "x-systemd.after=network.target", "nofail", "noatime", *mirrored)
    assert (done.returncode, done.stderr) == (0, "")
    with mirror.writer() as writer:
        writer.backup("vm/100")
    mirror.wait()
    assert len(mirror.published()) == 1
    for word, said in (
        ("remount", "cannot be remounted"),
        ("ro", "cannot be mounted read-only"),
        ("parallel", "needs a value"),
        ("require-store=1", "takes no value"),
        ("noatime", "already mounted"),
    ):
        refused = _helped(mirror, *mirrored, word)
        assert refused.returncode == 32
        assert said in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    assert _helped(mirror, *mirrored, "parallel=no").returncode == 1
    mirror.succeed("umount", str(mirror.datastore))
    assert not is_mounted(str(mirror.datastore))
