"""Reading objects and listings."""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncGenerator

from mirrorfs.datastore.content import Content, are_equal
from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.objectstore.answers import CheckBeginning, ListPage, StoredObject, StoredVersion, VersionMarker
from mirrorfs.objectstore.errors import BodyDamaged, StoreRejected
from mirrorfs.objectstore.patience import PatientRequests

log = logging.getLogger(__name__)

_READS_BEFORE_DAMAGE_IS_BELIEVED = 3


class Reading:
    """See `ObjectStore`, whose methods these are."""

    def __init__(self, requests: PatientRequests) -> None:
        self._requests = requests

    async def get_unsummed(self, key: str, maximum: int, check_beginning: CheckBeginning | None) -> Content:
        """See `ObjectStore.get_unsummed`."""
        client = self._requests.client
        try:
            return await self._requests.read(lambda: client.get_unsummed(key, maximum, check_beginning))
        except BodyDamaged:
            return await self.get(key, maximum, None, check_beginning)

    async def get(
        self, key: str, maximum: int, version_id: str | None, check_beginning: CheckBeginning | None
    ) -> Content:
        """See `ObjectStore.get_content`."""
        before: Content | None = None
        for _ in range(_READS_BEFORE_DAMAGE_IS_BELIEVED):
            try:
                return await self._get_once(key, maximum, version_id, check_beginning)
            except DatastoreError as error:
                damage: BodyDamaged | DatastoreError = error
            except BodyDamaged as error:
                damage = error
                if not error.is_certain and before is not None and are_equal(error.body, before):
                    # What comes twice was hardly damaged on its way: the ETag is no MD5.
                    break
                before = error.body
        log.warning("%s It has been read again, with the same result.", damage)
        if isinstance(damage, DatastoreError):
            raise damage
        return damage.body

    async def _get_once(
        self, key: str, maximum: int, version_id: str | None, check_beginning: CheckBeginning | None
    ) -> Content:
        client = self._requests.client
        if version_id is None:
            return await self._requests.read(lambda: client.get_object(key, maximum, check_beginning))
        return await self._requests.read(
            functools.partial(client.get_version, key, version_id, maximum, check_beginning)
        )

    async def list(self, prefix: str) -> AsyncGenerator[StoredObject, None]:
        """See `ObjectStore.list`."""
        tokens: set[str] = set()
        token: str | None = None
        before: ListPage | None = None
        while True:
            page = await self._requests.read(functools.partial(self._requests.client.list_page, prefix, token))
            if page.next_token in tokens or (before is not None and page.objects and page.objects == before.objects):
                raise StoreRejected(
                    f"list {prefix} in {self._requests.place}", "the store lists the same page again and again"
                )
            for found in page.objects:
                yield found
            if page.next_token is None:
                return
            token, before = page.next_token, page
            tokens.add(token)

    async def list_versions(self, prefix: str) -> AsyncGenerator[StoredVersion, None]:
        """See `ObjectStore.list_versions`."""
        client = self._requests.client
        markers: set[VersionMarker] = set()
        marker: VersionMarker | None = None
        is_empty = True
        while True:
            page = await self._requests.read(functools.partial(client.list_versions_page, prefix, marker))
            if page.next_marker in markers:
                raise StoreRejected(
                    f"list the versions of {prefix} in {self._requests.place}",
                    "the store lists the same page again and again",
                )
            for found in page.versions:
                is_empty = False
                yield found
            if page.next_marker is None:
                break
            marker = page.next_marker
            markers.add(marker)
        # A store that does not know the request may answer it with another kind of listing.
        if is_empty and (await self._requests.read(lambda: client.list_page(prefix, None))).objects:
            raise StoreRejected(
                f"list the versions of {prefix} in {self._requests.place}",
                "the store lists objects there, but no versions",
            )
