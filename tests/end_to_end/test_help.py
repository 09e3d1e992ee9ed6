"""Every example in the help of every command is run as it stands there, on paths and buckets of those very names.

All of it happens in a namespace of mounts of its own: what the examples call `/mnt`, `/srv`, `/root`, `/etc/mirrorfs`
and so on is empty there, and gone at the end. Nothing in a line is replaced but the address of the store.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.command_lines import COMMANDS
from tests.cli.test_examples import help_of_examples
from tests.recovery.mirror import objects_of, upload
from tests.stores.seaweedfs import StoreServer, running_seaweedfs

_STORE1, _MAIN = "/mnt/datastore/store1", "/mnt/datastore/main"
_STATE = "/var/lib/mirrorfs/mnt-datastore-store1"
_ROOMS = ("/etc/mirrorfs", "/mnt", "/root", "/srv", "/run/mirrorfs", "/var/lib", "/var/tmp")
_REPOSITORY = Path(__file__).parents[2]
_SECONDS = 240.0
_EXAMPLE_ENDPOINT = "https://s3.example.com"
_NOBODY = "http://127.0.0.1:1"
# A backup that the examples name, and the hours after 2026-01-01 by which the harness counts.
_NAMED_GENERATION = (325 * 24) + 10
_BEGINNING = 1767225600

NOT_RUN = {
    "mirrorfs install store1": "it needs systemd; tests/service/test_installation.py runs it on a tree of its own",
    "mirrorfs uninstall store1": "the same",
    "mirrorfs umount --drain store1": "the step before 'uninstall': below it is run by its path",
    "mirrorfs metrics --listen 127.0.0.1:9860": "it never ends, and its port may be taken; tests/cli/test_metrics.py",
    "mirrorfs status /mnt/datastore/store1 --watch": "it never ends; tests/cli/test_status.py",
    "mirrorfs log store1 --follow": "it never ends; tests/cli/test_log.py",
    "mirrorfs web store1": "it never ends; tests/end_to_end/test_web.py runs it on another port",
    "mirrorfs web /mnt/datastore/store1 --listen 127.0.0.1:8080": "the same",
    "mirrorfs web store1 --listen [::]:9861": "the same",
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

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="it makes a namespace of mounts"),
    pytest.mark.skipif(
        any(Path(sys.prefix).is_relative_to(room) or _REPOSITORY.is_relative_to(room) for room in _ROOMS),
        reason="the program lies where the examples have their own directories",
    ),
]


def examples() -> set[str]:
    lines = (line.strip() for command in COMMANDS.values() for line in help_of_examples(command).splitlines())
    return {line for line in lines if "mirrorfs " in line}


class Namespace:
    """Runs lines of a shell in a namespace of mounts; `run` notes which of the examples these were."""

    def __init__(self, holder: subprocess.Popen[bytes], store: StoreServer) -> None:
        self._root = Path(f"/proc/{holder.pid}/root")
        self._enter = ["nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", "bash", "-o", "pipefail", "-c"]
        self._store = store
        self.seen: set[str] = set()
        self.failures: list[str] = []
        endpoints = {
            f"MIRRORFS_{'_'.join(path).upper()}_ENDPOINT_URL": store.endpoint_url for path in [*COMMANDS, ("heal",)]
        }
        programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._environment = {
            **os.environ,
            **store.environment(),
            **endpoints,
            "PATH": programs,
            "PYTHONPATH": str(_REPOSITORY),
            # What the mount of `main` has removed is to be restored.
            "MIRRORFS_MOUNT_RETENTION_DELETE_AFTER": "30d",
        }

    def do(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a line of the test's own, or an example; it has to succeed."""
        done = self._run(line)
        assert done.returncode == 0, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def example(self, line: str) -> None:
        """Run an example as it stands."""
        self.seen.add(line)
        done = self._run(line.replace(_EXAMPLE_ENDPOINT, self._store.endpoint_url))
        expected = 1 if line in FAILING else 0
        if done.returncode != expected or "Traceback" in done.stderr:
            self.failures.append(f"{line}: {done.returncode}\n{done.stdout}{done.stderr}")

    def examples(self, *lines: str) -> None:
        """Run examples one after the other."""
        for line in lines:
            self.example(line)

    def seen_from_outside(self, path: str) -> Path:
        """Where a path of the namespace lies for us."""
        return self._root / path.lstrip("/")

    def harness(self, line: str) -> None:
        """Have the harness' imitation of PBS do something."""
        self.do(f"'{sys.executable}' -m tests.harness {line}")

    def _run(self, line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            # nsenter's own --wd is a directory of ours.
            [*self._enter, f"cd /root\n{line}"],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )


@contextmanager
def namespace(store: StoreServer) -> Iterator[Namespace]:
    rooms = " && ".join(f"mkdir -p {room} && mount -t tmpfs -o mode=0755 none {room}" for room in _ROOMS)
    # What is mounted by others must not live on in here.
    alone = r"""awk '$3 ~ /^fuse/ {print $2}' /proc/mounts | xargs -r -n 1 umount --lazy"""
    script = f"{alone}; {rooms} && cd / && echo ready && read -r line"
    holder = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        made = Namespace(holder, store)
        try:
            yield made
        finally:
            for datastore in (_STORE1, _MAIN):
                made._run(f"mirrorfs umount {datastore} || umount --lazy {datastore}")
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.close()
        holder.stdout.close()


# All that there is of commands, each a process or more: it takes minutes.
@pytest.mark.long
@pytest.mark.timeout(1500)
def test_every_example_does_what_it_is_an_example_of(tmp_path: Path) -> None:
    with running_seaweedfs() as store, namespace(store) as shell:
        for bucket in ("backups", "elsewhere"):
            store.create_bucket(bucket, versioned=True)
        _prepare(shell)
        _settings(shell)
        _mount(shell)
        _below_a_mount(shell)
        _bucket(shell)
        _replay(shell)
        _handover(shell, store)
        assert shell.failures == []
        assert shell.seen | NOT_RUN.keys() == examples()


def _prepare(shell: Namespace) -> None:
    shell.do("mkdir -p /mnt/datastore /mnt/big /var/lib/prometheus/node-exporter")
    recent = int((time.time() - _BEGINNING) // 3600) - 24
    for datastore in (_STORE1, _MAIN):
        shell.harness(f"create {datastore} --quick")
        shell.harness(f"backup {datastore} vm/100 --size 1M")
        shell.harness(f"backup {datastore} vm/100 --size 1M --generation {_NAMED_GENERATION}")
        shell.harness(f"backup {datastore} vm/101 --size 1M --generation {recent}")
    shell.harness(f"namespace {_STORE1} customers")
    # Whoever renames a group by hand has one whose manifests say otherwise.
    shell.do(f"cp -a {_MAIN}/vm/100 {_MAIN}/vm/100-old")


def _settings(shell: Namespace) -> None:
    shell.example("mirrorfs config init /mnt/datastore/store1 --to s3://backups/store1 --retention-delete-after 30d")
    shell.do("rm /etc/mirrorfs/store1.toml")
    shell.examples(
        "mirrorfs config init /mnt/datastore/store1 --to s3://backups/store1 --endpoint-url https://s3.example.com",
        "mirrorfs config check store1",
        "mirrorfs config show store1",
        "mirrorfs config show store1 --json | jq '.parallel'",
    )


def _mount(shell: Namespace) -> None:
    shell.examples(
        "mirrorfs mount /mnt/datastore/store1 --to s3://backups/store1 --endpoint-url https://s3.example.com",
        "mirrorfs umount /mnt/datastore/store1",
        "mirrorfs mount /mnt/datastore/store1 --to s3://backups/store1",
        "mirrorfs umount --drain /mnt/datastore/store1",
        "mirrorfs mount store1",
    )


def _below_a_mount(shell: Namespace) -> None:
    shell.examples(
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


def _bucket(shell: Namespace) -> None:
    shell.do(f"mirrorfs mount {_MAIN} --to s3://backups/main")
    shell.do(f"mirrorfs wait {_MAIN}")
    shell.harness(f"forget {_MAIN} vm/100/2026-01-01T00:00:00Z")
    shell.do(f"mirrorfs wait {_MAIN}")
    shell.examples(
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
    shell.do(f"rm -r {_MAIN}/vm/100-old && mirrorfs wait {_MAIN}")
    shell.examples(
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
    shell.example("mirrorfs heal /srv/datastore --from s3://backups/store1 --endpoint-url https://s3.example.com")


def _replay(shell: Namespace) -> None:
    shell.do(f"mirrorfs umount {_STORE1}")
    # What no store has taken is pending.
    shell.do(f"MIRRORFS_MOUNT_ENDPOINT_URL={_NOBODY} mirrorfs mount store1")
    shell.harness(f"backup {_STORE1} vm/100 --size 1M --generation {_NAMED_GENERATION + 1}")
    shell.do(f"mirrorfs umount {_STORE1}")
    shell.do(f"cp -a {_STATE} /root/state && cp -a {_STATE} /root/copy-of-state && cp -a {_STORE1} /mnt/rescued")
    shell.examples(
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
        shell.do(f"rm -r {_STATE}/journal")
        shell.example(line)
    # The copy becomes the mirror for a while, and gives the bucket back.
    shell.example("mirrorfs replay run /root/state --datastore /mnt/rescued --to s3://backups/store1")


def _handover(shell: Namespace, store: StoreServer) -> None:
    shell.do(f"rm -r {_STATE} && cp -a /root/state {_STATE} && mirrorfs mount store1")
    shell.examples(
        "mirrorfs umount --drain /mnt/datastore/store1",
        "mirrorfs handover store1 --dry-run",
        "mirrorfs handover s3://backups/store1 --endpoint-url https://s3.example.com",
        "mirrorfs takeback store1 --dry-run",
        "mirrorfs takeback s3://backups/store1 --endpoint-url https://s3.example.com",
    )
    shell.examples("mirrorfs handover s3://backups/store1 --stop --remove-own")
    # What the PBS has made that had it.
    shell.harness("create /mnt/of-pbs --quick")
    shell.harness("backup /mnt/of-pbs vm/700 --size 1M")
    upload(store.access, "backups", "store1", objects_of(shell.seen_from_outside("/mnt/of-pbs")))
    shell.do("mirrorfs takeback s3://backups/store1")
    shell.examples(
        "mirrorfs restore store1 --into store1 --snapshot 'vm/700/*'",
        "mirrorfs mount /mnt/datastore/store1 --to s3://backups/store1",
        "mirrorfs umount --drain /mnt/datastore/store1",
    )
