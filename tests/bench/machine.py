"""Where the figures come from: the machine, its load, and the versions of what takes part."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from tests.stores.seaweedfs import weed_binary


def machine_facts(directory: Path, rival: Sequence[str] = ("bindfs", "--version")) -> dict[str, str]:
    """What a reader of the figures has to know; `directory` is where the datastores stand, `rival` tells the version
    of what is compared with."""
    name = os.path.basename(rival[0])
    return {
        "processor": f"{os.cpu_count()} x {_processor_name()}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "file system": _first_line("findmnt", "--noheadings", "--output", "FSTYPE,OPTIONS", "--target", str(directory)),
        "python": platform.python_version(),
        "mirrorfs": version("mirrorfs"),
        "pyfuse3": version("pyfuse3"),
        "trio": version("trio"),
        "libfuse": _first_line("pkg-config", "--modversion", "fuse3"),
        name: _first_line(*rival).removeprefix(f"{name} "),
        "object store": f"SeaweedFS {_weed_version()} on the same machine",
    }


def load_average() -> float:
    """Processes that ran or waited to, averaged over the last minute."""
    return os.getloadavg()[0]


def _processor_name() -> str:
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _weed_version() -> str:
    found = re.search(r"\d+\.\d+", _first_line(str(weed_binary()), "version").removeprefix("version 8000GB "))
    return found[0] if found else "of unknown version"


def _first_line(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    return " ".join(done.stdout.splitlines()[0].split())
