"""What is said and done when the store cannot be used, or what passes is damaged; real failures where possible."""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import logging
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import botocore.auth
import botocore.compat
import pytest
import trio

import mirrorfs.objectstore.refusals
from mirrorfs.objectstore.capabilities import StoreCapabilities
from mirrorfs.objectstore.errors import ConfirmationFailed, StoreError, StoreReason, StoreRejected, StoreUnavailable
from mirrorfs.objectstore.retry import AT_ONCE
from mirrorfs.objectstore.store import ObjectStore, open_store
from mirrorfs.objectstore.url import StoreOptions
from tests.objectstore.conftest import QUICK, LogWatcher, open_at
from tests.objectstore.test_store import BY_ETAG, BY_READING
from tests.stores.capabilities import ENOUGH, HONEST
from tests.stores.fault_proxy import Fault, FaultProxy, Rule
from tests.stores.seaweedfs import StoreServer

pytestmark = pytest.mark.trio

WRONG_SECRET = "this-secret-must-never-be-seen-anywhere"
SESSION_TOKEN = "this-token-must-never-be-seen-anywhere"


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nobody listens on, and that nobody can take."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


async def failure_of(objects: ObjectStore) -> StoreUnavailable:
    """The one reason for which every operation fails."""
    failures: list[StoreUnavailable] = []
    operations = (
        lambda: objects.put("m/a", b"content"),
        lambda: objects.get("m/a", ENOUGH),
        lambda: objects.head("m/a"),
        lambda: objects.delete(["m/a"]),
        lambda: objects.list("m/").__anext__(),
        lambda: objects.probe("m/probe"),
        objects.check_bucket,
    )
    for operation in operations:
        with pytest.raises(StoreUnavailable) as caught:
            await operation()
        failures.append(caught.value)
    assert len({failure.reason for failure in failures}) == 1
    return failures[0]


def assert_helpful(failure: StoreUnavailable, *words: str) -> None:
    text = str(failure)
    assert text.startswith("Could not store m/a in bucket ")
    assert text.endswith(failure.reason.hint)
    assert "\n" not in text
    for word in words:
        assert word in text


async def test_unreachable(closed_port: int, credentials: None) -> None:
    failure = await failure_of(open_at(f"http://127.0.0.1:{closed_port}", "bucket", AT_ONCE))
    assert failure.reason is StoreReason.UNREACHABLE
    assert_helpful(failure, f"http://127.0.0.1:{closed_port}", "Connection refused")


async def test_unknown_host(credentials: None) -> None:
    failure = await failure_of(open_at("http://no-such-host.invalid", "bucket", AT_ONCE))
    assert failure.reason is StoreReason.UNREACHABLE
    assert_helpful(failure, "http://no-such-host.invalid")
    assert "broke off" not in str(failure)


async def test_bucket_missing(store: StoreServer, credentials: None) -> None:
    failure = await failure_of(open_at(store.endpoint_url, "no-such-bucket-here", AT_ONCE))
    assert failure.reason is StoreReason.BUCKET_MISSING
    assert_helpful(failure, "no-such-bucket-here", "NoSuchBucket")


async def test_wrong_secret(
    store: StoreServer, shared_bucket: str, credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", WRONG_SECRET)
    failure = await failure_of(open_at(store.endpoint_url, shared_bucket, AT_ONCE))
    assert failure.reason is StoreReason.WRONG_KEY
    assert_helpful(failure, "SignatureDoesNotMatch")


async def test_unknown_access_key(
    store: StoreServer, shared_bucket: str, credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANOBODY")
    failure = await failure_of(open_at(store.endpoint_url, shared_bucket, AT_ONCE))
    assert failure.reason is StoreReason.WRONG_KEY
    assert "AKIANOBODY" not in str(failure)


async def test_no_credentials(
    store: StoreServer, shared_bucket: str, credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    failure = await failure_of(open_at(store.endpoint_url, shared_bucket, AT_ONCE))
    assert failure.reason is StoreReason.NO_CREDENTIALS
    assert_helpful(failure, "AWS_ACCESS_KEY_ID", "--profile")


async def test_unknown_profile(store: StoreServer, shared_bucket: str, credentials: None) -> None:
    options = StoreOptions(endpoint_url=store.endpoint_url, profile="nobody")
    failure = await failure_of(open_store(shared_bucket, options, patience=AT_ONCE))
    assert failure.reason is StoreReason.NO_CREDENTIALS
    assert_helpful(failure, "nobody")


async def test_a_bad_endpoint_in_the_environment(credentials: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "not a url")
    with pytest.raises(StoreUnavailable, match="AWS_"):
        await open_store("bucket", StoreOptions(), patience=AT_ONCE).get("m/a", ENOUGH)


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (403, "AccessDenied", StoreReason.ACCESS_DENIED),
        (403, "SomethingNew", StoreReason.ACCESS_DENIED),
        (403, "RequestTimeTooSkewed", StoreReason.CLOCK_SKEW),
        (400, "ExpiredToken", StoreReason.WRONG_KEY),
        (403, "QuotaExceeded", StoreReason.FULL),
        (507, "InsufficientStorage", StoreReason.FULL),
        (503, "SlowDown", StoreReason.THROTTLED),
        (429, "TooManyRequests", StoreReason.THROTTLED),
        (500, "InternalError", StoreReason.SERVER_ERROR),
        (502, "", StoreReason.SERVER_ERROR),
        (503, "ServiceUnavailable", StoreReason.SERVER_ERROR),
        (400, "RequestTimeout", StoreReason.SERVER_ERROR),
        (400, "AuthorizationHeaderMalformed", StoreReason.WRONG_REGION),
    ],
)
async def test_answers_that_are_worth_waiting_for(
    fault_proxy: FaultProxy, shared_bucket: str, credentials: None, status: int, code: str, reason: StoreReason
) -> None:
    fault_proxy.answer(status, code)
    objects = open_at(fault_proxy.endpoint_url, shared_bucket, AT_ONCE)
    with pytest.raises(StoreUnavailable) as caught:
        await objects.put("m/a", b"content")
    assert caught.value.reason is reason
    assert_helpful(caught.value)
    # The answer to a HEAD has no body and names no code.
    with pytest.raises(StoreUnavailable) as caught:
        await objects.head("m/a")
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("status", "code"), [(400, "InvalidRequest"), (405, "MethodNotAllowed"), (501, "NotImplemented")]
)
async def test_a_refusal_of_this_request_is_not_waited_for(
    fault_proxy: FaultProxy, shared_bucket: str, credentials: None, status: int, code: str
) -> None:
    fault_proxy.answer(status, code, "PUT")
    with pytest.raises(StoreRejected, match=f"answers {code}"):
        await open_at(fault_proxy.endpoint_url, shared_bucket).put("m/a", b"content")
    # Once with the header of a checksum, and, since it might have been that, once without.
    assert fault_proxy.count("PUT") == 2


async def test_a_web_server_that_is_no_store(fault_proxy: FaultProxy, shared_bucket: str, credentials: None) -> None:
    fault_proxy.answer(404, "<html>")
    with pytest.raises(StoreError):
        await open_at(fault_proxy.endpoint_url, shared_bucket, AT_ONCE).check_bucket()


async def test_repaired_credentials_are_found_without_a_restart(
    store: StoreServer,
    shared_bucket: str,
    prefix: str,
    credentials: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    log_watcher: LogWatcher,
) -> None:
    path = tmp_path / "credentials"

    def write_credentials(secret: str) -> None:
        path.write_text(f"[mirror]\naws_access_key_id = {store.access_key}\naws_secret_access_key = {secret}\n")

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    write_credentials(WRONG_SECRET)
    options = StoreOptions(endpoint_url=store.endpoint_url, profile="mirror")
    objects = open_store(shared_bucket, options, patience=QUICK)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(objects.put, f"{prefix}/a", b"content")
        await log_watcher.wait_for("is not usable")
        write_credentials(store.secret_key)
    assert await objects.get(f"{prefix}/a", ENOUGH) == b"content"
    assert log_watcher.count("is usable again") == 1


async def test_a_put_whose_answer_is_lost_is_looked_for_before_it_is_sent_again(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None
) -> None:
    objects = open_at(fault_proxy.endpoint_url, shared_bucket)
    objects.capabilities = HONEST
    fault_proxy.drop_after("PUT", times=1)
    await objects.put(f"{prefix}/a", b"content")
    assert [seen.status for seen in fault_proxy.requests("PUT")] == [None]
    assert await objects.get(f"{prefix}/a", ENOUGH) == b"content"


@pytest.mark.parametrize("capabilities", [HONEST, BY_ETAG, BY_READING])
async def test_a_put_that_is_damaged_on_its_way_is_sent_again(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None, capabilities: StoreCapabilities
) -> None:
    objects = open_at(fault_proxy.endpoint_url, shared_bucket)
    objects.capabilities = capabilities
    fault_proxy.corrupt("PUT", times=2)
    await objects.put(f"{prefix}/a", b"content")
    assert fault_proxy.count("PUT") == 3
    assert await objects.get(f"{prefix}/a", ENOUGH) == b"content"


async def test_a_put_that_is_damaged_each_time_fails_with_a_sentence(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None
) -> None:
    objects = open_at(fault_proxy.endpoint_url, shared_bucket)
    fault_proxy.corrupt("PUT")
    with pytest.raises(ConfirmationFailed, match=f"store {prefix}/a in bucket"):
        await objects.put(f"{prefix}/a", b"content")
    assert (objects.uploaded_objects, objects.uploaded_bytes) == (0, 0)


async def test_a_get_that_is_cut_short_is_repeated(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None
) -> None:
    objects = open_at(fault_proxy.endpoint_url, shared_bucket)
    body = b"content" * 100_000
    await objects.put(f"{prefix}/a", body)
    fault_proxy.truncate("GET", times=2)
    assert await objects.get(f"{prefix}/a", ENOUGH) == body


@pytest.mark.parametrize("damage", [FaultProxy.corrupt_answer, FaultProxy.shorten])
async def test_a_get_that_is_damaged_on_its_way_is_repeated(
    fault_proxy: FaultProxy,
    shared_bucket: str,
    prefix: str,
    credentials: None,
    damage: Callable[..., Rule],
) -> None:
    objects = open_at(fault_proxy.endpoint_url, shared_bucket)
    body = b"content" * 10_000
    await objects.put(f"{prefix}/a", body)
    damage(fault_proxy, times=2)
    assert await objects.get(f"{prefix}/a", ENOUGH) == body
    assert sum(fault_proxy.injected.values()) == 2


async def test_a_body_that_stays_damaged_is_left_to_whoever_asked(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None, log_watcher: LogWatcher
) -> None:
    objects = open_at(fault_proxy.endpoint_url, shared_bucket)
    await objects.put(f"{prefix}/a", b"content")
    fault_proxy.corrupt_answer()
    assert len(await objects.get(f"{prefix}/a", ENOUGH)) == 7
    assert log_watcher.count(f"Could not read {prefix}/a from bucket") == 1


async def test_an_etag_that_is_no_md5_says_nothing_of_a_body(
    fault_proxy: FaultProxy, store: StoreServer, shared_bucket: str, prefix: str, credentials: None
) -> None:
    client = store.access.client()
    key = f"{prefix}/multipart"
    upload = client.create_multipart_upload(Bucket=shared_bucket, Key=key)["UploadId"]
    part = client.upload_part(Bucket=shared_bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"content")
    client.complete_multipart_upload(
        Bucket=shared_bucket,
        Key=key,
        UploadId=upload,
        MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]},
    )
    objects = open_at(fault_proxy.endpoint_url, shared_bucket)
    await objects.put(f"{prefix}/a", b"content")
    before = fault_proxy.count("GET")
    assert await objects.get(key, ENOUGH) == b"content"
    assert fault_proxy.count("GET") == before + 1


async def test_a_delete_that_the_store_says_nothing_about_is_repeated(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None, log_watcher: LogWatcher
) -> None:
    objects = open_at(fault_proxy.endpoint_url, shared_bucket)
    await objects.put(f"{prefix}/a", b"content")
    # An answer of success, with no word about the keys.
    silence = b'<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"></DeleteResult>'
    fault_proxy.answer(200, "", "POST", times=2, body=silence)
    await objects.delete([f"{prefix}/a", f"{prefix}/never-was"])
    assert fault_proxy.count("POST") == 3
    assert await objects.head(f"{prefix}/a") is None


async def test_everything_denied_for_a_while_is_one_line_and_goes_on_by_itself(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None, log_watcher: LogWatcher
) -> None:
    objects = open_at(fault_proxy.endpoint_url, shared_bucket)
    rule = fault_proxy.deny()
    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(objects.put, f"{prefix}/{number}", b"content")
        await log_watcher.wait_for("is not usable")
        # Many more tries than lines.
        assert await trio.to_thread.run_sync(fault_proxy.wait_until_injected, 30, Fault.DENY)
        assert not objects.condition.is_up
        assert objects.condition.last_error is not None
        assert objects.condition.last_error.reason is StoreReason.ACCESS_DENIED
        rule.release()
    assert objects.condition.is_up
    assert (log_watcher.count("is not usable"), log_watcher.count("is usable again")) == (1, 1)
    assert len(log_watcher.lines) == 2


@pytest.mark.parametrize("minutes", [-20, 20])
async def test_a_wrong_clock_is_named_and_goes_on_when_it_is_right(
    objects: ObjectStore, prefix: str, monkeypatch: pytest.MonkeyPatch, log_watcher: LogWatcher, minutes: int
) -> None:
    with monkeypatch.context() as wrong:
        wrong.setattr(
            botocore.auth,
            "get_current_datetime",
            lambda: botocore.compat.get_current_datetime() + datetime.timedelta(minutes=minutes),
        )
        wrong.setattr(mirrorfs.objectstore.refusals, "time", ShiftedTime(minutes * 60.0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(objects.put, f"{prefix}/a", b"content")
            await log_watcher.wait_for("is not usable")
            error = objects.condition.last_error
            assert error is not None
            assert error.reason is StoreReason.CLOCK_SKEW
            assert f"clock is 20 minutes {'ahead of' if minutes > 0 else 'behind'} the store's" in str(error)
            assert "timedatectl" in str(error)
            wrong.undo()
    assert await objects.get(f"{prefix}/a", ENOUGH) == b"content"


async def test_a_refused_signature_is_the_clocks_fault_where_the_date_says_so(
    fault_proxy: FaultProxy, shared_bucket: str, credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A store that finds the signature wrong, and does not look at its time.
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", WRONG_SECRET)
    for seconds, reason in ((3600.0, StoreReason.CLOCK_SKEW), (60.0, StoreReason.WRONG_KEY)):
        rule = fault_proxy.skew(seconds)
        failure = await failure_of(open_at(fault_proxy.endpoint_url, shared_bucket, AT_ONCE))
        assert failure.reason is reason
        assert_helpful(failure)
        rule.release()


async def test_a_date_that_is_off_hurts_nothing_that_succeeds(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None
) -> None:
    fault_proxy.skew(-7200.0)
    objects = open_at(fault_proxy.endpoint_url, shared_bucket, AT_ONCE)
    await objects.put(f"{prefix}/a", b"content")
    assert await objects.get(f"{prefix}/a", ENOUGH) == b"content"


_IN_AN_HOUR = "the date that it is in an hour"


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("7", 7.0, 7.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0, 0.0),
        (_IN_AN_HOUR, 3000.0, 3600.0),
        ("soon", None, None),
        ("-1", None, None),
    ],
)
async def test_the_time_that_the_store_asks_for_is_known(
    fault_proxy: FaultProxy, shared_bucket: str, credentials: None, header: str, least: float | None, most: float | None
) -> None:
    if header == _IN_AN_HOUR:
        header = email.utils.formatdate(time.time() + 3600, usegmt=True)
    fault_proxy.slow_down(header)
    with pytest.raises(StoreUnavailable) as caught:
        await open_at(fault_proxy.endpoint_url, shared_bucket, AT_ONCE).get("m/a", ENOUGH)
    assert caught.value.reason is StoreReason.THROTTLED
    if least is None or most is None:
        assert caught.value.retry_after is None
    else:
        assert caught.value.retry_after is not None
        assert least <= caught.value.retry_after <= most


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_storm_of_everything_neither_loses_nor_keeps_a_thing(
    fault_proxy: FaultProxy, store: StoreServer, shared_bucket: str, prefix: str, credentials: None, seed: int
) -> None:
    objects = open_at(fault_proxy.endpoint_url, shared_bucket, parallelism=8)
    fault_proxy.storm(seed, probability=0.3, longest_delay=0.2)
    await objects.probe(f"{prefix}/probe")

    async def live(number: int) -> None:
        key = f"{prefix}/{number}"
        await put_at_last(objects, key, f"first {number}".encode() * 100)
        await put_at_last(objects, key, f"second {number}".encode() * 100)
        assert await objects.get(key, ENOUGH) == f"second {number}".encode() * 100
        if number % 3 == 0:
            await objects.delete([key])

    async with trio.open_nursery() as nursery:
        for number in range(24):
            nursery.start_soon(live, number)
    fault_proxy.clear()
    assert len(fault_proxy.injected) > 8
    kept = [number for number in range(24) if number % 3]
    assert store.access.keys(shared_bucket, f"{prefix}/") == sorted(f"{prefix}/{number}" for number in kept)
    for number in kept:
        answer = store.access.client().get_object(Bucket=shared_bucket, Key=f"{prefix}/{number}")
        assert answer["Body"].read() == f"second {number}".encode() * 100


async def put_at_last(objects: ObjectStore, key: str, body: bytes) -> None:
    """What a caller does for whom an object may fail once."""
    while True:
        with contextlib.suppress(ConfirmationFailed):
            await objects.put(key, body)
            return


class ShiftedTime:
    """Stands in for the module `time`, with another time of day."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def time(self) -> float:
        return time.time() + self._seconds

    def monotonic(self) -> float:
        return time.monotonic()


async def test_a_delete_whose_answer_is_lost_is_repeated(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None
) -> None:
    objects = open_at(fault_proxy.endpoint_url, shared_bucket)
    await objects.put(f"{prefix}/a", b"content")
    fault_proxy.drop_after("POST", times=1)
    await objects.delete([f"{prefix}/a"])
    assert fault_proxy.count("POST") == 2
    assert await objects.head(f"{prefix}/a") is None


async def test_a_key_that_fails_alone_does_not_flap_the_condition(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None, log_watcher: LogWatcher
) -> None:
    objects = open_at(fault_proxy.endpoint_url, shared_bucket)
    objects.capabilities = HONEST
    rule = fault_proxy.answer(500, "InternalError", "PUT", "*/sick")

    async def healthy_traffic() -> None:
        for number in range(10**6):
            await objects.put(f"{prefix}/{number % 10}", b"content")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(healthy_traffic)
        async with trio.open_nursery() as sick:
            sick.start_soon(objects.put, f"{prefix}/sick", b"content")
            await log_watcher.wait_for("serves others")
            rule.release()
        nursery.cancel_scope.cancel()
    assert (log_watcher.count("is not usable"), log_watcher.count("is usable again")) == (0, 0)
    assert log_watcher.count("serves others") == 1
    assert await objects.get(f"{prefix}/sick", ENOUGH) == b"content"


async def test_no_error_and_no_log_line_holds_a_secret(
    store: StoreServer,
    shared_bucket: str,
    closed_port: int,
    fault_proxy: FaultProxy,
    credentials: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", WRONG_SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", SESSION_TOKEN)
    fault_proxy.answer(403, "AccessDenied", "PUT")
    written: list[str] = []
    for endpoint in (store.endpoint_url, f"http://127.0.0.1:{closed_port}", fault_proxy.endpoint_url):
        for bucket in (shared_bucket, "no-such-bucket-here"):
            with pytest.raises(StoreError) as caught:
                await open_at(endpoint, bucket, AT_ONCE).put("m/a", b"content")
            written += [str(caught.value), repr(caught.value), *traceback.format_exception(caught.value)]
    written += [record.getMessage() for record in caplog.records]
    for text in written:
        for secret in (WRONG_SECRET, SESSION_TOKEN, "Signature=", "Authorization:", "x-amz-security-token"):
            assert secret.lower() not in text.lower()
