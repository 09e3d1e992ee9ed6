"""A log in which the uploader ends again and again is told from one in which it ends once, or is ended."""

from __future__ import annotations

import logging
import sys

from mirrorfs.output import LineFormatter
from tests.harness.crash_loop import crash_loops


def end_by(error: Exception, process: str = "uploader") -> str:
    """What the product logs of an error that nobody caught."""
    try:
        raise error
    except Exception:  # noqa: BLE001 - whatever it is, it is logged
        information = sys.exc_info()
    record = logging.LogRecord("x", logging.CRITICAL, "x", 1, "ended by an error that nobody expected", (), information)
    return LineFormatter(f"%(asctime)s {process} %(levelname)s %(message)s").format(record) + "\n"


def test_it_is_named_by_its_error() -> None:
    error = ExceptionGroup("of a nursery", [ValueError("of the store's answer")])
    ended = end_by(error) + "2026-01-01 00:00:00,000 mount ERROR the uploader ended unexpectedly (exit code 1)\n"
    assert [*crash_loops(ended * 2)] == []
    (sentence,) = crash_loops(ended * 3 + end_by(KeyError("another")) * 2)
    assert sentence.startswith("P2 crash loop: the uploader has ended 3 times ")
    assert sentence.endswith("ValueError: of the store's answer")


def test_what_is_none() -> None:
    killed = "2026-01-01 00:00:00,000 mount ERROR the uploader ended unexpectedly (killed by signal 9); starting\n"
    assert [*crash_loops(killed * 9)] == []
    assert [*crash_loops(end_by(ValueError("of a command"), "mount") * 9)] == []
