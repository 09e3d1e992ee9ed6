"""What each user may hold of what there is only so much of: nobody can take the mount from all others."""

from __future__ import annotations

import errno
import logging
import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from mirrorfs.filesystem.system_calls import open_cached

log = logging.getLogger(__name__)

# More would cost more memory than anybody needs open files: each takes about a kilobyte, here and in the kernel.
_MOST_DESCRIPTORS = 1 << 20
# For requests under way, directories on the way, the journal, the processes and threads: not given out.
_OWN_DESCRIPTORS = 4096
# About 75 bytes each.
_MOST_NAMES = 1 << 22
_NR_OPEN = "/proc/sys/fs/nr_open"


class Shares:
    """A number of like things. Root and the owners of the datastore may hold all of them, all others together fewer,
    and each of these a quarter of that. To be used in one thread.
    """

    def __init__(
        self, owners: Callable[[], set[int]], total: int, others: int, what: str = "open files and listings"
    ) -> None:
        """`others` is how many all users may hold together who are not root, nor among the uids that `owners` gives.

        It never waits, and is asked again before anybody is refused. `what` is shared, for the log.
        """
        self._owners = owners
        self._privileged = {0, *owners()}
        self._total = total
        self._others = others
        self._each = max(1, others // 4)
        self._what = what
        self._held: dict[int, int] = {}
        self._held_by_all = 0
        self._held_by_others = 0
        self._told: set[int] = set()

    def __getitem__(self, uid: int) -> int:
        """How many a user holds."""
        return self._held.get(uid, 0)

    def take(self, uid: int, amount: int = 1) -> int:
        """Notes that a user holds `amount` more; returns what is to be given back, which is a whole share at most.

        So one thing may be larger than a share, if it is the only one that a user has.

        Raises OSError: EMFILE if that is more than the user may hold, ENFILE if it is more than there are.
        """
        held = self[uid]
        if uid not in self._privileged and self._exceeds(uid, min(amount, self._each)):
            self._look_for_owners()
        if uid in self._privileged:
            if self._held_by_all + amount > self._total:
                raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
        else:
            amount = min(amount, self._each)
            if held + amount > self._each:
                self._tell(uid)
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            if self._exceeds(uid, amount):
                raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
            self._held_by_others += amount
        self._held[uid] = held + amount
        self._held_by_all += amount
        return amount

    def give_back(self, uid: int, amount: int = 1) -> None:
        """Notes that a user holds `amount` less."""
        left = self._held[uid] - amount
        if left:
            self._held[uid] = left
        else:
            del self._held[uid]
            self._told.discard(uid)
        self._held_by_all -= amount
        if uid not in self._privileged:
            self._held_by_others -= amount

    def _exceeds(self, uid: int, amount: int) -> bool:
        return (
            self[uid] + amount > self._each
            or self._held_by_others + amount > self._others
            or self._held_by_all + amount > self._total
        )

    def _look_for_owners(self) -> None:
        for uid in self._owners() - self._privileged:
            self._privileged.add(uid)
            self._held_by_others -= self[uid]

    def _tell(self, uid: int) -> None:
        # Once for as long as it lasts: whoever is refused may try again and again.
        if uid not in self._told:
            self._told.add(uid)
            log.warning("user %d has all the %s of this mount that one user may have", uid, self._what)


@dataclass(frozen=True, slots=True)
class Descriptors:
    """The descriptors of this process: those of open files and directories, and those that keep unlinked inodes."""

    handles: Shares
    unlinked: Shares


def shares_of_descriptors(owners: Callable[[], set[int]]) -> Descriptors:
    """The descriptors of this process, whose limit is raised as far as that is allowed."""
    limit = min(_raise_descriptor_limit(), _MOST_DESCRIPTORS)
    usable = limit - min(_OWN_DESCRIPTORS, limit // 4)
    unlinked = usable // 4
    handles = usable - unlinked
    return Descriptors(Shares(owners, handles, handles // 2), Shares(owners, unlinked, unlinked // 2))


def owners_of(root_descriptor: int) -> set[int]:
    """Whose a datastore is: PBS may have made its chunks' directory in one that root had made for it. Never waits."""
    owners = {os.fstat(root_descriptor).st_uid}
    with suppress(FileNotFoundError):
        chunks = open_cached(root_descriptor, b".chunks", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        if chunks is not None:
            owners.add(os.fstat(chunks).st_uid)
            os.close(chunks)
    return owners


def shares_of_names(owners: Callable[[], set[int]]) -> Shares:
    """The names in open listings. Those of root and the owner are not bounded: they need them for their work."""
    return Shares(owners, sys.maxsize, _MOST_NAMES)


def shares_of_requests(owners: Callable[[], set[int]], total: int) -> Shares:
    """The requests that are served at a time, of which `total` are."""
    return Shares(owners, total, total * 3 // 4, "requests")


def _raise_descriptor_limit() -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        with open(_NR_OPEN, encoding="ascii") as file:
            most = int(file.read())
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(hard, most), max(hard, most)))
    except (OSError, ValueError) as error:
        # In a container, perhaps.
        log.info("the limit of open files stays at %d: %s", hard, error)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
