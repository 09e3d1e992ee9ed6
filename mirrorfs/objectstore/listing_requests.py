"""The requests that list a bucket; what a listing leaves out is asked for object by object."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from typing import Any

from mirrorfs.objectstore import listings
from mirrorfs.objectstore.answers import ListPage, StoredObject, StoredVersion, VersionMarker, VersionPage
from mirrorfs.objectstore.connection import Connection
from mirrorfs.objectstore.documents import crc32c, etag, http_moment, moment, number
from mirrorfs.objectstore.errors import ObjectMissing, StoreReason, StoreRejected, StoreUnavailable
from mirrorfs.objectstore.features import OptionalFeatures
from mirrorfs.objectstore.refusals import UNSUPPORTED_CODES, Asked
from mirrorfs.objectstore.throttle import Throttle
from mirrorfs.objectstore.transport import Answer
from mirrorfs.objectstore.url import StoreOptions

_KEEPS_NO_VERSIONS = "It keeps only the latest version of an object, so nothing of the past can be found."
_ESCAPED = re.compile("%[0-9A-Fa-f]{2}")
_ENCRYPTIONS_WITHOUT_MD5 = frozenset({"aws:kms", "aws:kms:dsse"})


class ListingRequests:
    """One bucket, and the requests that only look into it as a whole. See `S3Client`."""

    def __init__(
        self, bucket: str, options: StoreOptions, *, parallelism: int = 8, throttle: Throttle | None = None
    ) -> None:
        """`parallelism` is the number of threads that each get a connection of their own."""
        self.bucket = bucket
        self.features = OptionalFeatures()
        self._options = options
        self._connection = Connection(bucket, options, parallelism=parallelism, throttle=throttle)
        self._proven_escapes = False

    @property
    def endpoint(self) -> str:
        """The endpoint as far as it is known, for messages."""
        return self._connection.endpoint

    @property
    def place(self) -> str:
        """Bucket and endpoint, for messages."""
        return self._connection.place

    @property
    def region(self) -> str | None:
        """The region that requests are signed for, as far as it is known: surely after a request."""
        return self._connection.region

    def requests_without_progress(self, seconds: float) -> list[tuple[str, float]]:
        """Requests for which nothing has come or gone for so long: which, and for how many seconds."""
        return self._connection.requests_without_progress(seconds)

    def check_bucket(self, prefix: str = "") -> None:
        """Raises StoreUnavailable unless the bucket exists and may be listed below the prefix."""
        self._list("look into", prefix, {"MaxKeys": 1})

    def clock_difference(self, prefix: str = "") -> float | None:
        """How many seconds the store's clock is ahead of this machine's; None where its answer has no date.

        The date is in whole seconds and taken for that of the middle of the request, so this is right to half of the
        request's duration and a second.
        """
        answer = self._list("ask for the time of", prefix, {"MaxKeys": 1})[1]
        date = http_moment(answer.headers.get("date", ""))
        return None if date is None else date - (answer.sent_at + answer.elapsed / 2)

    def list_page(self, prefix: str, token: str | None) -> ListPage:
        """A part of the flat listing of all keys that begin with the prefix; the token is of the part before."""
        root, _, asked = self._list(f"list {prefix} in", prefix, {} if token is None else {"ContinuationToken": token})
        found = listings.entries(asked, root, prefix)
        following = listings.next_token(asked, root, token)
        self._check_escapes(asked, [entry.key for entry in found])
        objects = [
            StoredObject(entry.key, entry.size, entry.etag, None) if entry.size is not None else self._looked_up(entry)
            for entry in found
        ]
        return ListPage(tuple(one for one in objects if one is not None), following)

    def shows(self, key: str) -> bool:
        """Whether a listing shows this very key. Raises StoreUnavailable as `check_bucket` does."""
        root, _, asked = self._list("look into", key, {"MaxKeys": 1})
        # The key itself comes before all that begin with it, in whatever order a store lists them.
        return any(entry.key == key for entry in listings.entries(asked, root, key))

    def _list(
        self, action: str, prefix: str, parameters: Mapping[str, Any]
    ) -> tuple[ElementTree.Element, Answer, Asked]:
        with self._connection.requesting(action) as request:
            request.boto.list_objects_v2(Bucket=self.bucket, Prefix=prefix, **parameters)
            root, answer = request.document()
        return root, answer, Asked(f"{action} {self.place}")

    def _check_escapes(self, asked: Asked, keys: Sequence[str]) -> None:
        """A store that encodes keys, and does not say so, lists objects that nobody has; one question tells."""
        escaped = next((key for key in keys if _ESCAPED.search(key)), None)
        if escaped is None or self._proven_escapes:
            return
        try:
            self.look(escaped)
        except ObjectMissing:
            raise StoreUnavailable(
                asked.action, "the listing shows keys in another form than they were put in", StoreReason.NOT_S3
            ) from None
        self._proven_escapes = True

    def _looked_up(self, entry: listings.Entry) -> StoredObject | None:
        try:
            found = self.look(entry.key)
        except ObjectMissing:
            # It has gone since.
            return None
        return StoredObject(entry.key, found.size, entry.etag or found.etag, None)

    def look(self, key: str) -> StoredObject:
        """What a HEAD tells of an object. Raises ObjectMissing, on the word of whoever answers."""
        raise NotImplementedError

    def list_versions_page(self, prefix: str, marker: VersionMarker | None) -> VersionPage:
        """A part of the listing of all versions of the keys that begin with the prefix, from the marker on.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectVersions.html
        """
        parameters: dict[str, Any] = {"Bucket": self.bucket, "Prefix": prefix}
        if marker is not None:
            parameters["KeyMarker"] = marker.key
            if marker.version_id is not None:
                parameters["VersionIdMarker"] = marker.version_id
        try:
            with self._connection.requesting(f"list the versions of {prefix} in") as request:
                request.boto.list_object_versions(**parameters)
                root, _ = request.document()
        except StoreRejected as error:
            if error.code in UNSUPPORTED_CODES:
                raise StoreRejected(error.action, error.cause, _KEEPS_NO_VERSIONS, error.code) from None
            raise
        asked = Asked(f"list the versions of {prefix} in {self.place}")
        found = listings.version_entries(asked, root, prefix)
        following = listings.next_marker(asked, root, marker)
        self._check_escapes(asked, [entry.key for entry in found if not entry.is_delete_marker])
        return VersionPage(tuple(self._version(asked, entry) for entry in found), following)

    def _version(self, asked: Asked, entry: listings.VersionEntry) -> StoredVersion:
        size, modified_at = entry.size, entry.modified_at
        if not entry.is_delete_marker and (size is None or modified_at is None):
            found = self.look_at_version(entry.key, entry.version_id)
            size = found.size if size is None else size
            modified_at = found.modified_at if modified_at is None else modified_at
        if modified_at is None:
            raise StoreRejected(
                asked.action, f"the store does not say when {entry.key} was changed, so its past cannot be told"
            )
        return StoredVersion(
            entry.key,
            entry.version_id,
            size or 0,
            entry.etag,
            modified_at,
            is_latest=entry.is_latest,
            is_delete_marker=entry.is_delete_marker,
        )

    def look_at_version(self, key: str, version_id: str) -> StoredObject:
        """What a HEAD tells of a version that a listing shows."""
        raise NotImplementedError


def described(key: str, size: int, answer: Answer) -> StoredObject:
    """An object as the headers of a HEAD describe it."""
    return StoredObject(
        key,
        size,
        etag_of(answer),
        crc32c(answer.headers),
        moment(answer.headers.get("last-modified", "")),
        http_moment(answer.headers.get("date", "")),
    )


def etag_of(answer: Answer) -> str:
    """The ETag of an answer's headers; "" where the store says that it cannot be that of the content."""
    if answer.headers.get("x-amz-server-side-encryption", "").lower() in _ENCRYPTIONS_WITHOUT_MD5:
        return ""
    return etag(answer.headers.get("etag", ""))


def announced_size(answer: Answer) -> int | None:
    """The size of an object, as the headers of a HEAD tell it."""
    return number(answer.headers.get("content-length", ""))
