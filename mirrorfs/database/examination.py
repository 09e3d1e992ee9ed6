"""`python -m mirrorfs.database.examination DIRECTORY [DATABASE…]`: reads an LMDB environment; fails where it cannot.

For `Environment` alone, which has this done where reading could end the process.
"""

from __future__ import annotations

import os
import sys

import lmdb

from mirrorfs.output import say

DAMAGED = 3
"""The exit code that says so; every other one but 0 leaves the question open."""

_MOST_DATABASES = 32
# `lmdb.Error` itself stands for what the operating system answered and LMDB has no name for.
_NOT_OF_DAMAGE = (
    lmdb.Error,
    lmdb.DiskError,
    lmdb.MemoryError,
    lmdb.LockError,
    lmdb.ReadonlyError,
    lmdb.ReadersFullError,
    lmdb.TlsFullError,
)


def main() -> int:
    """Read every entry of the named databases, of all if none is named; a signal says that something is damaged."""
    directory, *wanted = sys.argv[1:]
    if not os.path.getsize(os.path.join(directory, "data.mdb")):
        return 0
    try:
        _read(directory, [name.encode() for name in wanted])
    except lmdb.Error as error:
        say(str(error), err=True)
        return 1 if type(error) in _NOT_OF_DAMAGE else DAMAGED
    return 0


def _read(directory: str, wanted: list[bytes]) -> None:
    environment = lmdb.open(directory, readonly=True, create=False, max_dbs=_MOST_DATABASES)
    with environment.begin() as transaction:
        names = list(transaction.cursor().iternext(values=False))
    for name in names:
        database = environment.open_db(name, create=False)
        if wanted and name not in wanted:
            continue
        with environment.begin() as transaction:
            for _ in transaction.cursor(db=database):
                continue


if __name__ == "__main__":
    sys.exit(main())
