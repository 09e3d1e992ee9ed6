"""The commands of the documents are run as they stand there, on paths and a bucket of those very names.

What equals an example of a help is run by test_help.py; what needs a system with services, by tests/service.
tests/test_typed_lines.py holds that no line is forgotten.
"""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime

import pytest

from tests.documents import ROOT
from tests.end_to_end.namespace import MAIN, NEEDS, STATE, STORE1, Namespace, hours_since_the_harness_began, namespace
from tests.recovery.mirror import objects_of, upload
from tests.stores.seaweedfs import StoreServer, running_seaweedfs

pytestmark = NEEDS

_FIRST = "vm/100/2026-01-01T00:00:00Z"
_THEN = "2026-11-22T10:00:00Z"
FAILING = {
    f"mirrorfs restore s3://backups/store1 /mnt/restore --as-of {_THEN}": (
        "the bucket did not exist then; it is run once more as of a time at which it did"
    )
}
"""What ends with 1, with the reason."""


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_the_demonstration_brings_everything_back() -> None:
    done = subprocess.run(["bash", "-c", "scripts/demo"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert done.stdout.splitlines()[-1].startswith("All of it came back from the bucket: ")


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_every_command_of_the_documents_does_what_it_is_there_for() -> None:
    with running_seaweedfs() as store, namespace(store, FAILING) as shell:
        store.create_bucket("backups", versioned=True)
        shell.do("mkdir -p /mnt/datastore /mnt/big")
        _session(shell)
        _day_to_day(shell)
        _as_a_service_of_its_own(shell)
        _checks(shell)
        _deleted(shell)
        _held(shell)
        _host_burnt(shell)
        _back_from_a_pbs(shell, store)
        assert not shell.failures, "\n".join(shell.failures)


def _session(shell: Namespace) -> None:
    shell.literally(
        "python -m tests.harness create /mnt/datastore/store1",
        "mirrorfs config init /mnt/datastore/store1 --to s3://backups/store1 --endpoint-url http://127.0.0.1:28208",
        "mirrorfs mount store1",
        "python -m tests.harness backup /mnt/datastore/store1 vm/100 --size 200M",
        "python -m tests.harness backup /mnt/datastore/store1 vm/100 --size 200M",
        "python -m tests.harness backup /mnt/datastore/store1 ct/101 --size 50M",
        "mirrorfs wait store1",
    )
    assert "snapshots   3 published, 0 being published\n" in shell.literally("mirrorfs status store1")
    shell.literally(
        "mirrorfs umount --drain store1",
        "mv /mnt/datastore/store1 /mnt/datastore/lost",
        "mirrorfs restore s3://backups/store1 /mnt/datastore/store1 --endpoint-url http://127.0.0.1:28208",
    )
    compared = shell.literally("python -m tests.harness compare --ownership /mnt/datastore/lost /mnt/datastore/store1")
    assert compared.startswith("compared 3 snapshots")
    shell.do("rm -r /mnt/datastore/lost")


def _day_to_day(shell: Namespace) -> None:
    shell.do("mirrorfs mount store1 && mirrorfs wait store1")
    assert "/mnt/datastore/store1" in shell.literally("mirrorfs status")
    assert json.loads(shell.literally("mirrorfs status store1 --json"))["word"] == "healthy"
    assert [mount["condition"] for mount in json.loads(shell.literally("mirrorfs status --json"))] == ["serving"]
    shell.literally("mirrorfs status store1 --check --warning 2h --critical 12h")
    events = shell.literally("mirrorfs log store1 --json").splitlines()
    assert {"mounted", "published"} <= {json.loads(event)["event"] for event in events}
    with shell.literally_meanwhile("mirrorfs status store1 --watch     # live, until Ctrl-C", "healthy"):
        pass
    with shell.literally_meanwhile("mirrorfs status store1 --watch", "healthy"):
        pass
    with shell.literally_meanwhile("mirrorfs log store1 --follow", "mounted"):
        pass
    shell.do(f"cp -r {ROOT}/docs /root/docs")
    policy = shell.literally("sed 's/BUCKET/backups/; s/NAME/store1/' docs/policies/mirror.json")
    assert json.loads(policy)["Statement"]
    assert "BUCKET" not in policy
    assert "NAME" not in policy


def _as_a_service_of_its_own(shell: Namespace) -> None:
    printed = shell.literally(
        "mirrorfs metrics                              "
        "# Prometheus' text format, for the node exporter's textfile collector"
    )
    assert "\nmirrorfs_mount_up{" in printed
    served = "mirrorfs metrics --listen 127.0.0.1:9860      # served over HTTP, read anew at each request"
    with shell.literally_meanwhile(served, "serving metrics on") as beside:
        assert "\nmirrorfs_uploader_up{" in shell.do(f"{beside} curl -sS http://127.0.0.1:9860/metrics").stdout
    with shell.literally_meanwhile("mirrorfs web store1", "the page is at http://127.0.0.1:9861/") as beside:
        assert "<title>" in shell.do(f"{beside} curl -sS http://127.0.0.1:9861/").stdout
        assert json.loads(shell.do(f"{beside} curl -sS http://127.0.0.1:9861/live.json").stdout)


def _checks(shell: Namespace) -> None:
    shell.literally(
        "mirrorfs reconcile store1",
        "mirrorfs reconcile store1 --deep --dry-run",
        "mirrorfs reconcile store1 --deep",
        "mirrorfs verify s3://backups/store1",
        "mirrorfs drill store1 --group vm/100 --scratch /var/tmp",
        "mirrorfs drill s3://backups/store1 --keep-report /var/lib/mirrorfs/reports",
        "mirrorfs drill s3://backups/store1 --group vm/100 --latest 3 --scratch /mnt/big",
        "mirrorfs drill s3://backups/store1 --full --turns 5 --keep-report /var/lib/mirrorfs/reports",
    )
    assert shell.do("ls /var/lib/mirrorfs/reports").stdout.count(".md") == 3
    assert shell.do("ls -A /mnt/big /var/tmp").stdout.count("drill") == 0


def _deleted(shell: Namespace) -> None:
    before = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    shell.harness(f"forget {STORE1} {_FIRST}")
    shell.do("mirrorfs wait store1")
    for listed in (
        shell.literally("mirrorfs snapshots store1 --deleted"),
        shell.literally("mirrorfs snapshots s3://backups/store1 --deleted"),
    ):
        assert _FIRST in listed
    for line in (
        "mirrorfs restore store1 /mnt/restore --deleted --snapshot vm/100/2026-01-01T00:00:00Z",
        "mirrorfs restore s3://backups/store1 /mnt/restore --deleted --snapshot vm/100/2026-01-01T00:00:00Z",
    ):
        shell.literally(line)
        shell.do(f"test -s /mnt/restore/{_FIRST}/index.json.blob && rm -r /mnt/restore")
    shell.literally("mirrorfs snapshots s3://backups/store1 --as-of 3d")
    as_of = "mirrorfs restore s3://backups/store1 /mnt/restore --as-of 2026-11-22T10:00:00Z"
    shell.literally(as_of)
    shell.do(as_of.replace(_THEN, before))
    shell.do(f"test -s /mnt/restore/{_FIRST}/index.json.blob && rm -r /mnt/restore")
    shell.literally(
        "mirrorfs restore s3://backups/store1 --into /mnt/datastore/store1 --deleted "
        "--snapshot vm/100/2026-01-01T00:00:00Z"
    )
    shell.do(f"test -s {STORE1}/{_FIRST}/index.json.blob && mirrorfs wait store1")


def _held(shell: Namespace) -> None:
    shell.harness(f"namespace {STORE1} customers")
    shell.harness(f"backup {STORE1} ct/5 --namespace customers --size 1M")
    shell.harness(f"backup {STORE1} vm/102 --size 1M")
    for gone, line in (
        ("vm/100/2026-01-01T01:00:00Z ns/customers/ct/5", "mirrorfs retention approve store1 vm/100 ns/customers"),
        ("vm/102/2026-01-01T00:00:00Z", "mirrorfs retention approve store1"),
    ):
        shell.do(f"mirrorfs wait store1 && mirrorfs umount store1 && cd {STORE1} && rm -r {gone}")
        shell.do("mirrorfs mount store1 && mirrorfs reconcile store1")
        held = "mirrorfs status store1 --json | jq -e '.retention.held | length'"
        assert shell.do(held).stdout == f"{len(gone.split())}\n"
        shell.literally(line)
        shell.do("mirrorfs wait store1")
        assert shell.do(held).stdout == "0\n"


def _host_burnt(shell: Namespace) -> None:
    shell.harness(f"backup {STORE1} vm/100 --size 1M --generation {hours_since_the_harness_began() - 24}")
    shell.do(f"mirrorfs umount --drain {STORE1} && rm -r {STORE1} {STATE} /etc/mirrorfs/store1.toml")
    listed = shell.literally("mirrorfs snapshots s3://backups/store1 --endpoint-url https://s3.example.com")
    assert "ct/101/2026-01-01T00:00:00Z" in listed
    shell.literally(
        "mirrorfs restore s3://backups/store1 /mnt/datastore/store1 --group vm/100 --latest 1 "
        "--endpoint-url https://s3.example.com"
    )
    shell.do(f"test ! -e {STORE1}/ct/101")
    shell.literally(
        "mirrorfs restore s3://backups/store1 --into /mnt/datastore/store1 --endpoint-url https://s3.example.com",
        "mirrorfs mount /mnt/datastore/store1 --to s3://backups/store1 "
        "--endpoint-url https://s3.example.com --take-over",
    )
    shell.do(f"test -e {STORE1}/ct/101 && mirrorfs wait {STORE1}")
    shell.literally("mirrorfs restore s3://backups/store1 --into /mnt/datastore/store1 --group vm/100 --since 30d")


def _back_from_a_pbs(shell: Namespace, store: StoreServer) -> None:
    shell.do(f"mirrorfs umount --drain {STORE1} && mirrorfs handover s3://backups/store1")
    # What the PBS has made that had it.
    shell.harness(f"create {MAIN} --quick")
    shell.harness(f"backup {MAIN} vm/700 --size 1M")
    upload(store.access, "backups", "store1", objects_of(shell.seen_from_outside(MAIN)))
    shell.do("mirrorfs takeback s3://backups/store1")
    shell.literally("mirrorfs restore s3://backups/store1 --into /mnt/datastore/store1 --snapshot 'vm/700/*'")
    shell.do(f"test -e {STORE1}/vm/700/2026-01-01T00:00:00Z/index.json.blob")
