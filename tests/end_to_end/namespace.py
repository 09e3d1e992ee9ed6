"""A shell in a namespace of mounts of its own, in which lines are run as they stand in helps and documents.

What these call `/mnt`, `/srv`, `/root`, `/etc/mirrorfs` and so on is empty there, and gone at the end. Nothing in a
line is replaced but the address of the store.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.command_lines import COMMANDS
from tests.stores.seaweedfs import StoreServer

STORE1, MAIN = "/mnt/datastore/store1", "/mnt/datastore/main"
STATE = "/var/lib/mirrorfs/mnt-datastore-store1"
_ROOMS = ("/etc/mirrorfs", "/mnt", "/root", "/srv", "/run/mirrorfs", "/var/lib", "/var/tmp")
_REPOSITORY = Path(__file__).parents[2]
_SECONDS = 240.0
# 2026-01-01, when the harness makes the first backup of each group.
_BEGINNING = 1767225600
_EXAMPLE_ENDPOINT = re.compile(r"https://s3\.example\.com|http://127\.0\.0\.1:28208")

NEEDS = [
    pytest.mark.skipif(os.geteuid() != 0, reason="it makes a namespace of mounts"),
    pytest.mark.skipif(
        any(Path(sys.prefix).is_relative_to(room) or _REPOSITORY.is_relative_to(room) for room in _ROOMS),
        reason="the program lies where the examples have their own directories",
    ),
]
"""Marks of the tests that use it."""


class Namespace:
    """Runs lines of a shell in a namespace of mounts; notes those which are to be literal, and what failed of them."""

    def __init__(self, holder: subprocess.Popen[bytes], store: StoreServer, failing: Mapping[str, str]) -> None:
        self._root = Path(f"/proc/{holder.pid}/root")
        # nsenter's own --wd is a directory of ours.
        self._enter = ["nsenter", f"--mount=/proc/{holder.pid}/ns/mnt"]
        self._store, self._failing = store, failing
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
        """Run a line of the test's own; it has to succeed."""
        done = self._run(line)
        assert done.returncode == 0, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def literally(self, *lines: str) -> str:
        """Run lines as they stand where they are shown, one after the other; returns what they have printed."""
        printed = ""
        for line in lines:
            self.seen.add(line)
            done = self._run(self._with_our_store(line))
            expected = 1 if line in self._failing else 0
            if done.returncode != expected or "Traceback" in done.stderr:
                self.failures.append(f"{line}: {done.returncode}\n{done.stdout}{done.stderr}")
            printed += done.stdout
        return printed

    @contextmanager
    def literally_meanwhile(self, line: str, said: str) -> Iterator[str]:
        """Run one that does not end by itself; it is up when it says this, and Ctrl-C must end it in good order.

        Gives how lines are run beside it: it has a network of its own, with all ports, and without the store.
        """
        self.seen.add(line)
        alone = ["unshare", "--net", "bash", "-c", f"ip link set lo up && cd /root && exec {line}"]
        process = subprocess.Popen(
            [*self._enter, *alone],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # The shell of the test that is in the background would have it ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        with process:
            assert process.stdout is not None
            try:
                shown = []
                for heard in process.stdout:
                    shown.append(heard)
                    if said in heard:
                        break
                assert shown, line
                assert said in shown[-1], f"{line}: {shown}"
                yield f"nsenter --net=/proc/{process.pid}/ns/net"
                process.send_signal(signal.SIGINT)
                if process.wait(_SECONDS) != 0:
                    self.failures.append(f"{line}: {process.returncode} {shown}")
            finally:
                process.kill()

    def seen_from_outside(self, path: str) -> Path:
        """Where a path of the namespace lies for us."""
        return self._root / path.lstrip("/")

    def harness(self, line: str) -> None:
        """Have the harness' imitation of PBS do something."""
        self.do(f"'{sys.executable}' -m tests.harness {line}")

    def _with_our_store(self, line: str) -> str:
        return _EXAMPLE_ENDPOINT.sub(self._store.endpoint_url, line)

    def _run(self, line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._enter, "bash", "-o", "pipefail", "-c", f"cd /root\n{line}"],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )


def hours_since_the_harness_began() -> int:
    """The generation of a backup that the harness would have made now: it counts hours."""
    return int((time.time() - _BEGINNING) // 3600)


@contextmanager
def namespace(store: StoreServer, failing: Mapping[str, str]) -> Iterator[Namespace]:
    """Make one, with a store; `failing` are the lines that have to end with 1, with the reason."""
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
        made = Namespace(holder, store, failing)
        try:
            yield made
        finally:
            for datastore in (STORE1, MAIN):
                made._run(f"mirrorfs umount {datastore} || umount --lazy {datastore}")
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.close()
        holder.stdout.close()
