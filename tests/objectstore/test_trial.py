"""Each right is tried alone, what is refused is named with the store's words, and nothing stays behind."""

from __future__ import annotations

import pytest

from mirrorfs.objectstore.answers import Precondition
from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.trial import Finding, Trial, Verdict
from mirrorfs.objectstore.url import StoreOptions
from tests.stores.fault_proxy import FaultProxy
from tests.stores.seaweedfs import StoreServer


def _run(endpoint_url: str, bucket: str, prefix: str) -> dict[str, Finding]:
    options = StoreOptions(endpoint_url=endpoint_url)
    return {one.subject: one for one in Trial(S3Client(bucket, options), options, f"{prefix}/.mirrorfs/trial").run()}


def _left_behind(store: StoreServer, bucket: str, prefix: str) -> int:
    return store.access.client().list_objects_v2(Bucket=bucket, Prefix=prefix)["KeyCount"]


def test_a_store_that_allows_all(store: StoreServer, shared_bucket: str, prefix: str, credentials: None) -> None:
    found = _run(store.endpoint_url, shared_bucket, prefix)
    assert {one.subject for one in found.values() if one.verdict is not Verdict.GOOD} == {"tls"}
    assert list(found) == [
        "access", "tls", "region", "clock", "put", "head", "get", "copy", "conditional put", "delete", "versioning",
        "object lock",
    ]  # fmt: skip
    assert (found["versioning"].said, found["object lock"].said) == ("off", "off")
    assert _left_behind(store, shared_bucket, prefix) == 0


def test_versions_and_locks_are_told(store: StoreServer, prefix: str, credentials: None) -> None:
    found = _run(store.endpoint_url, store.create_bucket(locked=True), prefix)
    assert found["versioning"].said.startswith("on: ")
    assert found["object lock"].said.startswith("on, without a default retention")


@pytest.mark.parametrize(
    ("method", "refused"), [("PUT", "put"), ("GET", "get"), ("DELETE", "delete"), ("POST", "delete")]
)
def test_what_is_refused_is_named(
    fault_proxy: FaultProxy,
    store: StoreServer,
    shared_bucket: str,
    prefix: str,
    credentials: None,
    method: str,
    refused: str,
) -> None:
    if method != "DELETE":
        fault_proxy.answer(403, "AccessDenied", method, "?*/check-*" if method != "POST" else "*")
    else:
        fault_proxy.answer(501, "NotImplemented", "POST")
        fault_proxy.answer(403, "AccessDenied", "DELETE")
    found = _run(fault_proxy.endpoint_url, shared_bucket, prefix)
    assert found[refused].verdict is Verdict.BAD
    assert "AccessDenied" in found[refused].said or "denied" in found[refused].said
    assert found["access"].verdict is Verdict.GOOD


def test_a_store_that_does_not_know_its_own_etag_again_has_no_conditional_puts(
    store: StoreServer, shared_bucket: str, prefix: str, credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a Ceph (16.2), which compares with the quotes that stand around it."""
    spelled = {"IfNoneMatch": "*"}, {"IfMatch": "\"'another'\""}
    monkeypatch.setattr(Precondition, "parameters", property(lambda asked: spelled[asked.etag is not None]))
    found = _run(store.endpoint_url, shared_bucket, prefix)["conditional put"]
    assert (found.verdict, found.said.partition(":")[0]) == (
        Verdict.WITHOUT,
        "refused although what was read still stands there",
    )


def test_without_the_store_that_is_all(shared_bucket: str, prefix: str, credentials: None) -> None:
    found = _run("http://127.0.0.1:9", shared_bucket, prefix)
    assert list(found) == ["access"]
    assert found["access"].verdict is Verdict.BAD
