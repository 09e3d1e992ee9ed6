"""The uploader goes after those whose datastore it mirrors: by its niceness, by how the disk is shared out, and when
memory is short.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
from enum import Enum

log = logging.getLogger(__name__)

DEFAULT_NICE = 5
# ioprio_set(2); its number is the same on all architectures that are newer than x86-64's table.
_IOPRIO_SET = 251 if platform.machine() == "x86_64" else 30
_THIS_PROCESS = 1
_OOM_SCORE = "/proc/self/oom_score_adj"
_USUAL_OOM_SCORE = 0
_CLASS_SHIFT = 13
_BEST_EFFORT, _IDLE = 2, 3
_LAST_OF_BEST_EFFORT = 7


class DiskPriority(Enum):
    """How the uploader shares a disk with others, where the disk's scheduler knows of priorities (BFQ, mq-deadline)."""

    NORMAL = "normal"
    LOW = "low"
    IDLE = "idle"


_VALUES = {
    DiskPriority.LOW: _BEST_EFFORT << _CLASS_SHIFT | _LAST_OF_BEST_EFFORT,
    DiskPriority.IDLE: _IDLE << _CLASS_SHIFT,
}


def yield_to_others(nice: int, disk: DiskPriority) -> None:
    """Lower the priority of this thread, and of all that it begins; what the system refuses is logged.

    `nice` is as for nice(1), 0 to 19.
    """
    try:
        os.setpriority(os.PRIO_PROCESS, 0, max(nice, os.getpriority(os.PRIO_PROCESS, 0)))
    except OSError as error:
        log.warning("the uploader runs with the usual niceness: %s", error.strerror)
    _be_ended_first()
    if disk is DiskPriority.NORMAL:
        return
    library = ctypes.CDLL(None, use_errno=True)
    if library.syscall(_IOPRIO_SET, _THIS_PROCESS, 0, _VALUES[disk]) != 0:
        log.warning("the uploader shares the disk as others do: %s", os.strerror(ctypes.get_errno()))


def _be_ended_first() -> None:
    """Give up the protection that the service has when memory is short: the mount is what PBS cannot do without.

    Where the kernel ends the uploader, another one is started and goes on.
    """
    try:
        with open(_OOM_SCORE) as file:
            if int(file.read()) >= _USUAL_OOM_SCORE:
                return
        with open(_OOM_SCORE, "w") as file:
            file.write(str(_USUAL_OOM_SCORE))
    except (OSError, ValueError) as error:
        log.warning("the uploader is ended as late as the mount when memory is short: %s", error)
