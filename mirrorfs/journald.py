"""Records of the log in systemd's journal, with fields to search by: datastore, event, snapshot.

The protocol is systemd's own, which it promises to keep (systemd.io/JOURNAL_NATIVE_PROTOCOL): a datagram of fields, or,
where that is too long, a sealed file that is passed. Nothing here waits: a journal that hangs holds up nobody. How many
records it has not taken is logged as soon as it takes some again.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import struct
from collections.abc import Mapping

from mirrorfs.events import event_of

SOCKET = "/run/systemd/journal/socket"
_STANDARD_ERROR = 2
# syslog(3)
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_LENGTH = struct.Struct("<Q")


def is_standard_error() -> bool:
    """Tell whether standard error goes to the journal, as systemd says in JOURNAL_STREAM (systemd.exec(5))."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    if not (device.isdecimal() and inode.isdecimal()):
        return False
    status = os.fstat(_STANDARD_ERROR)
    return (int(device), int(inode)) == (status.st_dev, status.st_ino)


class JournalHandler(logging.Handler):
    """Sends records to the journal; where there is none they go to another handler."""

    def __init__(self, process: str, datastore: str | None, otherwise: logging.Handler) -> None:
        super().__init__()
        self._process = process
        self._datastore = datastore
        self._otherwise = otherwise
        self.missing = 0
        """How many records it has not taken, which is not logged yet."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record."""
        try:
            fields = self._fields(record)
        except (TypeError, ValueError, KeyError):
            # Arguments that do not fit the message: as with any handler, that shows.
            self.handleError(record)
            return
        try:
            self._send_missing()
            self._send(encoded(fields))
        except BlockingIOError:
            # Standard error leads to the same journal, and a write to that would wait for it.
            self.missing += 1
        except OSError:
            self._otherwise.handle(record)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()

    def _fields(self, record: logging.LogRecord) -> dict[str, str]:
        fields = {
            "MESSAGE": self.format(record),
            "PRIORITY": str(_PRIORITIES.get(record.levelno, 6)),
            "SYSLOG_IDENTIFIER": "mirrorfs",
            "MIRRORFS_PROCESS": self._process,
            "MIRRORFS_LOGGER": record.name,
        }
        event = event_of(record)
        if event is not None:
            about = {f"MIRRORFS_{name.upper()}": text for name, text in event[1].items()}
            fields = {**about, **fields, "MIRRORFS_EVENT": event[0]}
        if self._datastore is not None:
            fields["MIRRORFS_DATASTORE"] = self._datastore
        return fields

    def _send_missing(self) -> None:
        if self.missing:
            told = missing_records(self.missing)
            self._send(encoded(self._fields(logging.makeLogRecord(told))))
            self.missing = 0

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendto(data, SOCKET)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._send_as_file(data)

    def _send_as_file(self, data: bytes) -> None:
        descriptor = os.memfd_create("mirrorfs-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(descriptor, left) :]
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
            right = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("@i", descriptor))]
            self._socket.sendmsg([], right, 0, SOCKET)
        finally:
            os.close(descriptor)


def missing_records(count: int) -> dict[str, object]:
    """Return what a record says that stands where others are missing, for `logging.makeLogRecord`."""
    return {
        "name": __name__,
        "levelno": logging.WARNING,
        "levelname": logging.getLevelName(logging.WARNING),
        "msg": "%d records are missing here: they could not be written",
        "args": (count,),
    }


def encoded(fields: Mapping[str, str]) -> bytes:
    """Write fields as the protocol wants them. Whatever is in a value, it stays that value's."""
    data = bytearray()
    for name, text in fields.items():
        value = text.encode("utf-8", "backslashreplace")
        if b"\n" in value:
            data += b"%s\n%s%s\n" % (name.encode(), _LENGTH.pack(len(value)), value)
        else:
            data += b"%s=%s\n" % (name.encode(), value)
    return bytes(data)
