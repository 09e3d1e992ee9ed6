"""Under systemd each record is an entry of the journal with fields of its own, and nothing waits for the journal."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mirrorfs import journald
from mirrorfs.journald import JournalHandler, encoded

_HOSTILE = "vm/100\nPRIORITY=0\nMESSAGE=forged\x1b[2J\udcff"
_PROCESS = """
import logging, os
from mirrorfs import journald
from mirrorfs.events import EventName, about
from mirrorfs.output import LogFormat, begin_log
journald.SOCKET = {socket!r}
status = os.fstat(2)
os.environ["JOURNAL_STREAM"] = {stream!r} or f"{{status.st_dev}}:{{status.st_ino}}"
begin_log("uploader", datastore="/srv/a", log_format=LogFormat({log_format!r}))
log = logging.getLogger("mirrorfs.test")
log.info("%s published", {hostile!a}, extra=about(EventName.PUBLISHED, snapshot={hostile!a}, priority="0"))
try:
    raise ValueError({hostile!a})
except ValueError:
    log.exception("it failed")
log.error("x" * 3_000_000)
"""


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    """The journal's socket, played."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "socket"))
        listening.settimeout(20)
        yield listening


def _run(path: Path, stream: str = "", log_format: str = "text") -> str:
    source = _PROCESS.format(socket=str(path), stream=stream, log_format=log_format, hostile=_HOSTILE)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, check=True, timeout=60)
    return done.stderr.decode()


def _entry(listening: socket.socket) -> dict[str, str]:
    data, descriptors, _, _ = socket.recv_fds(listening, 1 << 20, 1)
    if descriptors:
        with os.fdopen(descriptors[0], "rb") as file:
            file.seek(0)
            data = file.read()
    fields = {}
    while data:
        name, _, data = data.partition(b"\n")
        if b"=" in name:
            name, _, value = name.partition(b"=")
        else:
            length = int.from_bytes(data[:8], "little")
            value, data = data[8 : 8 + length], data[9 + length :]
        assert name not in fields
        fields[name.decode()] = value.decode()
    return fields


def test_records_are_entries_with_fields_that_nobody_forges(journal: socket.socket, tmp_path: Path) -> None:
    assert _run(tmp_path / "socket") == ""
    event, failure, long = (_entry(journal) for _ in range(3))
    shown = "vm/100\\nPRIORITY=0\\nMESSAGE=forged\\x1b[2J\\udcff"
    assert event == {
        "MESSAGE": f"uploader: {shown} published",
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "mirrorfs",
        "MIRRORFS_PROCESS": "uploader",
        "MIRRORFS_LOGGER": "mirrorfs.test",
        "MIRRORFS_DATASTORE": "/srv/a",
        "MIRRORFS_EVENT": "published",
        "MIRRORFS_SNAPSHOT": _HOSTILE.replace("\udcff", "\\udcff"),
        "MIRRORFS_PRIORITY": "0",
    }
    assert (failure["PRIORITY"], "MIRRORFS_EVENT" in failure) == ("3", False)
    first, *rest = failure["MESSAGE"].split("\n")
    assert first == "uploader: it failed"
    assert rest
    assert all(line.startswith("    ") for line in rest)
    assert len(long["MESSAGE"]) > 3_000_000


@pytest.mark.parametrize("stream", ["1:2", "nonsense", ":", "-1:5", "１:２"])
def test_who_was_not_started_by_systemd_logs_to_standard_error(
    journal: socket.socket, tmp_path: Path, stream: str
) -> None:
    assert "uploader ERROR it failed" in _run(tmp_path / "socket", stream)
    journal.setblocking(False)
    with pytest.raises(BlockingIOError):
        journal.recv(10)


def test_json_that_is_asked_for_stays_json(tmp_path: Path) -> None:
    assert _run(tmp_path / "socket", log_format="json").startswith('{"')


def test_a_journal_that_is_gone_or_hangs_is_not_waited_for(journal: socket.socket, tmp_path: Path) -> None:
    assert "uploader ERROR it failed" in _run(tmp_path / "nowhere")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filling:
        filling.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                filling.sendto(b"x" * 1000, str(tmp_path / "socket"))
    # Standard error is the same journal: a write to it would wait.
    assert _run(tmp_path / "socket") == ""


def test_how_many_records_a_journal_that_hung_has_missed_is_logged(
    journal: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journald, "SOCKET", str(tmp_path / "socket"))

    class Fails(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise AssertionError(record.getMessage())

    handler = JournalHandler("mount", "/srv/a", Fails())
    record = logging.makeLogRecord({"name": "test", "msg": "said", "levelno": logging.INFO})
    sent = 0
    while not handler.missing:
        handler.emit(record)
        sent += 1
    handler.emit(record)
    assert [_entry(journal)["MESSAGE"] for _ in range(sent - 1)] == ["said"] * (sent - 1)
    handler.emit(record)
    missed, last = _entry(journal), _entry(journal)
    assert missed["MESSAGE"] == "2 records are missing here: they could not be written"
    assert (missed["PRIORITY"], last["MESSAGE"]) == ("4", "said")
    handler.close()


def test_a_value_with_a_line_end_has_its_length() -> None:
    assert encoded({"A": "b", "C": "d\ne"}) == b"A=b\nC\n\x03\x00\x00\x00\x00\x00\x00\x00d\ne\n"
    assert journald.SOCKET == "/run/systemd/journal/socket"
