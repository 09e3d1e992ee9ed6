"""Reading what the kernel tells: by its format, and whatever else may come."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.chunkstore.events import MalformedEvents, parse
from mirrorfs.chunkstore.system_calls import (
    FAN_CLOSE_WRITE,
    FAN_CREATE,
    FAN_DELETE,
    FAN_MOVED_FROM,
    FAN_MOVED_TO,
    FAN_ONDIR,
    FAN_Q_OVERFLOW,
)

NAME = b"ab12" + b"0" * 60
_DFID_NAME, _DFID = 2, 3


def handle(number: int, length: int = 8) -> bytes:
    """A struct file_handle."""
    return struct.pack("=Ii", length, 1) + number.to_bytes(length, "little")


def event(mask: int, name: bytes = b"", directory: bytes = b"", kind: int = _DFID_NAME, version: int = 3) -> bytes:
    """One event, as fanotify(7) describes it, padded as the kernel pads it."""
    information = b""
    if directory:
        body = bytes(8) + directory + (name + b"\0" if kind == _DFID_NAME else b"")
        body += bytes(-(len(body) + 4) % 4)
        information = struct.pack("=BBH", kind, 0, 4 + len(body)) + body
    return struct.pack("=IBBHQii", 24 + len(information), version, 0, 24, mask, -1, 1) + information


def test_names_of_chunks_are_told_by_directory_and_each_once() -> None:
    bad = NAME + b".3.bad"
    data = b"".join(
        (
            event(FAN_CREATE, NAME + b".tmp_aB3dE6", handle(1)),
            event(FAN_MOVED_FROM, NAME + b".tmp_aB3dE6", handle(1)),
            event(FAN_MOVED_TO, NAME, handle(1)),
            event(FAN_CLOSE_WRITE, NAME, handle(1)),
            event(FAN_MOVED_TO, bad, handle(1)),
            event(FAN_DELETE, NAME, handle(2, 12)),
        )
    )
    events = parse(data)
    assert events.chunks == {handle(1): {NAME: None, bad: None}, handle(2, 12): {NAME: None}}
    assert (events.count, events.has_overflowed, events.directories_gone) == (6, False, set())


@pytest.mark.parametrize(
    "name", [NAME[:-1], NAME + b"0", NAME.upper(), NAME + b".x.bad", b"g" + NAME[1:], b"owner", b"", NAME + b".10.bad"]
)
def test_other_names_are_skipped(name: bytes) -> None:
    events = parse(event(FAN_CLOSE_WRITE, name, handle(1)))
    assert (events.chunks, events.count) == ({}, 1)


def test_directories_of_chunks_that_go_are_told_and_others_not() -> None:
    data = b"".join(
        (
            event(FAN_DELETE | FAN_ONDIR, b"ab12", handle(1)),
            event(FAN_MOVED_FROM | FAN_ONDIR, b"ab12", handle(2)),
            event(FAN_CREATE | FAN_ONDIR, b"ab12", handle(3)),
            event(FAN_DELETE | FAN_ONDIR, b"vm", handle(4)),
            event(FAN_DELETE, b"ab12", handle(5)),
            event(FAN_DELETE | FAN_ONDIR, NAME, handle(6)),
        )
    )
    events = parse(data)
    assert events.directories_gone == {handle(1), handle(2)}
    assert events.chunks == {}


def test_an_overflow_is_told_with_what_comes_beside_it() -> None:
    events = parse(event(FAN_MOVED_TO, NAME, handle(1)) + event(FAN_Q_OVERFLOW) + event(FAN_Q_OVERFLOW, b"", handle(1)))
    assert events.has_overflowed
    assert events.chunks == {handle(1): {NAME: None}}


def test_other_information_is_skipped() -> None:
    assert parse(event(FAN_CLOSE_WRITE, NAME, handle(1), kind=_DFID)).chunks == {}


@pytest.mark.parametrize(
    "data",
    [
        event(FAN_CLOSE_WRITE, NAME, handle(1), version=4),
        event(FAN_CLOSE_WRITE, NAME, handle(1))[:20],
        bytes(24),
        event(FAN_CLOSE_WRITE, NAME, handle(1))[:-4],
    ],
)
def test_what_is_not_understood_is_said(data: bytes) -> None:
    with pytest.raises(MalformedEvents):
        parse(data)


@given(st.binary(max_size=300))
def test_whatever_comes_is_read_or_refused(data: bytes) -> None:
    try:
        events = parse(data)
    except MalformedEvents:
        return
    assert events.count <= len(data) // 24
