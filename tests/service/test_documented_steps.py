"""The lines that an administrator types, as the documents have them, in a Debian that is booted.

tests/end_to_end/test_documented_commands.py has the others. What is Proxmox's own is left out: PBS is not here. Its
units are, and do nothing.
"""

from __future__ import annotations

import json
import shutil

import pytest

from mirrorfs.service import units
from tests.harness.scan import compare_datastores
from tests.harness.writer import DatastoreWriter
from tests.service.debian import ROOT, Debian, Packages, run
from tests.service.server import DATASTORE
from tests.service.systemd import booted, can_boot
from tests.service.test_systemd import PBS_UNIT
from tests.service.typed import Typist
from tests.stores.seaweedfs import StoreServer

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not can_boot(), reason="needs root and Debian's package systemd-container"),
    # The page has its port on this machine.
    pytest.mark.xdist_group("port 9861"),
]

# systemd gives it the file that is to be kept last or alone, as its version is.
_EDITOR = r"""#!/bin/sh
for file; do printf '[Unit]\nDescription=mine\n' >"$file"; done
"""
_SNAPSHOT = "vm/100/2026-01-01T00:00:00Z"


@pytest.fixture
def server(debian: Debian, package_for: Packages) -> Debian:
    """A Debian with systemd, the units of PBS and an editor, and the package beside it."""
    debian.get("systemd", "systemd-sysv", "dbus", "ed", "jq", "curl", "awscli", "zstd", "bsdutils")
    for unit in units.PBS_UNITS:
        debian.path(f"/etc/systemd/system/{unit}").write_text(PBS_UNIT)
        debian.run("systemctl", "enable", unit)
    debian.path("/root/dist").mkdir()
    shutil.copy(package_for(debian.release), debian.path("/root/dist"))
    return debian


def test_getting_started_and_the_end(server: Debian, own_store: StoreServer) -> None:
    own_store.create_bucket("backups")
    with booted(server) as system:
        shell = Typist(system.run, own_store.endpoint_url)
        shell.literally("apt install ./dist/mirrorfs_*.deb")
        shell.literally("mkdir -p /etc/mirrorfs", "install -m 600 /dev/null /etc/mirrorfs/credentials")
        keys = f"aws_access_key_id = {own_store.access_key}\naws_secret_access_key = {own_store.secret_key}\n"
        system.path("/root/input").write_text(f"a\n[default]\n{keys}.\nw\nq\n")
        shell.literally("editor /etc/mirrorfs/credentials", input_file="/root/input")
        assert system.path("/etc/mirrorfs/credentials").stat().st_mode & 0o777 == 0o600
        datastore = system.path(DATASTORE)
        datastore.mkdir(parents=True)
        with DatastoreWriter(datastore) as writer:
            writer.create(chunk_directories="when needed")
        shell.literally(
            "export AWS_SHARED_CREDENTIALS_FILE=/etc/mirrorfs/credentials",
            "mirrorfs config init /mnt/datastore/store1 --to s3://backups/store1 --endpoint-url https://s3.example.com",
        )
        assert "fails" not in shell.literally("mirrorfs config check store1")
        shell.literally("mirrorfs install store1", "systemctl start mirrorfs@store1")
        system.go_on(*units.PBS_UNITS)
        with DatastoreWriter(system.path(DATASTORE)) as writer:
            writer.backup("vm/100")
        shell.literally("mirrorfs wait store1", "mirrorfs status store1")
        assert _SNAPSHOT in shell.literally("mirrorfs snapshots store1")
        shell.literally("mirrorfs drill store1 --group vm/100 --scratch /var/tmp")

        # docs/operating.md
        published = shell.literally("journalctl -u mirrorfs@store1 MIRRORFS_EVENT=published")
        assert _SNAPSHOT in published
        assert "mounted" not in published
        system.path("/root/added").write_text(_EDITOR)
        system.path("/root/added").chmod(0o755)
        shell.literally(
            "systemctl edit mirrorfs@store1",
            "systemctl edit mirrorfs-drill@store1.service",
            terminal_editor="/root/added",
        )
        assert system.show("mirrorfs-drill@store1.service", "Description") == "mine"
        process = system.show("mirrorfs@store1.service", "MainPID")
        shell.literally("systemctl daemon-reload", "systemctl reload mirrorfs@store1")
        assert system.show("mirrorfs@store1.service", "MainPID") == process
        shell.literally("systemctl restart mirrorfs@store1")
        system.go_on(*units.PBS_UNITS)
        assert system.show("mirrorfs@store1.service", "MainPID") != process
        shell.literally("systemctl restart proxmox-backup proxmox-backup-proxy")

        # docs/web.md
        settings = system.path("/etc/mirrorfs/store1.toml")
        assert "[web]\n" in settings.read_text()
        settings.write_text(settings.read_text().replace("[web]\n", '[web]\nlisten = "127.0.0.1:9861"\n'))
        shell.literally("mirrorfs install store1", "systemctl start mirrorfs-web@store1")
        page = "curl -sS --retry 30 --retry-connrefused --retry-delay 1 http://127.0.0.1:9861/live.json"
        assert json.loads(system.run("sh", "-c", page))
        shell.literally("systemctl stop mirrorfs-web@store1")

        # docs/bucket-layout.md
        system.run("systemd-sysusers", "--inline", "u backup 34")
        shell.literally(
            "aws --endpoint-url https://s3.example.com s3 sync s3://backups/store1/.cnt /mnt/datastore/back",
            "aws --endpoint-url https://s3.example.com s3 sync s3://backups/store1/.chunks /mnt/datastore/back/.chunks",
            "find /mnt/datastore/back -name .namespace -delete",
            "printf '/mnt/datastore/back/.chunks/%04x\\n' $(seq 0 65535) | xargs mkdir -p",
            "touch /mnt/datastore/back/.lock",
            "find /mnt/datastore/back/.chunks -type d -exec chmod 750 {} +",
            "chown -R backup:backup /mnt/datastore/back",
        )
        compare_datastores(system.path(DATASTORE), system.path("/mnt/datastore/back"))
        manifest = shell.literally(
            "aws --endpoint-url https://s3.example.com "
            "s3 cp s3://backups/store1/.cnt/vm/100/2026-01-01T00:00:00Z/index.json.blob - | tail -c +13 | zstd -dc"
        )
        assert json.loads(manifest)["backup-id"] == "100"

        shell.literally("mirrorfs umount --drain store1", "mirrorfs uninstall store1")
        left = {f"/etc/systemd/system/{unit}.service.d" for unit in ("mirrorfs@store1", "mirrorfs-drill@store1")}
        assert {path for path in server.traces() if "@store1" in path} == left, "what systemctl edit has added stays"
        assert not system.path("/etc/systemd/system/multi-user.target.wants/mirrorfs@store1.service").is_symlink()


def test_a_clone_is_installed(debian: Debian) -> None:
    debian.get("git")
    Typist(debian.run).literally("apt install debootstrap")
    run("git", "clone", "--quiet", "--bare", ROOT, debian.path("/srv/mirrorfs.git"))
    shell = Typist(debian.run)
    clone = "git clone URL /opt/mirrorfs"
    assert clone in (ROOT / "docs" / "getting-started.md").read_text()
    debian.run(*clone.replace("URL", "/srv/mirrorfs.git").split())
    shell.literally("/opt/mirrorfs/scripts/setup", "ln -s /opt/mirrorfs/.venv/bin/mirrorfs /usr/local/bin/mirrorfs")
    assert run("git", "-C", ROOT, "rev-parse", "HEAD").strip() in debian.run("/usr/local/bin/mirrorfs", "--version")
