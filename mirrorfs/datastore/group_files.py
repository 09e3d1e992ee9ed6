"""What stands in a group's files ``owner`` and ``notes``, by the rules of Proxmox Backup Server.

An owner is an ``Authid`` of ``proxmox-auth-api``: USER@REALM, or USER@REALM!TOKEN. PBS reads the first line of the file
and drops the white space at its end (``BackupGroup::get_owner``). Notes are read as UTF-8.
"""

from __future__ import annotations

import re

from mirrorfs.datastore.errors import DatastoreError

# PROXMOX_SAFE_ID_REGEX and USER_NAME_REGEX of proxmox-schema and proxmox-auth-api.
_SAFE_ID = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_AUTH_ID = re.compile(rf"[^\s:/\x00-\x1f\x7f-\x9f]+@{_SAFE_ID}(?:!{_SAFE_ID})?")


def check_owner(data: bytes) -> None:
    """Raise DatastoreError, whose message ends the sentence "the file …", unless PBS can read an owner from it."""
    if not data.strip():
        raise DatastoreError("is empty, so it names no owner")
    first_line, _, _ = data.partition(b"\n")
    try:
        owner = first_line.decode().rstrip()
    except UnicodeDecodeError:
        raise DatastoreError("names no owner: it is not text") from None
    if not _AUTH_ID.fullmatch(owner):
        raise DatastoreError("names no owner such as user@realm or user@realm!token")


def check_notes(data: bytes) -> None:
    """Raise DatastoreError, whose message ends the sentence "the file …", unless it is text."""
    try:
        data.decode()
    except UnicodeDecodeError:
        raise DatastoreError("is not text (UTF-8)") from None
