"""The XML that a store answers, read without trust: what a field does not say as it should is None."""

from __future__ import annotations

import binascii
import email.utils
import functools
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from mirrorfs.objectstore.answers import MD5_ETAG

Kind = Literal["nothing", "XML", "a web page", "JSON", "text"]

# Of what is looked at to tell what a body is.
_BEGINNING = 2048


@dataclass(frozen=True, slots=True)
class ErrorDocument:
    """The body of an S3 error; "" where the store leaves a field out.

    https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
    """

    code: str
    message: str
    request_id: str
    endpoint: str
    region: str


def kind_of(body: bytes, content_type: str = "") -> Kind:
    """What a body is, as one would say it to an administrator."""
    beginning = body[:_BEGINNING].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not beginning:
        return "nothing"
    if beginning.startswith((b"<!doctype", b"<html")) or b"<html" in beginning or "html" in content_type.lower():
        return "a web page"
    if beginning.startswith(b"<"):
        return "XML"
    return "JSON" if beginning.startswith((b"{", b"[")) else "text"


def parse(body: bytes) -> ElementTree.Element | None:
    """The root of an XML document, its names without namespaces; None where it is none that S3 would send."""
    if b"<!DOCTYPE" in body or b"<!ENTITY" in body:
        return None
    try:
        root = ElementTree.fromstring(body.strip())  # noqa: S314 - what declares entities was refused
    except (ElementTree.ParseError, ValueError, LookupError):
        return None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def error_document(body: bytes) -> ErrorDocument | None:
    """What a body says as an S3 error, None where it is none."""
    root = parse(body)
    if root is None:
        return None
    error = root if root.tag == "Error" else root.find(".//Error")
    if error is None:
        return None
    return ErrorDocument(
        text(error, "Code"),
        text(error, "Message"),
        text(error, "RequestId") or text(root, "RequestId"),
        text(error, "Endpoint"),
        text(error, "Region"),
    )


def text(element: ElementTree.Element, name: str) -> str:
    """The text of a child, "" where there is none."""
    return (element.findtext(name) or "").strip()


def exact(element: ElementTree.Element, name: str) -> str:
    """The same with white space at its ends, as a key may have it."""
    return element.findtext(name) or ""


def children(element: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    """The children of a name."""
    return (child for child in element if child.tag == name)


def number(value: str) -> int | None:
    """A size or count: digits."""
    value = value.strip()
    return int(value) if value.isascii() and value.isdecimal() and len(value) < 19 else None


def truth(value: str) -> bool | None:
    """A boolean, however a store writes it."""
    return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(value.strip().lower())


def moment(value: str) -> float | None:
    """Unix time of a date in ISO 8601, or of an HTTP header."""
    value = value.strip()
    if not value:
        return None
    try:
        found = datetime.fromisoformat(value)
        return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return http_moment(value)


@functools.lru_cache(maxsize=64)
def http_moment(value: str) -> float | None:
    """Unix time of an HTTP date, None if it is none."""
    try:
        return email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


def etag(value: str) -> str:
    """An ETag as it compares: not weak, not quoted, and in lower case where it may be an MD5."""
    value = value.strip().removeprefix("W/").strip('"')
    return value.lower() if MD5_ETAG.fullmatch(value.lower()) else value


def crc32c(headers: Mapping[str, str]) -> int | None:
    """The CRC32C over all bytes that headers tell; that over the parts of a multipart upload ("…-3") says nothing."""
    if headers.get("x-amz-checksum-type", "").upper() == "COMPOSITE":
        return None
    return crc32c_of(headers.get("x-amz-checksum-crc32c", ""))


def crc32c_of(value: str) -> int | None:
    """A CRC32C as S3 writes it: four bytes, the highest first, in base64."""
    try:
        decoded = binascii.a2b_base64(value.strip(), strict_mode=True)
    except (binascii.Error, ValueError):
        return None
    return int.from_bytes(decoded, "big") if len(decoded) == 4 else None
