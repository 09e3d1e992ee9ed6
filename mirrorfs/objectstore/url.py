"""Where a mirror is: the s3:// URL that names bucket and prefix, and how to reach the store."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

_SHORTEST_DATASTORE_NAME = 3
_LONGEST_DATASTORE_NAME = 32
MAX_PREFIX_LENGTH = 255
"""In bytes. S3 allows keys of 1024; the longest path that PBS makes below its datastore fits into the rest."""

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
# What AWS took until 2018, and what other stores still have from then; such a bucket cannot be part of a host's name.
_OLD_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,254}")
# What PBS takes as the name of a datastore (PROXMOX_SAFE_ID_REGEX), so that a PBS can be pointed at the mirror. It also
# wants 3 to 32 characters of it (DATASTORE_SCHEMA): see `problem_for_pbs`.
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

    @property
    def problem_for_pbs(self) -> str | None:
        """Why no PBS could attach what is there, as a sentence; None if one can. Its datastore's name is the prefix."""
        if "/" in self.prefix:
            why = "the name in the bucket has a slash, and"
        elif not _SHORTEST_DATASTORE_NAME <= len(self.prefix) <= _LONGEST_DATASTORE_NAME:
            why = f"the name in the bucket has {len(self.prefix)} characters, and"
        else:
            return None
        return (
            f"No Proxmox Backup Server can open {self} by itself: {why} is the name of its datastore there, "
            f"{_SHORTEST_DATASTORE_NAME} to {_LONGEST_DATASTORE_NAME} letters, digits, '.', '_' and '-'."
        )

    def key(self, relative: str) -> str:
        """The full key of what stands at `relative` in the mirror."""
        return f"{self.prefix}/{relative}"


AddressingStyle = Literal["auto", "path", "virtual"]
"""Where the bucket's name stands: in the path, or before the endpoint's host name; auto is boto3's choice."""
Checksums = Literal["auto", "on", "off"]
"""Whether CRC32C goes with what is sent; auto sends it until the store refuses it."""
Encryption = Literal["AES256", "aws:kms", "aws:kms:dsse"]
"""What the store is asked to encrypt with: its own keys (SSE-S3), or a key of its key management (SSE-KMS)."""

_FINGERPRINT = re.compile(r"(?:[0-9A-Fa-f]{2}:?){31}[0-9A-Fa-f]{2}")
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_KMS_KEY = re.compile(r"[A-Za-z0-9_.:/-]{1,2048}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """How to reach the store. None leaves the choice to boto3's usual chain (environment, ~/.aws/config).

    Time-outs are in seconds: to connect, for each time that nothing comes or can be sent, and for a request as a whole,
    which has as much more as its body takes at `slowest_rate` bytes a second. `fingerprint` is the SHA-256 of the one
    certificate that is accepted, as PBS shows it, `proxy` the URL of an HTTP proxy, `chunk_storage_class` that of
    chunks and `storage_class` that of everything else.

    Raises MalformedURL for what cannot be meant.
    """

    endpoint_url: str | None = None
    profile: str | None = None
    region: str | None = None
    addressing_style: AddressingStyle | None = None
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    request_timeout: float = 300.0
    slowest_rate: float = 16 * 1024.0
    checksums: Checksums = "auto"
    encryption: Encryption | None = None
    kms_key_id: str | None = None
    chunk_storage_class: str | None = None
    storage_class: str | None = None
    ca_bundle: str | None = None
    fingerprint: str | None = None
    proxy: str | None = None

    def __post_init__(self) -> None:
        if self.endpoint_url is not None:
            check_endpoint(self.endpoint_url)
        if self.proxy is not None:
            check_endpoint(self.proxy, "proxy")
        if self.fingerprint is not None and not _FINGERPRINT.fullmatch(self.fingerprint):
            raise MalformedURL("The fingerprint is not that of a certificate: 32 pairs of hexadecimal digits.")
        if self.kms_key_id is not None and (self.encryption or "AES256") == "AES256":
            raise MalformedURL("A KMS key goes with the encryption aws:kms or aws:kms:dsse only.")
        if self.kms_key_id is not None and not _KMS_KEY.fullmatch(self.kms_key_id):
            raise MalformedURL("That cannot be the name of a KMS key.")
        for name in (self.chunk_storage_class, self.storage_class, self.region):
            if name is not None and not _WORD.fullmatch(name):
                raise MalformedURL(f"{name!r} cannot be the name of a region or a storage class.")
        if min(self.connect_timeout, self.read_timeout, self.request_timeout, self.slowest_rate) <= 0:
            raise MalformedURL("Time-outs and the slowest rate must be above 0.")


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
    if is_modern_bucket(bucket):
        return
    if not _OLD_BUCKET.fullmatch(bucket) or _is_ip_address(bucket):
        raise MalformedURL(
            f"{bucket!r} in {url!r} cannot be the name of a bucket: 3 to 63 lower-case letters, digits, hyphens and "
            "single dots, with a letter or digit at both ends, and not an IP address; in old stores up to 255 letters "
            "of either case, digits, dots, hyphens and underscores."
        )


def is_modern_bucket(bucket: str) -> bool:
    """Whether a bucket of this name can be made today, and be part of a host's name."""
    return _BUCKET.fullmatch(bucket) is not None and ".." not in bucket and not _is_ip_address(bucket)


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


def check_endpoint(url: str, kind: str = "endpoint") -> None:
    """Raises MalformedURL unless this is a plain http or https URL, without credentials."""
    wanted = "write https://HOST[:PORT]" if kind == "endpoint" else "write http://HOST:PORT"
    try:
        parts = urlsplit(url)
        has_port = parts.port is None or parts.port > 0
    except ValueError:
        # Its words repeat a part of the URL, and that may be a password.
        raise MalformedURL(f"The {kind} is not a URL; {wanted}.") from None
    if parts.username is not None or parts.password is not None:
        # Not repeated: what stands there may well be a secret.
        where = "see --profile for where they belong" if kind == "endpoint" else "HTTPS_PROXY in the environment may"
        raise MalformedURL(f"The {kind} URL must not hold credentials; {where}.")
    if parts.scheme not in ("http", "https") or not parts.hostname or not has_port or parts.query or parts.fragment:
        # What stands before an @ may be a secret also where it is not in its place.
        shown = repr(url) if "@" not in url else "What was given"
        raise MalformedURL(f"{shown} is not the URL of {'an endpoint' if kind == 'endpoint' else 'a proxy'}; {wanted}.")
    if re.search(r"[\s\x00-\x1f\x7f]", url):
        raise MalformedURL(f"{url!r} has white space inside; {wanted}.")


def _is_ip_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
