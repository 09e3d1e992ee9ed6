"""Noticing that the mount was taken away by somebody else while something keeps it alive."""

from __future__ import annotations

import logging
import select

import trio

from mirrorfs.filesystem.mount_table import MountEntry, OwnMount, mount_table
from mirrorfs.supervision.users import holders_of, lives

log = logging.getLogger(__name__)

# Only in case that a change is not told: the kernel tells each one.
_LONGEST_MILLISECONDS = 60_000
# A mount that nobody holds ends at once, and with it the task that looks here.
_UNTIL_ENDED_SECONDS = 2.0


async def say_when_unmounted(mount: OwnMount) -> None:
    """Log who holds the mount when it has been unmounted and lives on; returns then.

    A plain umount(8) takes the mount out of this namespace; a bind mount, another namespace or, after `umount --lazy`,
    an open file keeps it. This process serves it until the last of these is gone. To be cancelled when it is.
    """
    if mount.entry is None:
        return
    # In a thread, since epoll loses what this file tells only once.
    await trio.to_thread.run_sync(_wait_until_gone, mount.entry.identifier, abandon_on_cancel=True)
    await trio.sleep(_UNTIL_ENDED_SECONDS)
    holders = await trio.to_thread.run_sync(_holders, mount.entry, abandon_on_cancel=True)
    if holders is not None:
        log.warning(
            "%s was unmounted by somebody else; mirrorfs goes on until nothing holds it any more. It is held by %s. "
            "To end it at once: 'mirrorfs umount %s'",
            mount.path,
            holders,
            mount.path,
        )


def _holders(mount: MountEntry) -> str | None:
    return holders_of(mount.device) if lives(mount) else None


def _wait_until_gone(identifier: int) -> None:
    with open("/proc/self/mountinfo", "rb") as table:
        poll = select.poll()
        poll.register(table, select.POLLPRI)
        while any(entry.identifier == identifier for entry in mount_table()):
            poll.poll(_LONGEST_MILLISECONDS)
