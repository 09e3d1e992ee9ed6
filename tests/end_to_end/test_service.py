"""The unit's command with the unit's rights, heard by a service manager of the test's; and the helper of mount(8)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from mirrorfs.filesystem.mount_table import is_mounted
from mirrorfs.service import units
from tests.end_to_end.mirrors import PROGRAM, MirrorUnderTest
from tests.service_manager import ServiceManager, Unit

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="services are root's")

_WATCHDOG_SECONDS = 10.0
_HELPER = [sys.executable, "-c", "from mirrorfs.cli.mount_helper import main; main()"]


class Manager(ServiceManager):
    """Starts the unit as systemd would, and hears it."""

    def __init__(self, mirror: MirrorUnderTest) -> None:
        self._mirror, self._address = mirror, mirror.base / "notify"
        super().__init__(self._address)
        service = units.Service("store1", str(mirror.datastore))
        texts = (units.template(units.MOUNT, " ".join(PROGRAM)), units.files_of(service)[units.own_drop_in("store1")])
        self.unit = Unit("\n".join(texts), str(mirror.datastore))
        self._log = (mirror.base / "log").open("ab")

    def begin(self) -> subprocess.Popen[bytes]:
        mirror = self._mirror
        environment = {
            **mirror.environment(),
            "NOTIFY_SOCKET": str(self._address),
            "WATCHDOG_USEC": f"{_WATCHDOG_SECONDS * 1e6:.0f}",
            "MIRRORFS_MOUNT_TO": mirror.url,
            "MIRRORFS_MOUNT_STATE_DIR": str(mirror.state),
            "MIRRORFS_MOUNT_ENDPOINT_URL": mirror.endpoint_url,
            "MIRRORFS_MOUNT_LOG_FORMAT": "json",
        }
        return self.start(self.unit, environment, self._log)

    def close(self) -> None:
        super().close()
        self._log.close()


@pytest.fixture
def manager(mirror: MirrorUnderTest) -> Iterator[Manager]:
    made = Manager(mirror)
    yield made
    made.close()


def test_the_unit_mirrors_with_its_rights_and_survives_a_kill(mirror: MirrorUnderTest, manager: Manager) -> None:
    with mirror.writer() as writer:
        writer.backup("vm/100")
    process = manager.begin()
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
    process = manager.begin()
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


def test_the_unit_mounts_over_no_directory_whose_disk_is_missing(mirror: MirrorUnderTest, manager: Manager) -> None:
    mirror.datastore.joinpath(".chunks").rename(mirror.base / "elsewhere")
    with pytest.raises(subprocess.CalledProcessError):
        manager.begin()
    assert f"{mirror.datastore} has no .chunks: is its disk missing?\n" in (mirror.base / "log").read_text()
    assert not is_mounted(str(mirror.datastore))


def test_the_unit_restarts_what_may_become_right_and_nothing_else(mirror: MirrorUnderTest, manager: Manager) -> None:
    assert manager.unit.values("Restart") == ["on-failure"]
    mirror.url = "s3://"
    assert [str(manager.begin().wait(60))] == manager.unit.values("RestartPreventExitStatus")


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
