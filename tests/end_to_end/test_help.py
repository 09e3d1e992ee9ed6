"""Every example in the help of every command is run as it stands there, on paths and buckets of those very names.

All of it happens in a namespace of mounts of its own: what the examples call `/mnt`, `/srv`, `/root`, `/etc/mirrorfs`
and so on is empty there, and gone at the end. Nothing in a line is replaced but the address of the store.
"""

from __future__ import annotations

import pytest

from tests.cli.command_lines import COMMANDS
from tests.cli.test_examples import help_of_examples
from tests.end_to_end.namespace import MAIN, NEEDS, STATE, STORE1, Namespace, hours_since_the_harness_began, namespace
from tests.recovery.mirror import objects_of, upload
from tests.stores.seaweedfs import StoreServer, running_seaweedfs

_NOBODY = "http://127.0.0.1:1"
# A backup that the examples name.
_NAMED_GENERATION = (325 * 24) + 10

NOT_RUN = {
    "mirrorfs install store1": "it needs systemd; tests/service/test_installation.py runs it on a tree of its own",
    "mirrorfs uninstall store1": "the same",
    "mirrorfs umount --drain store1": "the step before 'uninstall': below it is run by its path",
}
"""Each with the reason."""

FAILING = {
    "mirrorfs restore s3://backups/main /srv/before --as-of '2026-11-22 10:00' --bandwidth-limit 20M": (
        "the bucket did not exist then"
    ),
    "mirrorfs notify test store1": "its settings name nobody to be told",
    "mirrorfs retention approve /mnt/datastore/store1 vm/100": "nothing is held there",
    "mirrorfs retention approve /mnt/datastore/store1 vm/100 ns/customers": "the same",
}
"""What is run, and ends with 1, with the reason."""

pytestmark = NEEDS


def examples() -> set[str]:
    lines = (line.strip() for command in COMMANDS.values() for line in help_of_examples(command).splitlines())
    return {line for line in lines if "mirrorfs " in line}


# All that there is of commands, each a process or more: it takes minutes.
@pytest.mark.long
@pytest.mark.timeout(1500)
def test_every_example_does_what_it_is_an_example_of() -> None:
    with running_seaweedfs() as store, namespace(store, FAILING) as shell:
        for bucket in ("backups", "elsewhere"):
            store.create_bucket(bucket, versioned=True)
        _prepare(shell)
        _settings(shell)
        _mount(shell)
        _below_a_mount(shell)
        _until_interrupted(shell)
        _bucket(shell)
        _replay(shell)
        _handover(shell, store)
        assert not shell.failures, "\n".join(shell.failures)
        assert shell.seen | NOT_RUN.keys() == examples()


def _prepare(shell: Namespace) -> None:
    shell.do("mkdir -p /mnt/datastore /mnt/big /var/lib/prometheus/node-exporter")
    recent = hours_since_the_harness_began() - 24
    for datastore in (STORE1, MAIN):
        shell.harness(f"create {datastore} --quick")
        shell.harness(f"backup {datastore} vm/100 --size 1M")
        shell.harness(f"backup {datastore} vm/100 --size 1M --generation {_NAMED_GENERATION}")
        shell.harness(f"backup {datastore} vm/101 --size 1M --generation {recent}")
    shell.harness(f"namespace {STORE1} customers")
    # Whoever renames a group by hand has one whose manifests say otherwise.
    shell.do(f"cp -a {MAIN}/vm/100 {MAIN}/vm/100-old")


def _settings(shell: Namespace) -> None:
    shell.literally("mirrorfs config init /mnt/datastore/store1 --to s3://backups/store1 --retention-delete-after 30d")
    shell.do("rm /etc/mirrorfs/store1.toml")
    shell.literally(
        "mirrorfs config init /mnt/datastore/store1 --to s3://backups/store1 --endpoint-url https://s3.example.com",
        "mirrorfs config check store1",
        "mirrorfs config show store1",
        "mirrorfs config show store1 --json | jq '.parallel'",
    )


def _mount(shell: Namespace) -> None:
    shell.literally(
        "mirrorfs mount /mnt/datastore/store1 --to s3://backups/store1 --endpoint-url https://s3.example.com",
        "mirrorfs umount /mnt/datastore/store1",
        "mirrorfs mount /mnt/datastore/store1 --to s3://backups/store1",
        "mirrorfs umount --drain /mnt/datastore/store1",
        "mirrorfs mount store1",
    )


def _below_a_mount(shell: Namespace) -> None:
    shell.literally(
        "mirrorfs wait /mnt/datastore/store1",
        "mirrorfs wait /mnt/datastore/store1 --timeout 3600 && echo safe",
        "mirrorfs reload store1",
        "mirrorfs status /mnt/datastore/store1",
        "mirrorfs status /mnt/datastore/store1 --check --warning 2h --critical 12h",
        "mirrorfs status /mnt/datastore/store1 --json | jq .problems",
        "mirrorfs reconcile /mnt/datastore/store1 --deep --dry-run",
        "mirrorfs reconcile /mnt/datastore/store1 --deep",
        "mirrorfs retention approve /mnt/datastore/store1",
        "mirrorfs retention approve /mnt/datastore/store1 vm/100",
        "mirrorfs retention approve /mnt/datastore/store1 vm/100 ns/customers",
        "mirrorfs metrics > mirrorfs.new && mv mirrorfs.new /var/lib/prometheus/node-exporter/mirrorfs.prom",
        "mirrorfs doctor > report.txt",
        "mirrorfs log store1 --since 1d",
        """mirrorfs log store1 --json | jq 'select(.event == "problem")'""",
        "mirrorfs notify test store1",
        "mirrorfs notify failed store1 signal killed KILL",
        "mirrorfs heal /mnt/datastore/store1 --dry-run",
        "mirrorfs heal /mnt/datastore/store1",
        "mirrorfs heal /mnt/datastore/store1 --group 'vm/10*' --latest 1",
        "mirrorfs heal /mnt/datastore/store1 --json | jq '.lost[].path'",
        "mirrorfs heal /mnt/datastore/store1 --bucket --dry-run",
        "mirrorfs heal /mnt/datastore/store1 --bucket",
    )


def _until_interrupted(shell: Namespace) -> None:
    for line, said in (
        ("mirrorfs metrics --listen 127.0.0.1:9860", "serving metrics on 127.0.0.1, port 9860"),
        ("mirrorfs web store1", "the page is at http://127.0.0.1:9861/"),
        ("mirrorfs web /mnt/datastore/store1 --listen 127.0.0.1:8080", "the page is at http://127.0.0.1:8080/"),
        ("mirrorfs web store1 --listen [::]:9861", "its password is the token"),
        ("mirrorfs status /mnt/datastore/store1 --watch", "0 problems"),
        ("mirrorfs log store1 --follow", "mounted"),
    ):
        with shell.literally_meanwhile(line, said):
            pass


def _bucket(shell: Namespace) -> None:
    shell.do(f"mirrorfs mount {MAIN} --to s3://backups/main")
    shell.do(f"mirrorfs wait {MAIN}")
    shell.harness(f"forget {MAIN} vm/100/2026-01-01T00:00:00Z")
    shell.do(f"mirrorfs wait {MAIN}")
    shell.literally(
        "mirrorfs snapshots store1",
        "mirrorfs snapshots s3://backups/main --endpoint-url https://s3.example.com",
        "mirrorfs snapshots s3://backups/main --json | jq '.snapshots[].path'",
        "mirrorfs snapshots s3://backups/main --deleted",
        "mirrorfs snapshots s3://backups/main --as-of 3d",
        "mirrorfs restore s3://backups/main --into /mnt/datastore/main --deleted --group vm/100 --latest 1",
        "mirrorfs restore s3://backups/main --into /mnt/datastore/main --group 'vm/10*' --since 7d",
        "mirrorfs restore s3://backups/main /srv/before --as-of '2026-11-22 10:00' --bandwidth-limit 20M",
        "mirrorfs restore s3://backups/main /srv/one --snapshot vm/100/2026-11-22T10:00:00Z",
        "mirrorfs restore s3://backups/main /srv/old --group vm/100-old --renamed",
    )
    # A group that was renamed by hand is none that can be used without --renamed.
    shell.do(f"rm -r {MAIN}/vm/100-old && mirrorfs wait {MAIN}")
    shell.literally(
        "mirrorfs restore s3://backups/main /srv/datastore --latest 1 --dry-run",
        "mirrorfs restore s3://backups/main /srv/datastore",
        "mirrorfs verify s3://backups/main",
        "mirrorfs verify s3://backups/main --deep --resume /var/tmp/verify-main",
        "mirrorfs verify s3://backups/main --sample 5 --latest 1",
        "mirrorfs verify s3://backups/main --group 'vm/*' --since 7d",
        "mirrorfs verify s3://backups/main --json | jq '.damages[].path'",
        "mirrorfs drill s3://backups/main --keep-report /var/lib/mirrorfs/reports",
        "mirrorfs drill s3://backups/main --group vm/100 --latest 3 --scratch /mnt/big",
        "mirrorfs drill s3://backups/main --full --turns 5 --keep-report /var/lib/mirrorfs/reports",
        "mirrorfs drill s3://backups/main --group vm/100 --json | jq .listing_sha256",
    )
    shell.literally("mirrorfs heal /srv/datastore --from s3://backups/store1 --endpoint-url https://s3.example.com")


def _replay(shell: Namespace) -> None:
    shell.do(f"mirrorfs umount {STORE1}")
    # What no store has taken is pending.
    shell.do(f"MIRRORFS_MOUNT_ENDPOINT_URL={_NOBODY} mirrorfs mount store1")
    shell.harness(f"backup {STORE1} vm/100 --size 1M --generation {_NAMED_GENERATION + 1}")
    shell.do(f"mirrorfs umount {STORE1}")
    shell.do(f"cp -a {STATE} /root/state && cp -a {STATE} /root/copy-of-state && cp -a {STORE1} /mnt/rescued")
    shell.literally(
        "mirrorfs replay list store1",
        "mirrorfs replay list /var/lib/mirrorfs/mnt-datastore-store1 --pending",
        "mirrorfs replay list /var/lib/mirrorfs/mnt-datastore-store1 --pending --kind manifest --since 2d",
        "mirrorfs replay list /root/copy-of-state --path 'vm/100/*' --state --json",
        "mirrorfs replay plan /root/state --datastore /mnt/rescued",
        "mirrorfs replay plan /root/state --datastore /mnt/rescued --to s3://elsewhere/store1 --json",
        "mirrorfs replay run /root/state --datastore /mnt/rescued --to s3://elsewhere/store1 --work-dir /root/work",
        "mirrorfs replay export /var/lib/mirrorfs/mnt-datastore-store1 journal.jsonl",
        "mirrorfs replay export /var/lib/mirrorfs/mnt-datastore-store1 - | gzip > journal.jsonl.gz",
    )
    for line in (
        "mirrorfs replay import /var/lib/mirrorfs/mnt-datastore-store1 journal.jsonl",
        "zcat journal.jsonl.gz | mirrorfs replay import /var/lib/mirrorfs/mnt-datastore-store1 -",
    ):
        shell.do(f"rm -r {STATE}/journal")
        shell.literally(line)
    # The copy becomes the mirror for a while, and gives the bucket back.
    shell.literally("mirrorfs replay run /root/state --datastore /mnt/rescued --to s3://backups/store1")


def _handover(shell: Namespace, store: StoreServer) -> None:
    shell.do(f"rm -r {STATE} && cp -a /root/state {STATE} && mirrorfs mount store1")
    shell.literally(
        "mirrorfs umount --drain /mnt/datastore/store1",
        "mirrorfs handover store1 --dry-run",
        "mirrorfs handover s3://backups/store1 --endpoint-url https://s3.example.com",
        "mirrorfs takeback store1 --dry-run",
        "mirrorfs takeback s3://backups/store1 --endpoint-url https://s3.example.com",
    )
    shell.literally("mirrorfs handover s3://backups/store1 --stop --remove-own")
    # What the PBS has made that had it.
    shell.harness("create /mnt/of-pbs --quick")
    shell.harness("backup /mnt/of-pbs vm/700 --size 1M")
    upload(store.access, "backups", "store1", objects_of(shell.seen_from_outside("/mnt/of-pbs")))
    shell.do("mirrorfs takeback s3://backups/store1")
    shell.literally(
        "mirrorfs restore store1 --into store1 --snapshot 'vm/700/*'",
        "mirrorfs mount /mnt/datastore/store1 --to s3://backups/store1",
        "mirrorfs umount --drain /mnt/datastore/store1",
    )
