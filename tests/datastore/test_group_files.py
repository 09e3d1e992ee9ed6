"""What PBS can read as owner and notes of a group."""

from __future__ import annotations

import pytest

from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.group_files import check_notes, check_owner


@pytest.mark.parametrize(
    "data",
    [
        b"root@pam\n",
        b"root@pam",
        b"root@pam \n",
        b"backup@pbs!client-1\n",
        b"some.one@example.com@ldap_1\n",
        "müller@ldap\n".encode(),
        b"root@pam\nwhat PBS does not read\n",
    ],
)
def test_what_names_an_owner(data: bytes) -> None:
    check_owner(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"  \n",
        b"root",
        b"root@",
        b"@pam",
        b"root@pam!",
        b"root@pam!-x",
        b"ro ot@pam",
        b"ro:ot@pam",
        b"ro/ot@pam",
        b"root@pam\0",
        b"\0" * 9,
        b"\nroot@pam\n",
        b"\xff\xfe@pam",
        b"root@p am",
    ],
)
def test_what_names_none(data: bytes) -> None:
    with pytest.raises(DatastoreError, match="no owner"):
        check_owner(data)


@pytest.mark.parametrize("data", [b"", b"web shop\n", "für später".encode()])
def test_notes_that_are_text(data: bytes) -> None:
    check_notes(data)


@pytest.mark.parametrize("data", [b"\xff", b"caf\xe9", b"\xed\xa0\x80"])
def test_notes_that_are_none(data: bytes) -> None:
    with pytest.raises(DatastoreError, match="not text"):
        check_notes(data)
