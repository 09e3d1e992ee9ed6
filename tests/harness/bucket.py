"""The little that the auditor needs of S3: list, get and head below one prefix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, cast

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError


class S3Client(Protocol):
    """The calls of a boto3 S3 client that are used here, for a test to imitate."""

    def list_objects_v2(self, *, Bucket: str, Prefix: str, ContinuationToken: str = ...) -> Mapping[str, object]: ...

    def get_object(self, *, Bucket: str, Key: str) -> Mapping[str, object]: ...

    def head_object(self, *, Bucket: str, Key: str) -> Mapping[str, object]: ...


class _Readable(Protocol):
    def read(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    """Which bytes an object had when it was seen: ETag, size in bytes, and when it was put, to the second."""

    etag: str
    size: int
    put_at: int


Taken = dict[str, dict[str, ObjectVersion]]
"""By key: the manifests, with their versions, that stood when the object was taken away. Of one that was put since,
nobody may say that somebody else is to blame for what it lacks."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """What stands in s3://bucket/name/. Keys given and returned are relative to that prefix.

    Listings overlook objects with these ETags: what the harness itself has put there as somebody else. `taken` holds
    what it has taken away as somebody else, and from whom.
    """

    client: S3Client
    bucket: str
    name: str
    overlooked: set[str] = field(default_factory=set, compare=False)
    taken: Taken = field(default_factory=dict, compare=False)

    @property
    def prefix(self) -> str:
        return f"{self.name}/"

    def list(self, below: str = "") -> dict[str, ObjectVersion]:
        """Every object below a relative prefix, page by page; relies on no order."""
        found: dict[str, ObjectVersion] = {}
        token: str | None = None
        while True:
            prefix = self.prefix + below
            page = (
                self.client.list_objects_v2(Bucket=self.bucket, Prefix=prefix)
                if token is None
                else self.client.list_objects_v2(Bucket=self.bucket, Prefix=prefix, ContinuationToken=token)
            )
            for entry in cast("list[Mapping[str, object]]", page.get("Contents", [])):
                key = str(entry["Key"])[len(self.prefix) :]
                version = _version(entry, size_field="Size")
                if version.etag not in self.overlooked:
                    found[key] = version
            token = cast("str | None", page.get("NextContinuationToken"))
            if not page.get("IsTruncated") or token is None:
                return found

    def get(self, key: str) -> tuple[ObjectVersion, bytes] | None:
        """An object and its bytes, or None when it is not there."""
        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + key)
            body = cast("_Readable", answer["Body"]).read()
        except ClientError as error:
            if is_missing(error):
                return None
            raise
        return ObjectVersion(_etag(answer), len(body), _put_at(answer)), body

    def was_taken(self, key: str, manifest_key: str, version: ObjectVersion) -> bool:
        """Whether somebody else has taken an object away from a manifest of this version."""
        return self.taken.get(key, {}).get(manifest_key) == version

    def head(self, key: str) -> ObjectVersion | None:
        """None when it is not there."""
        try:
            answer = self.client.head_object(Bucket=self.bucket, Key=self.prefix + key)
        except ClientError as error:
            if is_missing(error):
                return None
            raise
        return _version(answer, size_field="ContentLength")


def is_missing(error: ClientError) -> bool:
    """Whether a store's error says that there is no such object (a HEAD has only the number for it)."""
    return str(error.response.get("Error", {}).get("Code")) in ("404", "NoSuchKey", "NotFound")


def _version(entry: Mapping[str, object], *, size_field: str) -> ObjectVersion:
    return ObjectVersion(_etag(entry), int(cast("int", entry[size_field])), _put_at(entry))


def _etag(entry: Mapping[str, object]) -> str:
    return str(entry.get("ETag", "")).strip('"')


def _put_at(entry: Mapping[str, object]) -> int:
    return int(cast("datetime", entry["LastModified"]).timestamp())


def open_bucket(
    url: str,
    *,
    endpoint_url: str | None = None,
    region: str | None = None,
    profile: str | None = None,
    connections: int = 16,
) -> Bucket:
    """From s3://bucket/name; credentials come from boto3's usual chain. Raises ValueError for another URL."""
    bucket, separator, name = url.removeprefix("s3://").strip("/").partition("/")
    if not url.startswith("s3://") or not separator or not bucket or not name:
        raise ValueError(f"not of the form s3://BUCKET/NAME: {url}")
    config = Config(
        max_pool_connections=connections,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"max_attempts": 4, "mode": "standard"},
        s3={"addressing_style": "path" if endpoint_url else "auto"},
    )
    session = boto3.Session(profile_name=profile, region_name=region or "us-east-1")
    client = session.client("s3", endpoint_url=endpoint_url, config=config)
    return Bucket(cast("S3Client", client), bucket, name)
