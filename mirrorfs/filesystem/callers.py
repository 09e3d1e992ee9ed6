"""What the kernel does not tell about whoever makes a system call: his groups and his capabilities.

Both stand in proc(5). A caller whom that does not show (of another pid namespace) is taken for one without groups, and
root for one with all capabilities.
"""

import os
import re
from dataclasses import dataclass

_CAP_FSETID = 4
_CAP_SYS_ADMIN = 21


@dataclass(frozen=True, slots=True)
class Caller:
    """A thread with these ids. What is read is true while it waits for the answer to its call."""

    uid: int
    gid: int
    pid: int

    def is_in_group(self, gid: int) -> bool:
        """Whether that is his group, or one of his supplementary groups."""
        if gid == self.gid:
            return True
        groups = self._status("Groups")
        return groups is not None and gid in map(int, groups.split())

    def may_administer(self) -> bool:
        """CAP_SYS_ADMIN."""
        return self._is_capable(_CAP_SYS_ADMIN)

    def may_keep_set_group_id(self) -> bool:
        """CAP_FSETID."""
        return self._is_capable(_CAP_FSETID)

    def _is_capable(self, capability: int) -> bool:
        effective = self._status("CapEff")
        if effective is None:
            return self.uid == 0
        # What root of another user namespace is capable of is so within that only.
        return bool(int(effective, 16) >> capability & 1) and self._shares_user_namespace()

    def _shares_user_namespace(self) -> bool:
        try:
            return os.path.samestat(os.stat(f"/proc/{self.pid}/ns/user"), os.stat("/proc/self/ns/user"))
        except OSError:
            return False

    def _status(self, field: str) -> str | None:
        if self.pid == 0:
            return None
        try:
            with open(f"/proc/{self.pid}/status", encoding="ascii", errors="replace") as status:
                found = re.search(rf"^{field}:[ \t]*(.*)$", status.read(), re.MULTILINE)
        except OSError:
            return None
        return None if found is None else found[1]
