"""`python -m mirrorfs.replication.sending`: a worker, as the uploader starts it; not to be called by hand."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading

from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.tree import Tree
from mirrorfs.log_file import reopen_at_hang_up
from mirrorfs.memory import use_one_arena
from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.throttle import Throttle
from mirrorfs.output import LogFormat, begin_log
from mirrorfs.replication.sending.attempt import Way
from mirrorfs.replication.sending.messages import READY, WorkerSettings, decode_order, encode_attempts

log = logging.getLogger(__name__)


def main() -> int:
    """Read the settings from standard input, and send chunks until it is closed."""
    use_one_arena()
    line = sys.stdin.buffer.readline()
    if not line:
        # The uploader has ended before it could say what there is to do.
        return 0
    settings = WorkerSettings.decode(line)
    begin_log("worker", verbose=settings.verbose, log_format=LogFormat(settings.log_format))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reopen_at_hang_up()
    layout = BucketLayout(settings.prefix)
    client = S3Client(
        settings.bucket,
        settings.store,
        parallelism=len(settings.connections),
        is_chunk=lambda key: layout.chunk_digest(key) is not None,
        throttle=None if settings.throttle is None else Throttle(settings.throttle),
    )
    way = Way(Tree(settings.root_descriptor), layout, client)
    for descriptor in settings.connections:
        connection = socket.socket(fileno=descriptor)
        threading.Thread(target=_serve, args=(connection, way), name="sending", daemon=True).start()
    sys.stdin.buffer.read()
    # The uploader has nothing under way here, or is gone: then nothing may reach the bucket after the next one begins.
    os._exit(0)


def _serve(connection: socket.socket, way: Way) -> None:
    try:
        with connection, connection.makefile("rwb") as stream:
            stream.write(READY)
            stream.flush()
            for line in stream:
                digests, capabilities = decode_order(line)
                stream.write(encode_attempts(way.send_some(digests, capabilities)))
                stream.flush()
    except OSError as error:
        log.info("the uploader does not listen any more: %s", error.strerror)
    except BaseException:
        # One that has a hand less would be waited for in vain; the next one is whole.
        log.exception("this should not happen")
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
