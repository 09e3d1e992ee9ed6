"""What is said of something that takes long, where nothing can be drawn."""

from __future__ import annotations

import pytest

from mirrorfs.cli.now_and_then import NowAndThen


def test_a_line_is_said_once_in_half_a_minute_and_made_only_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr("mirrorfs.cli.now_and_then.time.monotonic", lambda: now)
    made: list[float] = []

    def line() -> str:
        made.append(now)
        return f"at {now}"

    told = NowAndThen()
    for moment in (110.0, 129.9, 130.0, 159.9, 200.0, 200.0):
        now = moment
        told.say(line)
    assert made == [130.0, 200.0]
    assert capsys.readouterr().err == "at 130.0\nat 200.0\n"
