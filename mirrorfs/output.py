"""The one way out of mirrorfs: to a terminal, to a log, and between its own processes.

Names, notes and error texts come from whoever wrote to the datastore, to the bucket, or answers for the store. Printed
as they are they could steer the administrator's terminal, forge a line of the log, or show one name and mean another
(control characters, bidirectional marks). So everything that is printed goes through this module, which shows what is
not printable as Python writes it in a string: `\\n`, `\\x1b`, `\\u202e`, `\\udcff` for a byte that is no UTF-8.

tests/test_output.py finds whatever else prints.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from datetime import UTC, datetime
from enum import Enum
from types import TracebackType

from mirrorfs import journald
from mirrorfs.events import EventRecord, event_of


class LogFormat(Enum):
    """How a record of the log looks: a line for people, or an object of JSON for a program that collects logs."""

    TEXT = "text"
    JSON = "json"


_CONTINUATION = "    "


def printable(text: str) -> str:
    """Return the text as one line in which nothing but visible characters and blanks stands.

    Escapes control and format characters, line ends, separators, and unpaired surrogates. A backslash stays as it is:
    this is for reading, not for reading back.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def say(*lines: str, err: bool = False) -> None:
    """Print lines for a person to standard output, or with `err` to standard error.

    Each argument is one line, whatever is in it.
    """
    stream = sys.stderr if err else sys.stdout
    encoding = stream.encoding or "utf-8"
    for line in lines:
        # What the terminal cannot show is escaped too, instead of ending the command.
        print(printable(line).encode(encoding, "backslashreplace").decode(encoding), file=stream)
    stream.flush()


def say_json(value: object, *, indent: int | None = None) -> None:
    """Print a value as JSON to standard output, for a program: lossless, in ASCII, one line without `indent`."""
    print(json.dumps(value, indent=indent), flush=True)


def begin_log(
    process: str,
    *,
    verbose: bool = False,
    log_format: LogFormat = LogFormat.TEXT,
    events: str | None = None,
    datastore: str | None = None,
) -> None:
    """Log to standard error from now on, each record as "TIME PROCESS LEVEL MESSAGE" on one line, or as JSON.

    Tracebacks follow it, indented: no line that begins with a time is anything but a record. What Python prints by
    itself (warnings, errors that nobody caught) becomes records too. `events` is the file of a record of events. Under
    systemd, records become entries of its journal, in which `datastore` is a field.
    """
    handler = _LogHandler(sys.stderr.fileno())
    as_text = LineFormatter(f"%(asctime)s {process} %(levelname)s %(message)s")
    handler.setFormatter(as_text if log_format is LogFormat.TEXT else JSONFormatter(process))
    root = logging.getLogger()
    root.addHandler(_journal(process, datastore, handler) if _goes_to_the_journal(log_format) else handler)
    if events is not None:
        root.addHandler(EventRecord(events))
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    sys.unraisablehook = _log_unraisable
    threading.excepthook = _log_uncaught_in_thread


def _goes_to_the_journal(log_format: LogFormat) -> bool:
    return log_format is LogFormat.TEXT and journald.is_standard_error()


def _journal(process: str, datastore: str | None, otherwise: logging.Handler) -> logging.Handler:
    handler = journald.JournalHandler(process, datastore, otherwise)
    # Time and level are the journal's own.
    handler.setFormatter(LineFormatter(f"{process}: %(message)s"))
    return handler


class _LogHandler(logging.Handler):
    """Writes records to a file as they come, without a buffer; it belongs to whoever opened it.

    A disk that is full, or sick, must neither end the process nor leave half a line before the next record. How many
    records are missing is logged as soon as that can be.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._file = open(descriptor, "wb", buffering=0, closefd=False)  # noqa: SIM115 - as long as the process runs
        self._is_amid_line = False
        self._missing = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            lines = self.format(record)
        except (TypeError, ValueError, KeyError):
            # Arguments that do not fit the message: as with any handler, that shows.
            self.handleError(record)
            return
        try:
            self._write_missing()
            self._write(lines)
        except OSError:
            self._missing += 1

    def _write_missing(self) -> None:
        if self._missing:
            told = journald.missing_records(self._missing)
            self._write(self.format(logging.makeLogRecord(told)))
            self._missing = 0

    def _write(self, lines: str) -> None:
        before = "\n" if self._is_amid_line else ""
        left = memoryview(f"{before}{lines}\n".encode("utf-8", "backslashreplace"))
        while left:
            left = left[self._file.write(left) :]
            self._is_amid_line = bool(left)


class LineFormatter(logging.Formatter):
    """Formats a record as one line, and what belongs to it as indented ones."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the record's own line."""
        return printable(super().formatMessage(record))

    def formatException(
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None],
    ) -> str:
        """Return the traceback, indented."""
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        """Return the stack, indented."""
        return _indented(super().formatStack(stack_info))


class JSONFormatter(logging.Formatter):
    """Formats a record as one object of JSON on one line, in ASCII, with its traceback in it."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the object: time (RFC 3339, UTC), process, level, logger, message, event and traceback if it has one.

        Of an event it also has what that is about, such as the snapshot.
        """
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "process": self._process,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (event := event_of(record)) is not None:
            told = {**event[1], **told, "event": event[0]}
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told)


def escape_tracebacks() -> None:
    """Have an error that nobody caught printed as a traceback in which nothing steers the terminal."""
    sys.excepthook = _say_uncaught


def _indented(text: str) -> str:
    return "\n".join(f"{_CONTINUATION}{printable(line)}" for line in text.split("\n"))


def _say_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    say(*logging.Formatter().formatException((kind, error, trace)).split("\n"), err=True)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger(__name__).critical("ended by an error that nobody expected", exc_info=(kind, error, trace))


def _log_unraisable(args: sys.UnraisableHookArgs) -> None:
    error = args.exc_value
    logging.getLogger(__name__).error(
        "%s: %r",
        args.err_msg or "an error that could not be raised",
        args.object,
        exc_info=None if error is None else (type(error), error, error.__traceback__),
    )


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    error = args.exc_value
    logging.getLogger(__name__).error(
        "a thread was ended by an error that nobody expected",
        exc_info=None if error is None else (type(error), error, error.__traceback__),
    )
