"""The one boundary that every answer of a store passes: what comes through is what S3 would have said.

Each request has its own idea of success: a status, a document with the right root, or a body that is no web page. All
else becomes a StoreError here, by `refusals`.
"""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection
from dataclasses import dataclass

from mirrorfs.objectstore.documents import error_document, kind_of, parse, text
from mirrorfs.objectstore.errors import StoreReason, StoreRejected, StoreUnavailable
from mirrorfs.objectstore.refusals import Asked, not_s3, refusal_of
from mirrorfs.objectstore.transport import Answer


@dataclass(frozen=True, slots=True)
class _Success:
    """How the success of a request looks: the root of its document, where it has one.

    `fields` are children of which S3 always sends one, so that an empty document is no empty listing.
    """

    root: str | None = None
    fields: tuple[str, ...] = ()
    statuses: tuple[int, ...] = (200,)


_SUCCESSES = {
    "PutObject": _Success(statuses=(200, 201, 202, 204)),
    "HeadObject": _Success(),
    "GetObject": _Success(),
    "CopyObject": _Success(root="CopyObjectResult"),
    "ListObjectsV2": _Success("ListBucketResult", ("Name", "Prefix", "KeyCount", "MaxKeys", "IsTruncated", "Contents")),
    "ListObjectVersions": _Success(
        "ListVersionsResult", ("Name", "Prefix", "MaxKeys", "IsTruncated", "Version", "DeleteMarker")
    ),
    "DeleteObjects": _Success(root="DeleteResult"),
    "DeleteObject": _Success(statuses=(200, 202, 204)),
    "GetBucketVersioning": _Success(root="VersioningConfiguration"),
    "GetObjectLockConfiguration": _Success(root="ObjectLockConfiguration"),
    "GetObjectRetention": _Success(root="Retention"),
    "PutObjectRetention": _Success(statuses=(200, 204)),
}
_LISTING_ROOTS = frozenset({"ListBucketResult", "ListVersionsResult"})


def examined(asked: Asked, answer: Answer, secrets: Collection[str] = ()) -> ElementTree.Element | None:
    """The document of a success, None where this kind of success has none.

    Raises StoreError for everything else.
    """
    success = _SUCCESSES[answer.operation]
    if not 200 <= answer.status < 300:
        if 300 <= answer.status < 600:
            raise refusal_of(asked, answer, secrets)
        raise not_s3(asked, answer, f"the status {answer.status}")
    if answer.status == 206:
        raise StoreUnavailable(asked.action, "a part of the object came as the whole of it", StoreReason.SERVER_ERROR)
    if answer.status not in success.statuses:
        raise not_s3(asked, answer, f"the status {answer.status}")
    if success.root is not None:
        return _document(asked, answer, success, secrets)
    _refuse_other_bodies(asked, answer, secrets)
    return None


def _document(asked: Asked, answer: Answer, success: _Success, secrets: Collection[str]) -> ElementTree.Element:
    root = parse(answer.body)
    if root is None:
        kind = kind_of(answer.body, answer.headers.get("content-type", ""))
        raise not_s3(asked, answer, "an empty body" if kind == "nothing" else kind)
    if root.tag == success.root and (not success.fields or any(root.find(name) is not None for name in success.fields)):
        return root
    if error_document(answer.body) is not None and root.find("Deleted") is None:
        # Some say only in the body that it is no success: they had begun to answer before they knew.
        raise refusal_of(asked, _as_error(answer), secrets)
    if {root.tag, success.root} == _LISTING_ROOTS:
        raise StoreRejected(
            asked.action, "the store answers with another kind of listing than was asked for", code="NotImplemented"
        )
    raise not_s3(asked, answer, "an empty listing without a word" if root.tag == success.root else "another document")


def _as_error(answer: Answer) -> Answer:
    root = parse(answer.body)
    code = "" if root is None else text(root, "Code")
    status = 503 if code in ("SlowDown", "ServiceUnavailable") else 404 if code.startswith("NoSuch") else 500
    if code.startswith(("Invalid", "AccessDenied", "NotImplemented", "MethodNotAllowed")):
        status = 403 if code == "AccessDenied" else 400
    return dataclasses.replace(answer, status=status)


def _refuse_other_bodies(asked: Asked, answer: Answer, secrets: Collection[str]) -> None:
    """Refuses the page of a portal or a console. What an object holds may be anything, but is never sent as a page."""
    content_type = answer.headers.get("content-type", "").lower()
    if answer.operation == "HeadObject":
        if "html" in content_type:
            raise not_s3(asked, answer, "a web page")
    elif answer.operation == "GetObject":
        if "html" in content_type and kind_of(answer.beginning) == "a web page":
            raise not_s3(asked, answer, "a web page")
    elif answer.body:
        if error_document(answer.body) is not None:
            raise refusal_of(asked, _as_error(answer), secrets)
        if kind_of(answer.body, content_type) == "a web page":
            raise not_s3(asked, answer, "a web page")
