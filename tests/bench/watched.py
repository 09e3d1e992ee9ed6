"""A program that is run to its end and watched: what it cost, and the most memory that it had."""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.processes import BenchFailed

_SAMPLE_MILLISECONDS = 20


@dataclass(frozen=True, slots=True)
class Watched:
    """Seconds and processor seconds; and in bytes the most memory of its own, and the most with what it had mapped."""

    seconds: float
    processor_seconds: float
    own_memory: int
    memory: int


def run_watched(command: Sequence[str], environment: Mapping[str, str]) -> Watched:
    """Run a program with more variables than ours. It ends with us. Raises BenchFailed where it fails."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
        )
        try:
            own, memory = _most_memory(process.pid)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
        if process.returncode != 0:
            said.seek(0)
            raise BenchFailed(f"{command[0]} has failed: {said.read().decode(errors='replace')[-500:]}")
    return Watched(time.perf_counter() - began, usage.ru_utime + usage.ru_stime, own, memory)


def _most_memory(pid: int) -> tuple[int, int]:
    """Look at a process until it ends; what the kernel tells afterwards begins with what we had when we forked."""
    ended, own, everything = select.poll(), 0, 0
    process = os.pidfd_open(pid)
    try:
        ended.register(process, select.POLLIN)
        while not ended.poll(_SAMPLE_MILLISECONDS):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            sizes = {
                name: int(rest.split()[0]) * 1024
                for name, _, rest in (line.partition(":") for line in lines)
                if name in ("RssAnon", "VmHWM")
            }
            own = max(own, sizes.get("RssAnon", 0))
            everything = max(everything, sizes.get("VmHWM", 0))
    finally:
        os.close(process)
    return own, everything
