"""Named steps of a publication, at which the harness can kill the uploader; costs nothing when unarmed.

`MIRRORFS_KILL_AT=STEP:N:FILE` in the environment of the mount kills an uploader with SIGKILL the Nth time that it
reaches STEP (`before-put`, `after-put`, `before-delete` or `after-delete`), and makes FILE; once FILE is there, nothing
is armed any more, so that the uploader that is started next gets through.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)

VARIABLE = "MIRRORFS_KILL_AT"


def armed_step(environment: Mapping[str, str]) -> Callable[[str, str], None] | None:
    """Return what the object store layer is to call at each step, None when nothing is armed."""
    setting = environment.get(VARIABLE)
    if not setting:
        return None
    wanted, number, fired = setting.split(":", 2)
    if os.path.exists(fired):
        return None
    remaining = int(number)

    def reach(step: str, key: str) -> None:
        nonlocal remaining
        if step != wanted:
            return
        remaining -= 1
        if remaining == 0:
            os.close(os.open(fired, os.O_WRONLY | os.O_CREAT, 0o600))
            log.warning("killed at %s of %s as %s asks", step, key, VARIABLE)
            os.kill(os.getpid(), signal.SIGKILL)

    return reach
