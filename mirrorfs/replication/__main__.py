"""`python -m mirrorfs.replication`: the uploader, as the filesystem process starts it; not to be called by hand."""

from __future__ import annotations

import logging
import signal
import sys

import trio

from mirrorfs.database.directory import StateDirectory
from mirrorfs.database.errors import DatabaseError
from mirrorfs.log_file import reopen_at_hang_up
from mirrorfs.memory import use_one_arena
from mirrorfs.output import LogFormat, begin_log
from mirrorfs.replication.control import read_line
from mirrorfs.replication.priority import DiskPriority, yield_to_others
from mirrorfs.replication.settings import UploaderSettings
from mirrorfs.replication.uploader import Uploader, report_refusal


def main() -> int:
    """Read the settings from standard input and mirror until it is closed."""
    use_one_arena()
    # Unbuffered: what follows the settings line belongs to the uploader's own reader.
    settings = UploaderSettings.decode(read_line(sys.stdin.fileno()))
    begin_log(
        "uploader",
        verbose=settings.verbose,
        log_format=LogFormat(settings.log_format),
        events=StateDirectory(settings.state_directory).events_file,
        datastore=settings.datastore,
    )
    for noisy in ("boto3", "botocore", "urllib3", "s3transfer"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    uploader: Uploader | None = None
    reopen_at_hang_up(lambda: None if uploader is None else uploader.hang_up())
    # The mount that starts us has them blocked; a program that is started from here may count on its SIGALRM.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    # Before any thread begins: each has the priority of the one that begins it.
    yield_to_others(settings.nice, DiskPriority(settings.disk_priority))
    try:
        uploader = Uploader(settings)
    except DatabaseError as error:
        logging.getLogger(__name__).error("the uploader cannot start: %s", error)
        report_refusal(str(error))
        return 1
    trio.run(uploader.run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
