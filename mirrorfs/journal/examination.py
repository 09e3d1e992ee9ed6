"""`python -m mirrorfs.journal.examination DIRECTORY`: reads a whole LMDB environment; fails where it cannot.

For `Environment` alone, which has this done where reading could end the process.
"""

from __future__ import annotations

import sys

import lmdb

_MOST_DATABASES = 32


def main() -> None:
    """Read every entry of every named database; lmdb.Error, or a signal, says that something is damaged."""
    environment = lmdb.open(sys.argv[1], readonly=True, create=False, max_dbs=_MOST_DATABASES)
    with environment.begin() as transaction:
        names = list(transaction.cursor().iternext(values=False))
    for name in names:
        database = environment.open_db(name, create=False)
        with environment.begin() as transaction:
            for _ in transaction.cursor(db=database):
                continue


if __name__ == "__main__":
    main()
