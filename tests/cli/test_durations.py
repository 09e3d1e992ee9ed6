"""Durations on the command line."""

from __future__ import annotations

import pytest

from mirrorfs.cli.durations import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("45s", 45), ("30m", 1800), ("12h", 43200), ("30d", 2592000), ("2w", 1209600), (" 1 d ", 86400)],
)
def test_a_duration_is_in_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1.5h", "1y", "1d12h", "1e3s", "٣d", "9999999999d"])
def test_what_is_none_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration: give a number"):
        parse_duration(text)
