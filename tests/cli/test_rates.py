"""Rates as people write them."""

from __future__ import annotations

import pytest

from mirrorfs.cli.rates import parse_rate, shown_rate


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("500", 500), ("500k", 500e3), ("500K", 500e3), ("20M", 20e6), ("1.5G", 1.5e9), ("20 MB/s", 20e6),
        ("20 MiB/s", 20 * 1024**2), ("20MiB", 20 * 1024**2), ("16 KiB/s", 16384), ("160 Mbit/s", 20e6),
    ],
)  # fmt: skip
def test_a_rate_is_in_bytes_a_second(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "0", "0 MiB/s", "-1", "fast", "20 mib/s", "20 MiB/h", "1e6", "20 Kbyte", "nan"])
def test_what_is_none_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="is not a rate: give bytes a second"):
        parse_rate(text)


@pytest.mark.parametrize("rate", [1.0, 500e3, 1024.0, 20 * 1024.0**2, 3 * 1024.0**3])
def test_what_is_shown_is_understood(rate: float) -> None:
    assert parse_rate(shown_rate(rate)) == rate
