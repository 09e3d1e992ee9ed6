"""The uploader goes after others, by as much as it is told to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mirrorfs.replication import priority

_PROGRAM = """
import json, os, subprocess, threading
from mirrorfs.replication.priority import DiskPriority, yield_to_others
yield_to_others({nice}, DiskPriority({disk!r}))
found = {{}}
def look():
    found["nice"] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    found["disk"] = subprocess.check_output(["ionice", "-p", str(threading.get_native_id())], text=True).strip()
thread = threading.Thread(target=look)
thread.start()
thread.join()
print(json.dumps(found))
"""


def found_after(nice: int, disk: str, *, begun_with: int = 0) -> dict[str, object]:
    program = _PROGRAM.format(nice=nice, disk=disk)
    command = ["nice", "-n", str(begun_with), sys.executable, "-c", program]
    found: dict[str, object] = json.loads(subprocess.check_output(command))
    return found


@pytest.mark.parametrize(("nice", "disk", "shown"), [(19, "low", "best-effort: prio 7"), (19, "idle", "idle")])
def test_threads_that_begin_later_have_the_priority_that_was_asked_for(nice: int, disk: str, shown: str) -> None:
    assert found_after(nice, disk) == {"nice": nice, "disk": shown}


def test_what_was_begun_with_a_lower_priority_keeps_it() -> None:
    assert found_after(3, "normal", begun_with=17)["nice"] == 17


@pytest.mark.parametrize(("mount", "uploader"), [(-900, 0), (0, 0), (300, 300)])
def test_it_is_ended_before_the_mount_when_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mount: int, uploader: int
) -> None:
    # Played by a file: containers may not protect a process.
    score = tmp_path / "oom_score_adj"
    score.write_text(f"{mount}\n")
    monkeypatch.setattr(priority, "_OOM_SCORE", str(score))
    priority.yield_to_others(0, priority.DiskPriority.NORMAL)
    assert int(score.read_text()) == uploader


def test_the_kernel_knows_that_score() -> None:
    assert -1000 <= int(Path(priority._OOM_SCORE).read_text()) <= 1000
