"""What a fanotify group tells: fanotify(7) has the format. Pure: no system calls."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

from mirrorfs.chunkstore.system_calls import (
    FAN_DELETE,
    FAN_MOVED_FROM,
    FAN_ONDIR,
    FAN_Q_OVERFLOW,
)

# struct fanotify_event_metadata: event_len, vers, reserved, metadata_len, mask, fd, pid
_METADATA = struct.Struct("=IBBHQii")
_VERSION = 3
# struct fanotify_event_info_header, the fsid behind it, and the head of the struct file_handle behind that: info_type,
# pad, len, fsid, handle_bytes, handle_type
_INFORMATION = struct.Struct("=BBHQIi")
_DIRECTORY_AND_NAME = 2  # FAN_EVENT_INFO_TYPE_DFID_NAME
_HANDLE_AT = 12
_HANDLE_HEAD = 8
_chunk = re.compile(rb"[0-9a-f]{64}(?:\.[0-9]\.bad)?")
_directory = re.compile(rb"[0-9a-f]{4}")
_CHUNK_LENGTHS = frozenset((64, 70))
_DIRECTORY_LENGTH = 4
_GONE = FAN_DELETE | FAN_MOVED_FROM


class MalformedEvents(Exception):
    """The kernel tells what is not understood: a format of events that came after this program."""


@dataclass(slots=True)
class Events:
    """What a portion of events tells, as far as it may be about a chunk store.

    `chunks` are names that chunks have, by the handle (a struct file_handle) of their directory; `directories_gone` are
    the handles of directories from which one went that is called as those of chunks are; `has_overflowed` says that
    events were lost. `count` is how many events there were in all.
    """

    chunks: dict[bytes, dict[bytes, None]] = field(default_factory=dict)
    directories_gone: set[bytes] = field(default_factory=set)
    has_overflowed: bool = False
    count: int = 0


def parse(data: bytes) -> Events:
    """Read what read(2) of a fanotify group gave. Raises MalformedEvents."""
    events = Events()
    position, end = 0, len(data)
    try:
        while position < end:
            length, version, _, head, mask, _, _ = _METADATA.unpack_from(data, position)
            if version != _VERSION or length < _METADATA.size:
                raise MalformedEvents(f"version {version} of the kernel's events is not understood")
            if mask & FAN_Q_OVERFLOW:
                events.has_overflowed = True
            elif head < length:
                _take(events, data, position + head, position + length, mask)
            position += length
            events.count += 1
    # The latter when a name has no end.
    except (struct.error, ValueError) as error:
        raise MalformedEvents(f"an event of the kernel is cut off: {error}") from error
    return events


def _take(events: Events, data: bytes, position: int, end: int, mask: int) -> None:
    kind, _, _, _, handle_bytes, _ = _INFORMATION.unpack_from(data, position)
    if kind != _DIRECTORY_AND_NAME:
        return
    first = position + _HANDLE_AT
    name_at = first + _HANDLE_HEAD + handle_bytes
    name = data[name_at : data.index(b"\0", name_at, end)]
    if mask & FAN_ONDIR:
        if mask & _GONE and len(name) == _DIRECTORY_LENGTH and _directory.fullmatch(name):
            events.directories_gone.add(data[first:name_at])
    elif len(name) in _CHUNK_LENGTHS and _chunk.fullmatch(name):
        events.chunks.setdefault(data[first:name_at], {})[name] = None
