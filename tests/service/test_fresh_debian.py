"""A fresh Debian with nothing but the package and the documented steps runs a mirror, through accidents and upgrades.

The store is outside of it, on loopback; so is what plays PBS.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.service.debian import NEWER_COMMIT, Debian, Packages, newer_than
from tests.service.server import DATASTORE, PBS, STATE, backing_up
from tests.service.typed import Typist
from tests.stores.seaweedfs import StoreServer

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(os.geteuid() != 0, reason="packages are installed by root"),
]


@pytest.fixture
def pbs(debian: Debian, package_for: Packages, own_store: StoreServer) -> PBS:
    """A Debian in which everything is set up, and nothing was started yet."""
    debian.install(package_for(debian.release))
    made = PBS(debian, own_store)
    made.set_up()
    assert debian.processes() == [], "nothing is started by being set up"
    return made


def test_a_mirror_survives_a_kill_of_everything_and_a_boot(pbs: PBS, debian: Debian) -> None:
    with debian.service("store1") as manager:
        pbs.backup("vm/100", "host/web")
        pbs.assert_that_nothing_is_lost("vm/100", "host/web")
        pbs.command("drill", "store1", "--group", "vm/100", "--scratch", "/var/tmp")

        pbs.backup("vm/101")
        debian.kill_everything()
        with pytest.raises(OSError, match=r"not connected|connection abort"):
            os.listdir(pbs.datastore)
        debian.start(manager, "store1")
        pbs.backup("vm/102")
        pbs.assert_that_nothing_is_lost("vm/101", "vm/102")

        pbs.backup("vm/103")
        debian.kill_everything()
        debian.lose_its_mounts()
    with debian.service("store1") as manager:
        pbs.backup("vm/104")
        pbs.assert_that_nothing_is_lost("vm/103", "vm/104")
        pbs.assert_that_it_comes_back()
        assert manager.process is not None
        manager.process.terminate()
        assert manager.process.wait(60) == 0
    assert debian.processes() == []
    assert not os.path.ismount(pbs.datastore)


def test_mount_of_util_linux_takes_it_from_fstab(pbs: PBS, debian: Debian) -> None:
    shell = Typist(debian.run)
    shell.literally("export AWS_SHARED_CREDENTIALS_FILE=/etc/mirrorfs/credentials")
    line = "store1  /mnt/datastore/store1  mirrorfs  _netdev,nofail  0  0"
    debian.path("/etc/fstab").write_text(f"{line}\n")
    shell.literally(f"mount {DATASTORE}")
    pbs.backup("vm/100")
    pbs.assert_that_nothing_is_lost("vm/100")
    said = debian.run("sh", "-c", f"mount -o remount,noatime {DATASTORE} 2>&1; echo code $?")
    assert "mirrorfs cannot be remounted" in said
    assert said.endswith("code 32\n")
    shell.literally("mirrorfs umount store1", "mount -t mirrorfs store1 /mnt/datastore/store1")
    pbs.backup("vm/101")
    pbs.assert_that_nothing_is_lost("vm/101")
    shell.literally("umount -R /mnt/datastore/store1")
    assert "fuse.mirrorfs" not in debian.run("cat", "/proc/self/mounts")


def test_an_upgrade_while_backups_run_is_noticed_by_nobody(
    pbs: PBS, debian: Debian, package_for: Packages, own_store: StoreServer, tmp_path: Path
) -> None:
    newer = newer_than(package_for(debian.release), tmp_path)
    with debian.service("store1") as manager:
        mount = manager.process
        assert mount is not None
        with backing_up(pbs) as groups:
            debian.install(newer)
            before = len(groups)
            assert f"commit {NEWER_COMMIT}" in debian.run("mirrorfs", "--version")
            assert mount.poll() is None, "the mount goes on"
            # What dies from now on is replaced by what is installed now.
            uploader = int(debian.path(f"{STATE}/uploader.lock").read_text())
            os.kill(uploader, 9)
        assert len(groups) > before
        pbs.wait()
        assert int(debian.path(f"{STATE}/uploader.lock").read_text()) != uploader
        pbs.assert_that_nothing_is_lost(*groups)

        # The mount itself is replaced when no backup runs. What the journal holds by then goes on.
        own_store.stop()
        pbs.backup("vm/200")
        mount.terminate()
        assert mount.wait(60) == 0
        debian.start(manager, "store1")
        own_store.restart()
        pbs.backup("vm/201")
        pbs.assert_that_nothing_is_lost(*groups, "vm/200", "vm/201")
        pbs.assert_that_it_comes_back()
