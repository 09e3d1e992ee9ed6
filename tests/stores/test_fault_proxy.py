"""Each fault does to requests and to the store what its description says, and no more."""

from __future__ import annotations

import base64
import datetime
import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import crc32c
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from tests.stores.fault_memory import ChangeMemory, Version
from tests.stores.fault_proxy import WEATHER, Fault, FaultProxy, Rule
from tests.stores.fault_rules import Shape, Storm
from tests.stores.seaweedfs import StoreServer
from tests.stores.server import StoreAccess

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ObjectIdentifierTypeDef

BODY = bytes(range(256)) * 400


@pytest.fixture
def client(fault_proxy: FaultProxy, store: StoreServer) -> S3Client:
    """A boto3 client that talks through the proxy and tries everything once."""
    return StoreAccess(fault_proxy.endpoint_url, store.access_key, store.secret_key).client()


class Clock:
    """The time that the proxy's memory goes by."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(fault_proxy: FaultProxy) -> Clock:
    """One that only goes when a test says so."""
    clock = Clock()
    fault_proxy.memory = ChangeMemory(clock)
    return clock


def listed(client: S3Client, bucket: str, prefix: str, page: int = 1000) -> dict[str, int]:
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=bucket, Prefix=prefix, PaginationConfig={"PageSize": page}
    )
    return {found["Key"]: found["Size"] for page in pages for found in page.get("Contents", [])}


def is_there(client: S3Client, bucket: str, key: str) -> bool:
    try:
        client.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
        return False
    return True


def test_dropping_during_the_body_stores_nothing(
    fault_proxy: FaultProxy, client: S3Client, store: StoreServer, shared_bucket: str, prefix: str
) -> None:
    fault_proxy.drop_during("PUT", times=1)
    with pytest.raises(BotoCoreError):
        client.put_object(Bucket=shared_bucket, Key=f"{prefix}/a", Body=BODY)
    assert store.access.keys(shared_bucket, prefix) == []
    assert fault_proxy.injected == {"drop-during": 1}


@pytest.mark.parametrize(
    ("arm", "status", "code"),
    [
        (FaultProxy.server_error, 500, "InternalError"),
        (FaultProxy.slow_down, 503, "SlowDown"),
        (FaultProxy.deny, 403, "AccessDenied"),
    ],
)
def test_answers_in_the_stores_place(
    fault_proxy: FaultProxy,
    client: S3Client,
    shared_bucket: str,
    arm: Callable[[FaultProxy], Rule],
    status: int,
    code: str,
) -> None:
    rule = arm(fault_proxy)
    with pytest.raises(ClientError) as caught:
        client.list_objects_v2(Bucket=shared_bucket)
    metadata = caught.value.response["ResponseMetadata"]
    assert (metadata["HTTPStatusCode"], caught.value.response["Error"]["Code"]) == (status, code)
    assert metadata["HTTPHeaders"].get("retry-after") == ("1" if code == "SlowDown" else None)
    rule.release()
    client.list_objects_v2(Bucket=shared_bucket)


def test_a_denial_ends_by_itself(fault_proxy: FaultProxy, client: S3Client, shared_bucket: str) -> None:
    fault_proxy.deny(0.3)
    started = time.monotonic()
    with pytest.raises(ClientError, match="AccessDenied"):
        client.list_objects_v2(Bucket=shared_bucket)
    while time.monotonic() < started + 0.35:
        threading.Event().wait(0.05)
    client.list_objects_v2(Bucket=shared_bucket)


def test_damaged_answers(fault_proxy: FaultProxy, client: S3Client, shared_bucket: str, prefix: str) -> None:
    key = f"{prefix}/a"
    etag = client.put_object(Bucket=shared_bucket, Key=key, Body=BODY)["ETag"]
    fault_proxy.corrupt_answer(times=1)
    fault_proxy.shorten(times=1)
    corrupted = client.get_object(Bucket=shared_bucket, Key=key)
    body = corrupted["Body"].read()
    assert corrupted["ETag"] == etag
    assert len(body) == len(BODY)
    assert sum(one != other for one, other in zip(body, BODY, strict=True)) == 1
    shortened = client.get_object(Bucket=shared_bucket, Key=key)
    assert shortened["Body"].read() == BODY[: len(BODY) // 2]
    assert shortened["ContentLength"] == len(BODY) // 2
    assert client.get_object(Bucket=shared_bucket, Key=key)["Body"].read() == BODY


def test_a_lost_put_looks_like_one_that_was_stored(
    fault_proxy: FaultProxy, client: S3Client, store: StoreServer, shared_bucket: str, prefix: str
) -> None:
    checksum = base64.b64encode(crc32c.crc32c(BODY).to_bytes(4, "big")).decode()
    fault_proxy.lose(times=1)
    answers = [
        client.put_object(Bucket=shared_bucket, Key=f"{prefix}/{name}", Body=BODY, ChecksumCRC32C=checksum)
        for name in ("lost", "kept")
    ]
    assert answers[0]["ETag"] == answers[1]["ETag"] == f'"{hashlib.md5(BODY, usedforsecurity=False).hexdigest()}"'
    assert answers[0]["ChecksumCRC32C"] == answers[1]["ChecksumCRC32C"] == checksum
    assert store.access.keys(shared_bucket, prefix) == [f"{prefix}/kept"]


def test_a_delay_ends_when_the_weather_clears(
    fault_proxy: FaultProxy, client: S3Client, shared_bucket: str, prefix: str
) -> None:
    # Longer than the client waits.
    rule = fault_proxy.delay(50.0)
    with ThreadPoolExecutor() as pool:
        putting = pool.submit(client.put_object, Bucket=shared_bucket, Key=f"{prefix}/a", Body=BODY)
        assert rule.reached.wait(10)
        fault_proxy.clear()
        putting.result()


def test_a_stale_head_tells_what_was(
    fault_proxy: FaultProxy, client: S3Client, shared_bucket: str, prefix: str, clock: Clock
) -> None:
    key = f"{prefix}/a"

    def head() -> tuple[int, str] | None:
        if not is_there(client, shared_bucket, key):
            return None
        answer = client.head_object(Bucket=shared_bucket, Key=key)
        return answer["ContentLength"], answer["ETag"]

    client.put_object(Bucket=shared_bucket, Key=key, Body=b"old")
    old = head()
    assert old is not None
    clock.now += 10
    client.put_object(Bucket=shared_bucket, Key=key, Body=b"newer")
    new = head()
    clock.now += 10
    client.delete_object(Bucket=shared_bucket, Key=key)
    assert head() is None
    for seconds, told in ((1, new), (11, old), (21, None)):
        rule = fault_proxy.stale_head(seconds)
        assert head() == told
        rule.release()
    assert fault_proxy.count_injected(Fault.STALE_HEAD, "HEAD") == 4
    fault_proxy.stale_head(100.0)
    with pytest.raises(ClientError, match="NoSuchKey"):
        client.get_object(Bucket=shared_bucket, Key=key)
    clock.now += 10
    fault_proxy.stale_head(9.0)
    client.put_object(Bucket=shared_bucket, Key=f"{prefix}/b", Body=b"b")
    assert not is_there(client, shared_bucket, f"{prefix}/b")


@pytest.mark.parametrize("page", [1000, 2])
def test_a_stale_listing_lacks_what_is_new_and_shows_what_is_gone(
    fault_proxy: FaultProxy, client: S3Client, shared_bucket: str, prefix: str, page: int, clock: Clock
) -> None:
    before = {f"{prefix}/{name}": len(name) for name in ("a b", "c+d", "é", "stays", "z/1", "z/2")}
    for key, size in before.items():
        client.put_object(Bucket=shared_bucket, Key=key, Body=b"x" * size)
    clock.now += 10
    client.put_object(Bucket=shared_bucket, Key=f"{prefix}/new", Body=b"new")
    client.put_object(Bucket=shared_bucket, Key=f"{prefix}/stays", Body=b"other content")
    client.put_object(Bucket=shared_bucket, Key=f"{prefix}-beside", Body=b"not asked for")
    gone: list[ObjectIdentifierTypeDef] = [{"Key": f"{prefix}/{name}"} for name in ("a b", "c+d", "é")]
    client.delete_objects(Bucket=shared_bucket, Delete={"Objects": [*gone, {"Key": f"{prefix}/never-was"}]})
    client.delete_object(Bucket=shared_bucket, Key=f"{prefix}/z/1")
    now = {f"{prefix}/new": 3, f"{prefix}/stays": 13, f"{prefix}/z/2": 3}
    assert listed(client, shared_bucket, f"{prefix}/", page) == now
    rule = fault_proxy.stale_list(5.0, times=1)
    # One rule, used once: the later pages follow the first.
    assert listed(client, shared_bucket, f"{prefix}/", page) == before
    assert rule.remaining == 0
    assert listed(client, shared_bucket, f"{prefix}/", page) == now


def test_what_goes_while_an_old_listing_is_read_is_still_on_its_later_pages(
    fault_proxy: FaultProxy, client: S3Client, shared_bucket: str, prefix: str, clock: Clock
) -> None:
    keys = [f"{prefix}/{number}" for number in range(6)]
    for key in keys:
        client.put_object(Bucket=shared_bucket, Key=key, Body=b"content")
    fault_proxy.stale_list(0.0, times=1)
    first = client.list_objects_v2(Bucket=shared_bucket, Prefix=f"{prefix}/", MaxKeys=3)
    shown = [found["Key"] for found in first["Contents"]]
    clock.now += 1
    client.delete_object(Bucket=shared_bucket, Key=keys[-1])
    client.put_object(Bucket=shared_bucket, Key=f"{prefix}/9", Body=b"content")
    second = client.list_objects_v2(
        Bucket=shared_bucket, Prefix=f"{prefix}/", ContinuationToken=first["NextContinuationToken"]
    )
    shown += [found["Key"] for found in second["Contents"]]
    assert sorted(shown) == keys


def test_the_lagging_endpoint_lags_in_its_listings_only(
    fault_proxy: FaultProxy, client: S3Client, store: StoreServer, shared_bucket: str, prefix: str
) -> None:
    lagging = StoreAccess(fault_proxy.lagging_endpoint(50.0, seed=4), store.access_key, store.secret_key).client()
    client.put_object(Bucket=shared_bucket, Key=f"{prefix}/old", Body=b"old")
    fault_proxy.refuse_connections()
    # Nearly all of what it may pick lies before the test.
    seen = [frozenset(listed(lagging, shared_bucket, prefix)) for _ in range(20)]
    assert frozenset() in seen
    assert is_there(lagging, shared_bucket, f"{prefix}/old")
    assert lagging.get_object(Bucket=shared_bucket, Key=f"{prefix}/old")["Body"].read() == b"old"
    with pytest.raises(ClientError, match="MethodNotAllowed"):
        lagging.put_object(Bucket=shared_bucket, Key=f"{prefix}/new", Body=b"new")
    assert fault_proxy.injected["stale-list"] == seen.count(frozenset())


def test_a_lagging_endpoint_without_lag_shows_what_is(
    fault_proxy: FaultProxy, client: S3Client, store: StoreServer, shared_bucket: str, prefix: str
) -> None:
    lagging = StoreAccess(fault_proxy.lagging_endpoint(0.0), store.access_key, store.secret_key).client()
    client.put_object(Bucket=shared_bucket, Key=f"{prefix}/a", Body=b"a")
    assert listed(lagging, shared_bucket, prefix) == {f"{prefix}/a": 1}


def test_a_copy_is_lost_and_seen_late_as_a_put_is(
    fault_proxy: FaultProxy, client: S3Client, store: StoreServer, shared_bucket: str, prefix: str
) -> None:
    source, key = f"{prefix}/é b+&", f"{prefix}/copy"
    client.put_object(Bucket=shared_bucket, Key=source, Body=b"content")
    fault_proxy.lose(key, times=1)

    def copy() -> str:
        answer = client.copy_object(Bucket=shared_bucket, Key=key, CopySource={"Bucket": shared_bucket, "Key": source})
        return answer["CopyObjectResult"]["ETag"].strip('"')

    lost = copy()
    assert key not in store.access.keys(shared_bucket, prefix)
    assert copy() == lost == hashlib.md5(b"content").hexdigest()
    assert store.access.keys(shared_bucket, prefix) == sorted([source, key])
    fault_proxy.stale_head(60.0, key)
    with pytest.raises(ClientError):
        client.head_object(Bucket=shared_bucket, Key=key)


def test_what_is_said_of_a_retention_is_no_content(fault_proxy: FaultProxy, store: StoreServer, prefix: str) -> None:
    bucket = store.create_bucket(locked=True)
    client = StoreAccess(fault_proxy.endpoint_url, store.access_key, store.secret_key).client()
    client.put_object(Bucket=bucket, Key="a", Body=b"content")
    version = fault_proxy.memory.latest(bucket, "a")
    fault_proxy.storm(1, [Fault.LOSE, Fault.CORRUPT], probability=1.0)
    until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=1)
    client.put_object_retention(Bucket=bucket, Key="a", Retention={"Mode": "GOVERNANCE", "RetainUntilDate": until})
    assert fault_proxy.injected == {}
    assert version is not None
    assert fault_proxy.memory.latest(bucket, "a") == version
    assert client.get_object_retention(Bucket=bucket, Key="a")["Retention"]["Mode"] == "GOVERNANCE"


def weather_of(seed: int, shapes: list[Shape]) -> list[Fault | None]:
    storm = Storm(seed, None, 0.5, 1.0)
    met = [storm.strike(shape) for shape in shapes]
    return [None if rule is None else rule.fault for rule in met]


def test_a_storm_is_the_same_for_the_same_seed_and_brings_every_kind() -> None:
    shapes = [
        Shape("PUT", "a", has_body=True, is_listing=False),
        Shape("GET", "a", has_body=False, is_listing=False),
        Shape("HEAD", "a", has_body=False, is_listing=False),
        Shape("GET", "", has_body=False, is_listing=True),
    ] * 500
    assert weather_of(1, shapes) == weather_of(1, shapes) != weather_of(2, shapes)
    assert set(weather_of(1, shapes)) == {None, *WEATHER}
    for shape, fault in zip(shapes, weather_of(3, shapes), strict=True):
        assert fault is None or shape.can_meet(fault)


def test_a_storm_ends_with_clear_and_is_counted(fault_proxy: FaultProxy, client: S3Client, shared_bucket: str) -> None:
    fault_proxy.storm(5, [Fault.SERVER_ERROR, Fault.SLOW_DOWN], probability=1.0)
    for _ in range(20):
        with pytest.raises(ClientError):
            client.list_objects_v2(Bucket=shared_bucket)
    assert set(fault_proxy.injected) == {"server-error", "slow-down"}
    assert sum(fault_proxy.injected.values()) == 20
    fault_proxy.clear()
    client.list_objects_v2(Bucket=shared_bucket)
    assert sum(fault_proxy.injected.values()) == 20


def test_clearing_lets_what_a_storm_delays_go_on(fault_proxy: FaultProxy, client: S3Client, shared_bucket: str) -> None:
    fault_proxy.storm(5, [Fault.DELAY], probability=1.0, longest_delay=1000.0)
    with ThreadPoolExecutor() as pool:
        listing = pool.submit(client.list_objects_v2, Bucket=shared_bucket)
        assert fault_proxy.wait_until_waiting(1)
        fault_proxy.clear()
        listing.result(timeout=10)


def test_the_names_of_the_kinds_are_those_of_the_tables() -> None:
    assert [fault.label for fault in WEATHER] == [
        "drop-before",
        "drop-during",
        "drop-after",
        "server-error",
        "slow-down",
        "deny",
        "corrupt",
        "corrupt-answer",
        "truncate",
        "shorten",
        "lose",
        "stale-head",
        "stale-list",
        "odd",
        "trickle",
        "delay",
    ]


def test_memory_of_changes_ends_at_the_horizon() -> None:
    clock = Clock()
    memory = ChangeMemory(clock)
    version = Version(1, '"e"', None, 0.0)
    for number in range(1000):
        memory.note_put("bucket", f"{number}", version)
        clock.now += 1
    assert memory.changed_within("bucket", "1", 1e6) is None
    assert memory.changed_within("bucket", "990", 1e6) == (None,)
