"""Deletions: many keys at once, and which of them the store refuses for good."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mirrorfs.objectstore.errors import StoreError, StoreReason, StoreRejected, StoreUnavailable
from mirrorfs.objectstore.patience import PatientRequests

log = logging.getLogger(__name__)

_ANSWERS_BEFORE_A_KEY_IS_REFUSED = 8


@dataclass(slots=True)
class _Deletion:
    """A batch of keys that is being deleted: those that remain, and those that the store refuses for good."""

    remaining: Sequence[str]
    refused: dict[str, StoreError] = field(default_factory=dict)
    has_deleted: bool = False
    answers: int = 0

    def note(self, failures: Mapping[str, StoreError]) -> None:
        """To be called with each answer; raises what is worth waiting for, if anything remains."""
        self.answers += 1
        self.has_deleted = self.has_deleted or len(failures) < len(self.remaining)
        for key, error in failures.items():
            if not isinstance(error, StoreUnavailable):
                self.refused[key] = error
            elif self._concerns_only_its_key(error):
                self.refused[key] = StoreRejected(error.action, f"{error.cause}, while it deletes others")
        self.remaining = [key for key in failures if key not in self.refused]
        for key in self.remaining:
            raise failures[key]

    def _concerns_only_its_key(self, error: StoreUnavailable) -> bool:
        """Where nothing could be deleted, it may be the credentials, or the store as a whole."""
        if error.reason is StoreReason.SERVER_ERROR:
            return self.has_deleted and self.answers >= _ANSWERS_BEFORE_A_KEY_IS_REFUSED
        return self.has_deleted and is_denied(error)


class Deletions:
    """The deleting part of `ObjectStore`."""

    def __init__(self, requests: PatientRequests) -> None:
        self.own_key: str | None = None
        self._requests = requests

    async def delete_each(self, keys: Sequence[str]) -> Mapping[str, StoreError]:
        """See `ObjectStore.delete_each`."""
        refused: dict[str, StoreError] = {}
        left = list(dict.fromkeys(keys))
        while left:
            count = self._requests.client.keys_per_delete
            refused.update(await self._delete_batch(left[:count]))
            left = left[count:]
        return refused

    async def _delete_batch(self, keys: Sequence[str]) -> Mapping[str, StoreError]:
        deletion = _Deletion(keys)

        async def delete_remaining() -> None:
            failures = await self._delete_once(deletion.remaining)
            if not deletion.has_deleted and len(failures) == len(deletion.remaining):
                deletion.has_deleted = await self._may_delete(failures.values())
            deletion.note(failures)

        self._requests.observe("before-delete", keys)
        await self._requests.repeat(delete_remaining)
        self._requests.observe("after-delete", [key for key in keys if key not in deletion.refused])
        return deletion.refused

    async def _may_delete(self, failures: Iterable[StoreError]) -> bool:
        """Whether a permission that all these keys were denied is only theirs: one of our own can be deleted.

        The probe has deleted it before, and nobody locks it.
        """
        if self.own_key is None or not all(map(is_denied, failures)):
            return False
        try:
            return not await self._delete_once([self.own_key])
        except StoreError as error:
            # The denial that was to be explained is still what is told.
            log.info("Whether others can be deleted is not known. %s", error)
            return False

    async def _delete_once(self, keys: Sequence[str]) -> Mapping[str, StoreError]:
        return await self._requests.in_thread(lambda: self._requests.client.delete_objects(keys), may_abandon=False)


def is_denied(error: StoreError) -> bool:
    """Whether it is permission that is missing."""
    return isinstance(error, StoreUnavailable) and error.reason is StoreReason.ACCESS_DENIED
