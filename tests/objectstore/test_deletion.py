"""Deleting many objects: what is worth waiting for, what concerns one key, and what the store refuses for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

import pytest
import trio

from mirrorfs.objectstore.client import MAX_KEYS_PER_DELETE, S3Client
from mirrorfs.objectstore.errors import ObjectLocked, StoreError, StoreReason, StoreRejected, StoreUnavailable
from mirrorfs.objectstore.retry import AT_ONCE
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.objectstore.url import StoreOptions
from tests.objectstore.conftest import QUICK, LogWatcher, open_at
from tests.stores.fault_proxy import Fault, FaultProxy
from tests.stores.seaweedfs import StoreServer

pytestmark = pytest.mark.trio

Failures = dict[str, tuple[str, str]]


def answer(deleted: Sequence[str], failures: Failures) -> bytes:
    """The answer of a store to DeleteObjects; the failures are code and message of a key."""
    lines = [f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in deleted]
    lines += [
        f"<Error><Key>{escape(key)}</Key><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
        for key, (code, message) in failures.items()
    ]
    return f'<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{"".join(lines)}</DeleteResult>'.encode()


@pytest.fixture
def proxied(fault_proxy: FaultProxy, shared_bucket: str, credentials: None) -> ObjectStore:
    return open_at(fault_proxy.endpoint_url, shared_bucket)


async def test_what_goes_and_what_was_not_there_is_refused_by_nobody(objects: ObjectStore, prefix: str) -> None:
    await objects.put(f"{prefix}/a", b"content")
    assert await objects.delete_each([f"{prefix}/a", f"{prefix}/never-was"]) == {}
    assert await objects.head(f"{prefix}/a") is None
    assert await objects.delete_each([]) == {}


async def test_a_key_that_is_denied_alone_is_refused_and_does_not_hold_up_the_others(
    fault_proxy: FaultProxy, proxied: ObjectStore
) -> None:
    fault_proxy.answer(200, "", "POST", body=answer(["a", "c"], {"b": ("AccessDenied", "Access Denied.")}))
    refused = await proxied.delete_each(["a", "b", "c"])
    assert list(refused) == ["b"]
    assert isinstance(refused["b"], StoreRejected)
    assert "Could not delete b from bucket" in str(refused["b"])
    assert "AccessDenied: Access Denied, while it deletes others" in str(refused["b"])
    assert fault_proxy.count("POST") == 1


@pytest.mark.parametrize(
    ("code", "message"),
    [
        # AWS and Versity, Ceph, others.
        ("AccessDenied", "Access Denied because object protected by object lock."),
        ("AccessDenied", "forbidden by object lock"),
        ("AccessDenied", "Object is under a Legal Hold"),
        ("ObjectLocked", ""),
        ("FileImmutable", "The object you specified is immutable."),
    ],
)
async def test_a_lock_is_no_matter_of_credentials(
    fault_proxy: FaultProxy, proxied: ObjectStore, code: str, message: str
) -> None:
    fault_proxy.answer(200, "", "POST", body=answer([], {"a": (code, message), "b": (code, message)}))
    refused = await proxied.delete_each(["a", "b"])
    assert set(refused) == {"a", "b"}
    for error in refused.values():
        assert isinstance(error, ObjectLocked)
        assert error.code == code


@pytest.mark.parametrize("code", ["InvalidRequest", "MethodNotAllowed", "WORMProtected"])
async def test_what_the_store_refuses_for_good_is_told(
    fault_proxy: FaultProxy, proxied: ObjectStore, code: str
) -> None:
    failures = {"b": (code, "Object is WORM protected and cannot be overwritten")}
    fault_proxy.answer(200, "", "POST", body=answer(["a"], failures))
    (error,) = (await proxied.delete_each(["a", "b"])).values()
    assert isinstance(error, StoreRejected)
    assert error.code == code
    assert fault_proxy.count("POST") == 1


@pytest.mark.parametrize(
    "message",
    ["", "User: arn:aws:iam::1:user/m is not authorized to perform: s3:PutObjectRetention on resource: x"],
)
async def test_all_denied_is_a_matter_of_the_credentials_and_waited_for(
    fault_proxy: FaultProxy, proxied: ObjectStore, prefix: str, log_watcher: LogWatcher, message: str
) -> None:
    keys = [f"{prefix}/a", f"{prefix}/b"]
    for key in keys:
        await proxied.put(key, b"content")
    rule = fault_proxy.answer(200, "", "POST", body=answer([], dict.fromkeys(keys, ("AccessDenied", message))))
    async with trio.open_nursery() as nursery:

        async def delete() -> None:
            assert await proxied.delete_each(keys) == {}

        nursery.start_soon(delete)
        await log_watcher.wait_for("is not usable")
        rule.release()
    assert fault_proxy.count_injected(Fault.ANSWER) >= 3
    assert [await proxied.head(key) for key in keys] == [None, None]


async def test_all_denied_is_told_at_once_to_who_will_not_wait(
    fault_proxy: FaultProxy, shared_bucket: str, credentials: None
) -> None:
    fault_proxy.answer(200, "", "POST", body=answer([], {"a": ("AccessDenied", "")}))
    with pytest.raises(StoreUnavailable) as caught:
        await open_at(fault_proxy.endpoint_url, shared_bucket, AT_ONCE).delete_each(["a"])
    assert caught.value.reason is StoreReason.ACCESS_DENIED


async def test_all_denied_makes_other_credentials_be_looked_for(
    fault_proxy: FaultProxy, shared_bucket: str, credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = open_at(fault_proxy.endpoint_url, shared_bucket, AT_ONCE)
    await objects.check_bucket()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    fault_proxy.answer(200, "", "POST", times=2, body=answer(["b"], {"a": ("AccessDenied", "")}))
    await objects.delete_each(["a", "b"])
    await objects.check_bucket()
    with pytest.raises(StoreUnavailable):
        await objects.delete_each(["a"])
    with pytest.raises(StoreUnavailable) as caught:
        await objects.check_bucket()
    assert caught.value.reason is StoreReason.WRONG_KEY


async def test_only_the_key_that_failed_is_tried_again(
    fault_proxy: FaultProxy, proxied: ObjectStore, prefix: str
) -> None:
    keys = [f"{prefix}/a", f"{prefix}/b"]
    for key in keys:
        await proxied.put(key, b"content")
    # It only says so, hence what it calls deleted would go if it were sent again.
    fault_proxy.answer(200, "", "POST", times=1, body=answer(keys[:1], {keys[1]: ("InternalError", "")}))
    assert await proxied.delete_each(keys) == {}
    assert fault_proxy.count("POST") == 2
    assert await proxied.head(keys[0]) is not None
    assert await proxied.head(keys[1]) is None


async def test_a_key_that_is_denied_when_tried_again_is_refused(fault_proxy: FaultProxy, proxied: ObjectStore) -> None:
    fault_proxy.answer(200, "", "POST", times=1, body=answer(["a"], {"b": ("SlowDown", "")}))
    fault_proxy.answer(200, "", "POST", times=1, body=answer([], {"b": ("AccessDenied", "")}))
    assert list(await proxied.delete_each(["a", "b"])) == ["b"]
    assert fault_proxy.count("POST") == 2


async def test_a_key_that_fails_again_and_again_while_others_go_is_refused_at_last(
    fault_proxy: FaultProxy, proxied: ObjectStore
) -> None:
    fault_proxy.answer(200, "", "POST", body=answer(["a"], {"b": ("InternalError", "sick")}))
    (error,) = (await proxied.delete_each(["a", "b"])).values()
    assert isinstance(error, StoreRejected)
    assert "InternalError" in str(error)
    assert 3 < fault_proxy.count("POST") < 20


async def test_a_key_that_is_named_twice_proves_nothing_about_the_credentials(
    fault_proxy: FaultProxy, shared_bucket: str, credentials: None
) -> None:
    fault_proxy.answer(200, "", "POST", body=answer([], {"a": ("AccessDenied", "")}))
    with pytest.raises(StoreUnavailable):
        await open_at(fault_proxy.endpoint_url, shared_bucket, AT_ONCE).delete_each(["a", "a"])


async def test_one_denied_key_alone_is_refused_where_another_can_be_deleted(
    fault_proxy: FaultProxy, proxied: ObjectStore, prefix: str
) -> None:
    await proxied.probe(f"{prefix}/probe")
    before = fault_proxy.count("POST")
    fault_proxy.answer(200, "", "POST", times=1, body=answer([], {"a": ("AccessDenied", "Access Denied.")}))
    assert list(await proxied.delete_each(["a"])) == ["a"]
    assert fault_proxy.count("POST") == before + 2


class RefusingClient(S3Client):
    """Deletes nothing, and has an error for some of the keys."""

    def __init__(self, errors: Mapping[str, StoreError]) -> None:
        super().__init__("bucket", StoreOptions(endpoint_url="http://127.0.0.1:9"))
        self.errors = errors
        self.batches: list[list[str]] = []

    def delete_objects(self, keys: Sequence[str]) -> Mapping[str, StoreError]:
        self.batches.append(list(keys))
        return {key: self.errors[key] for key in keys if key in self.errors}


async def test_batches_are_as_large_as_may_be_and_a_refusal_ends_none() -> None:
    keys = [f"{number}" for number in range(2 * MAX_KEYS_PER_DELETE + 1)]
    error = StoreRejected("delete 5 from there", "it is refused")
    client = RefusingClient({"5": error})
    steps: list[tuple[str, str]] = []
    objects = ObjectStore(client, patience=QUICK, observer=lambda step, key: steps.append((step, key)))
    assert await objects.delete_each(keys) == {"5": error}
    assert client.batches == [keys[:1000], keys[1000:2000], keys[2000:]]
    assert [key for step, key in steps if step == "before-delete"] == keys
    assert [key for step, key in steps if step == "after-delete"] == [key for key in keys if key != "5"]
    client.batches.clear()
    with pytest.raises(StoreRejected, match="it is refused"):
        await objects.delete(keys)
    assert [len(batch) for batch in client.batches] == [1000, 1000, 1]


async def test_in_a_versioned_bucket_the_earlier_versions_stay(store: StoreServer, credentials: None) -> None:
    bucket = store.create_bucket(versioned=True)
    objects = open_at(store.endpoint_url, bucket)
    await objects.put("m/a", b"content")
    assert await objects.delete_each(["m/a"]) == {}
    assert await objects.head("m/a") is None
    (version,) = store.access.client().list_object_versions(Bucket=bucket)["Versions"]
    assert version["Key"] == "m/a"
