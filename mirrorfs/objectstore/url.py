"""Where a mirror is: the s3:// URL that names bucket and prefix, and how to reach the store."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

MAX_PREFIX_LENGTH = 255
"""In bytes. S3 allows keys of 1024; the longest path that PBS makes below its datastore fits into the rest."""

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
# What PBS takes as the name of a datastore (PROXMOX_SAFE_ID_REGEX), so that a PBS can be pointed at the mirror.
_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


class MalformedURL(ValueError):
    """A URL that names no mirror or no endpoint; the text is a sentence for whoever typed it."""


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """A mirror's place: all its keys begin with the prefix and a slash. The prefix has no slash at either end."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def key(self, relative: str) -> str:
        """The full key of what stands at `relative` in the mirror."""
        return f"{self.prefix}/{relative}"


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How to reach the store. None leaves the choice to boto3's usual chain (environment, ~/.aws/config).

    Raises MalformedURL for an endpoint that is not a plain http or https URL.
    """

    endpoint_url: str | None = None
    profile: str | None = None
    region: str | None = None

    def __post_init__(self) -> None:
        if self.endpoint_url is not None:
            _check_endpoint(self.endpoint_url)


def parse_url(url: str) -> StoreAddress:
    """Parses s3://BUCKET/NAME[/MORE]; one slash at the end is forgiven. Raises MalformedURL."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme != "s3":
        raise MalformedURL(f"{url!r} does not begin with s3://; write s3://BUCKET/NAME.")
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.removesuffix("/")
    _check_bucket(url, bucket)
    _check_prefix(url, prefix)
    return StoreAddress(bucket, prefix)


def _check_bucket(url: str, bucket: str) -> None:
    if not bucket:
        raise MalformedURL(f"{url!r} names no bucket; write s3://BUCKET/NAME.")
    if not _BUCKET.fullmatch(bucket) or ".." in bucket or _is_ip_address(bucket):
        raise MalformedURL(
            f"{bucket!r} in {url!r} cannot be the name of a bucket: 3 to 63 lower-case letters, digits, hyphens and "
            "single dots, with a letter or digit at both ends, and not an IP address."
        )


def _check_prefix(url: str, prefix: str) -> None:
    if not prefix:
        raise MalformedURL(f"{url!r} names no place inside the bucket; write s3://BUCKET/NAME.")
    if len(prefix) > MAX_PREFIX_LENGTH:
        raise MalformedURL(f"The name inside the bucket is longer than {MAX_PREFIX_LENGTH} characters: {url!r}.")
    for component in prefix.split("/"):
        if not _COMPONENT.fullmatch(component):
            raise MalformedURL(
                f"{component!r} in {url!r} cannot be part of a mirror's name: letters, digits, '.', '_' and '-', "
                "not empty, and beginning with a letter, digit or '_'."
            )


def _check_endpoint(url: str) -> None:
    try:
        parts = urlsplit(url)
        has_port = parts.port is None or parts.port > 0
    except ValueError as error:
        raise MalformedURL(f"The endpoint is not a URL ({error}); write https://HOST[:PORT].") from None
    if parts.username is not None or parts.password is not None:
        # Not repeated: what stands there may well be a secret.
        raise MalformedURL("The endpoint URL must not hold credentials; see --profile for where they belong.")
    if parts.scheme not in ("http", "https") or not parts.hostname or not has_port or parts.query or parts.fragment:
        raise MalformedURL(f"{url!r} is not the URL of an endpoint; write https://HOST[:PORT].")
    if re.search(r"[\s\x00-\x1f\x7f]", url):
        raise MalformedURL(f"{url!r} has white space inside; write https://HOST[:PORT].")


def _is_ip_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
