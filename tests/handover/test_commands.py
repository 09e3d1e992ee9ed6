"""What is to be typed on a PBS fits the store that was reached, whatever its kind."""

from __future__ import annotations

import pytest

from mirrorfs.handover.commands import pbs_commands, problem_with_endpoint
from mirrorfs.objectstore.url import StoreAddress, StoreOptions

ADDRESS = StoreAddress("backups", "store1")


def endpoint_of(
    endpoint_url: str, options: StoreOptions | None = None, bucket: str = "backups", region: str | None = "eu-1"
) -> str:
    first, *_ = pbs_commands(StoreAddress(bucket, "store1"), options or StoreOptions(), endpoint_url, region)
    head = "proxmox-backup-manager s3 endpoint create store1 --access-key ACCESS_KEY --secret-key SECRET_KEY "
    assert first.startswith(head)
    return first.removeprefix(head)


def test_a_store_of_ones_own() -> None:
    assert endpoint_of("https://s3.example.com") == "--endpoint s3.example.com --path-style true --region eu-1"
    assert endpoint_of("https://10.0.0.1:9000") == "--endpoint 10.0.0.1 --port 9000 --path-style true --region eu-1"
    assert endpoint_of("https://s3.example.com", region=None).endswith("--region REGION")
    virtual = StoreOptions(addressing_style="virtual")
    assert endpoint_of("https://s3.example.com", virtual) == "--endpoint '{{bucket}}.s3.example.com' --region eu-1"


def test_amazon() -> None:
    url = "https://s3.eu-1.amazonaws.com"
    assert endpoint_of(url) == "--endpoint '{{bucket}}.s3.{{region}}.amazonaws.com' --region eu-1"
    path = "--endpoint 's3.{{region}}.amazonaws.com' --path-style true --region eu-1"
    assert endpoint_of(url, StoreOptions(addressing_style="path")) == path
    assert endpoint_of(url, bucket="Old_Bucket") == path


def test_a_certificate_that_nobody_vouches_for() -> None:
    options = StoreOptions(fingerprint="AB" * 32)
    assert endpoint_of("https://s3.example.com", options).endswith(f"--fingerprint {':'.join(['ab'] * 32)}")


def test_check_and_datastore() -> None:
    _, check, datastore = pbs_commands(ADDRESS, StoreOptions(), "https://s3.example.com", "eu-1")
    assert check == "proxmox-backup-manager s3 check store1 backups --store-prefix store1"
    assert datastore.startswith("proxmox-backup-manager datastore create store1 /mnt/s3-cache/store1 ")
    assert datastore.endswith("--backend type=s3,client=store1,bucket=backups --reuse-datastore true")


def test_a_pbs_speaks_https_only() -> None:
    assert problem_with_endpoint("https://s3.example.com") is None
    assert "https only" in str(problem_with_endpoint("http://s3.example.com"))


@pytest.mark.parametrize(("prefix", "can_be"), [("abc", True), ("n" * 32, True), ("ab", False), ("a/b/c", False)])
def test_names_that_a_pbs_takes(prefix: str, can_be: bool) -> None:
    assert (StoreAddress("backups", prefix).problem_for_pbs is None) is can_be
    assert StoreAddress("backups", "n" * 33).problem_for_pbs is not None
