"""Whose the restored files are to be."""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass

from mirrorfs.datastore.quoting import cut, quoted
from mirrorfs.recovery.errors import RestoreError

_PBS_USER = "backup"


@dataclass(frozen=True, slots=True)
class Owner:
    """User and group by number, as chown(2) takes them."""

    user: int
    group: int


def default_owner() -> Owner:
    """backup:backup, as PBS runs, where this process may give files away and that user exists; else the
    caller.
    """
    if os.geteuid() == 0:
        try:
            entry = pwd.getpwnam(_PBS_USER)
        except KeyError:
            return Owner(os.geteuid(), os.getegid())
        return Owner(entry.pw_uid, entry.pw_gid)
    return Owner(os.geteuid(), os.getegid())


def parse_owner(text: str) -> Owner:
    """Read USER:GROUP, each a name or a number, or USER alone for its own group. Raises RestoreError."""
    user, separator, group = text.partition(":")
    try:
        if not separator:
            entry = pwd.getpwuid(_number(user)) if user.isdecimal() else pwd.getpwnam(user)
            return Owner(entry.pw_uid, entry.pw_gid)
        return Owner(
            _number(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid,
            _number(group) if group.isdecimal() else grp.getgrnam(group).gr_gid,
        )
    except (KeyError, ValueError) as error:
        # ValueError: a number of thousands of digits, or what no name can hold.
        raise RestoreError(
            f"{quoted(text)} names no owner: {cut(str(error.args[0]))}. Give USER:GROUP by names of this machine or by "
            "numbers."
        ) from None


def _number(text: str) -> int:
    number = int(text)
    # The highest one means "leave as it is" to chown(2).
    if number >= 2**32 - 1:
        raise RestoreError(f"{cut(text)} is not the number of a user or group.")
    return number
