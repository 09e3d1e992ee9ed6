"""`.chunks` in the mount: attached and taken away by other processes.

A thread of the process that serves the mount must not look for a path in it: it would wait for its own answer, and if
the process were killed at that moment, all who use the mount would hang for ever.
"""

from __future__ import annotations

import logging
import os
import subprocess

import trio

from mirrorfs import interpreter
from mirrorfs.chunkstore.place import chunks_path, is_attached
from mirrorfs.chunkstore.possibility import NativeImpossible
from mirrorfs.filesystem.mount_table import mount_at

log = logging.getLogger(__name__)


async def attach(chunks: int, mountpoint: str, attributes: int) -> None:
    """Attach the open directory `chunks` in the mount that this process serves.

    Raises:
        NativeImpossible: it cannot be attached.
    """
    mount = mount_at(mountpoint)
    if mount is None:
        raise NativeImpossible(f"{mountpoint} is not mounted any more")
    major, minor = map(int, mount.device.split(":"))
    arguments = (str(chunks), mountpoint, str(os.makedev(major, minor)), str(attributes))
    try:
        done = await trio.run_process(
            interpreter.command("mirrorfs.chunkstore", *arguments),
            env=interpreter.environment(),
            cwd=interpreter.WORKING_DIRECTORY,
            pass_fds=[chunks],
            check=False,
            capture_stderr=True,
            stdout=subprocess.DEVNULL,
        )
    except OSError as error:
        raise NativeImpossible(f"the process that attaches it cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise NativeImpossible(said or f"the process that attaches it ended with {done.returncode}")


async def detach(mountpoint: str) -> None:
    """Take `.chunks` out of the mount at once; who has files of it open goes on with them. Fails with a log line."""
    if not is_attached(mountpoint):
        return
    path = chunks_path(mountpoint)
    try:
        done = await trio.run_process(["umount", "--lazy", path], capture_stderr=True, check=False)
    except OSError as error:
        log.error("cannot run umount for %s: %s", path, error)
        return
    if done.returncode != 0 and is_attached(mountpoint):
        log.error("%s stays attached: %s", path, done.stderr.decode(errors="replace").strip())
