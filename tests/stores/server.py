"""What a test may ask of any store server: where it is, with which keys, and a bucket of its own."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import boto3
import botocore.config

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

REGION = "us-east-1"


@dataclass(frozen=True, slots=True)
class StoreAccess:
    """How to reach a store: everything that a client or a subprocess needs to be told."""

    endpoint_url: str
    access_key: str
    secret_key: str
    ca_bundle: str | None = None

    def environment(self) -> dict[str, str]:
        """The variables through which a subprocess gets the credentials, and nothing from this machine's own set-up."""
        variables = {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        if self.ca_bundle is not None:
            variables["AWS_CA_BUNDLE"] = self.ca_bundle
        return variables

    def client(self, timeout: float = 20.0, *, endpoint_url: str | None = None) -> S3Client:
        """A plain boto3 client for the test's own look at the bucket; it shares nothing with mirrorfs.

        `endpoint_url` leads it through something that stands before the store.
        """
        return boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint_url or self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
            verify=self.ca_bundle,
            config=botocore.config.Config(
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                retries={"mode": "standard", "total_max_attempts": 1},
                connect_timeout=timeout,
                read_timeout=timeout,
            ),
        )

    def iam_client(self) -> Any:  # noqa: ANN401 - there are no types for it here
        """A boto3 client for users and their policies, where the store has the IAM API at its endpoint."""
        return boto3.session.Session().client(
            "iam",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
            verify=self.ca_bundle,
        )

    def create_bucket(self, name: str | None = None, *, versioned: bool = False, locked: bool = False) -> str:
        """Makes a bucket, with a random name unless one is given, and returns its name.

        `locked` is with Object Lock, and so `versioned`, too; without a default retention.
        """
        bucket, client = name or f"test-{secrets.token_hex(8)}", self.client()
        client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=locked)
        if versioned and not locked:
            client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        return bucket

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """All keys below a prefix, sorted."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return sorted(found["Key"] for page in pages for found in page.get("Contents", []))


class AnyStore(Protocol):
    """A store to run against: one of our own that may be killed, or one that somebody has."""

    @property
    def access(self) -> StoreAccess:
        """Where it is and with which keys."""
        ...

    @property
    def may_be_killed(self) -> bool:
        """Whether `kill` and `restart` can be used."""
        ...

    @property
    def is_reached_by_http(self) -> bool:
        """Whether a proxy can stand before it: not where it is reached by TLS."""
        ...

    def environment(self) -> dict[str, str]:
        """What a process is started with to have the keys."""
        ...

    def is_running(self) -> bool:
        """Whether it has not been killed."""
        ...

    def kill(self) -> None:
        """End it as a crash would."""
        ...

    def restart(self) -> None:
        """Start it again on what it had."""
        ...


@dataclass(frozen=True, slots=True)
class GivenStore:
    """A store that somebody else runs."""

    access: StoreAccess
    may_be_killed: bool = False

    @classmethod
    def from_usual_chain(cls, endpoint_url: str, profile: str | None = None) -> GivenStore:
        """With the credentials that boto3 finds. Raises ValueError when there are none."""
        credentials = boto3.session.Session(profile_name=profile).get_credentials()
        if credentials is None:
            raise ValueError("there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile")
        keys = credentials.get_frozen_credentials()
        if keys.access_key is None or keys.secret_key is None:
            raise ValueError("the credentials that were found are not complete")
        return cls(StoreAccess(endpoint_url, keys.access_key, keys.secret_key))

    @property
    def is_reached_by_http(self) -> bool:
        """See AnyStore."""
        return self.access.endpoint_url.startswith("http://")

    def environment(self) -> dict[str, str]:
        """See AnyStore."""
        return self.access.environment()

    def is_running(self) -> bool:
        """Nobody here stops it."""
        return True

    def kill(self) -> None:
        """Is not ours to be killed."""
        raise RuntimeError("this store is somebody else's")

    def restart(self) -> None:
        """Is not ours to be started."""
        raise RuntimeError("this store is somebody else's")
