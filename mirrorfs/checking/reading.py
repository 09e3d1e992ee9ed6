"""Reading an object of the bucket within the limit of its kind, and checking it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import trio

from mirrorfs.datastore.content import Content
from mirrorfs.datastore.errors import DatastoreError, contained
from mirrorfs.objectstore.answers import CheckBeginning
from mirrorfs.objectstore.store import ObjectStore

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Limit:
    """What is read of an object: up to `maximum` bytes, else ObjectTooLarge is raised, and only if `check_beginning`
    finds nothing in its first 4,096 bytes to raise DatastoreError for.

    With `is_checked` whoever reads it checks all of it, and asks again for what is not sound: an MD5 of the store's is
    not compared the first time.
    """

    maximum: int
    check_beginning: CheckBeginning | None = None
    is_checked: bool = False


class ObjectReader(Protocol):
    """Where objects are read from, by the keys that published ones have. Every method raises StoreError."""

    async def get(self, key: str, limit: Limit) -> Content:
        """The whole object. Raises ObjectMissing, and what the limit says."""
        ...

    async def get_again(self, key: str, limit: Limit) -> Content:
        """The object whose content as `get` gave it was found to be damaged, from elsewhere if it is to be had there.
        Raises as `get` does.
        """
        ...


class StoreReader:
    """The objects of a store as they are. Implements ObjectReader."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def get(self, key: str, limit: Limit) -> Content:
        """See ObjectReader."""
        if limit.is_checked:
            return await self._store.get_unsummed(key, limit.maximum, check_beginning=limit.check_beginning)
        return await self._get_summed(key, limit)

    async def get_again(self, key: str, limit: Limit) -> Content:
        """See ObjectReader: it may have been damaged on its way only."""
        return await self._get_summed(key, limit)

    async def _get_summed(self, key: str, limit: Limit) -> Content:
        return await self._store.get_content(key, limit.maximum, check_beginning=limit.check_beginning)


async def read_checked(
    reader: ObjectReader,
    key: str,
    limit: Limit,
    check: Callable[[Content], Result],
    taken: Callable[[int], None] = lambda _: None,
) -> Result:
    """Read an object and give it to `check`, in a thread; `taken` hears the size of each object that has come.

    What fails the check is read once more: it may have been damaged on its way only. Raises DatastoreError, StoreError.
    """

    async def checked(data: Content) -> Result:
        taken(len(data))
        return await trio.to_thread.run_sync(_contained, data, check)

    try:
        return await checked(await reader.get(key, limit))
    except DatastoreError:
        return await checked(await reader.get_again(key, limit))


def _contained(data: Content, check: Callable[[Content], Result]) -> Result:
    with contained("it takes more memory than there is"):
        return check(data)
