"""The record beside a deleted snapshot: what was written is read, and nothing else is believed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.datastore.deletion import Deletion, parse_deletion
from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.limits import LONGEST_DELETION

times = st.floats(0, 253402214400)
texts = st.none() | st.text(st.characters(exclude_categories=["Cs"]))


@given(st.builds(Deletion, times, times, texts, texts))
def test_round_trip(deletion: Deletion) -> None:
    assert parse_deletion(deletion.encode()) == deletion


def test_times_alone_suffice_and_other_fields_are_passed_over() -> None:
    assert parse_deletion(b'{"deleted": 1, "until": 2.5, "mood": ["x"]}') == Deletion(1.0, 2.5)
    assert parse_deletion(b'{"deleted": 1, "until": 2, "owner": "", "notes": null}') == Deletion(1.0, 2.0, "")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[1, 2]",
        b"{}",
        b'{"deleted": 1}',
        b'{"deleted": 1, "until": null}',
        b'{"deleted": "1", "until": 2}',
        b'{"deleted": true, "until": 2}',
        b'{"deleted": -1, "until": 2}',
        b'{"deleted": 1, "until": 1e300}',
        b'{"deleted": 1, "until": NaN}',
        b'{"deleted": 1, "until": -Infinity}',
        b'{"deleted": 1, "until": ' + b"9" * 300 + b"}",
        b'{"deleted": 1, "until": ' + b"9" * 5000 + b"}",
        b'{"deleted": 1, "until": 2, "owner": 3}',
        b'{"deleted": 1, "until": 2, "owner": ["root@pam"]}',
        b'{"deleted": 1, "until": 2, "notes": "\\ud800"}',
        b"[" * 100_000,
        json.dumps({"deleted": 1, "until": 2, "notes": "x" * LONGEST_DELETION}).encode(),
    ],
)
def test_what_is_no_record_is_refused(data: bytes) -> None:
    with pytest.raises(DatastoreError, match=r"deleted\.json"):
        parse_deletion(data)


@given(st.binary() | st.recursive(st.none() | st.text() | st.floats(), st.lists).map(lambda v: json.dumps(v).encode()))
def test_nothing_else_is_raised(data: bytes) -> None:
    try:
        parse_deletion(data)
    except DatastoreError:
        return
    assert b"deleted" in data
