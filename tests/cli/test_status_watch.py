"""Watching shows rates, what is on its way and what does not answer, in bounded lines, and ends at Ctrl-C with 0."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mirrorfs.cli import status, status_watch
from mirrorfs.supervision import asking
from mirrorfs.supervision.asking import NoAnswer, UploaderSilent
from tests.cli.test_verdict import PROBLEM, _answer, _late

WELL = _answer(publishing={})


def _watched(monkeypatch: pytest.MonkeyPatch, *answers: Any, json_too: bool = False) -> Result:  # noqa: ANN401
    """Watch until there are no answers any more, and Ctrl-C is pressed."""
    left: Iterator[Any] = iter(answers)

    def ask(_: str, __: float = 10.0) -> dict[str, Any]:
        answer = next(left, KeyboardInterrupt())
        if isinstance(answer, BaseException):
            raise answer
        found: dict[str, Any] = answer
        return found

    monkeypatch.setattr(status, "require_root", lambda _: None)
    monkeypatch.setattr(status, "locate", lambda path: path)
    monkeypatch.setattr(asking, "ask_for_status", ask)
    monkeypatch.setattr(status_watch, "_SECONDS", 0.0)
    return CliRunner().invoke(status.command, ["/srv/a", "--watch", *(["--json"] if json_too else [])])


def test_without_a_terminal_there_is_a_line_at_each_change(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = _answer(publishing={"vm/1/2026-01-01T00:00:00Z": 5}, recovery_point=_late(2.0))
    faster = {**busy, "uploaded": {"objects": 9, "bytes": 9, "bytes_per_second": 9.0}}
    silent = UploaderSilent("the uploader of /srv/a does not run at this moment")
    done = _watched(monkeypatch, WELL, WELL, busy, faster, silent, silent, _answer(problems=[PROBLEM]))
    assert done.exit_code == 0
    lines = [line[22:] for line in done.output.splitlines()]
    assert [line.split(":")[0] for line in lines] == [
        "healthy", "healthy", "the uploader of /srv/a does not run at this moment", "broken",
    ]  # fmt: skip
    assert lines[1].endswith("0 published, 1 on their way, 2 missing, 0 problems")


def test_json_is_a_line_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    done = _watched(monkeypatch, WELL, NoAnswer("it was killed"), json_too=True)
    first, second = [json.loads(line) for line in done.output.splitlines()]
    assert (first["word"], second) == ("healthy", {"error": "it was killed"})


def test_nothing_to_watch_is_a_failure_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    done = _watched(monkeypatch, NoAnswer("no mirrorfs is mounted on /srv/a"))
    assert (done.exit_code, done.stderr) == (1, "Error: no mirrorfs is mounted on /srv/a\n")


@pytest.mark.parametrize("arguments", [["--watch"], ["/srv/a", "--watch", "--check"]])
def test_what_does_not_go_together_is_wrong_usage(arguments: list[str]) -> None:
    done = CliRunner().invoke(status.command, arguments)
    assert done.exit_code == 2
    assert "--watch shows one DATASTORE" in done.stderr


def test_the_view_has_rates_and_the_first_of_many() -> None:
    publishing = {f"vm/{number}/2026-01-01T00:00:00Z": number for number in range(1, 40)}
    problems = [{**PROBLEM, "name": f"vm/{number}"} for number in range(40)]
    answer = _answer(publishing=publishing, problems=problems, word="broken", why="It is.", to_do="Mend it.")
    lines = [line.text for line in status_watch._lines(answer, 3 * 1024.0)]
    assert "sending     3.0 KiB/s; 0 B/s in the last minute" in lines
    assert "  vm/1/2026-01-01T00:00:00Z: 1 chunks to go" in lines
    assert "  and 29 more" in lines
    assert "  and 35 more" in lines
    assert len(lines) < 32


def test_a_rate_is_of_one_uploader() -> None:
    rates = status_watch._Rates()
    assert rates.rate(WELL) is None
    assert rates.rate(WELL) == 0
    assert rates.rate({**WELL, "uploader": {**WELL["uploader"], "started": 2.0}}) is None


_ON_A_TERMINAL = """
from mirrorfs.cli import status
from mirrorfs.supervision import asking
from tests.cli.test_verdict import _answer
status.require_root, status.locate = lambda _: None, lambda path: path
asking.ask_for_status = lambda *_: _answer(publishing={"vm/1/2026-01-01T00:00:00Z": 5}, problems=[])
status.command(["/srv/a", "--watch"])
"""


def test_on_a_terminal_it_is_drawn_in_its_place_and_ends_in_order_at_ctrl_c() -> None:
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(its)
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(
        [sys.executable, "-c", _ON_A_TERMINAL],
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
        env=environment,
        cwd=Path(__file__).parents[2],
    ) as watching:
        shown = b""
        try:
            while shown.count(b"on their way") < 2:
                shown += os.read(ours, 4096)
            watching.send_signal(signal.SIGINT)
            assert watching.wait(30) == 0
            assert termios.tcgetattr(its) == before
            os.close(its)
            with contextlib.suppress(OSError):
                while data := os.read(ours, 4096):
                    shown += data
        finally:
            watching.kill()
            os.close(ours)
    # The cursor is shown again, and the last view stays.
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")
    assert b"vm/1/2026-01-01T00:00:00Z: 5 chunks to go" in shown
    assert b"Traceback" not in shown
    assert b"Aborted" not in shown
