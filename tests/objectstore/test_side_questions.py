"""What is asked beside the matter, and fails, never hides or replaces what went wrong first."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from botocore.awsrequest import AWSPreparedRequest

from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.errors import StoreReason, StoreRejected, StoreUnavailable
from mirrorfs.objectstore.retry import AT_ONCE, FOR_EVER
from mirrorfs.objectstore.store import ObjectStore
from tests.objectstore.conftest import QUICK, Given, Script
from tests.stores.capabilities import HONEST

UNREACHABLE: Given = (503, {}, b"<Error><Code>ServiceUnavailable</Code></Error>")
DENIED: Given = (403, {}, b"<Error><Code>AccessDenied</Code><Message>no such permission</Message></Error>")
REJECTED: Given = (400, {}, b"<Error><Code>InvalidRequest</Code><Message>not so</Message></Error>")
PAGE: Given = (200, {"content-type": "text/html"}, b"<html>Welcome</html>")
FAILURES = pytest.mark.parametrize("side", [UNREACHABLE, DENIED, REJECTED, PAGE])


@pytest.fixture
def objects(client: S3Client) -> ObjectStore:
    return ObjectStore(client, patience=FOR_EVER, capabilities=HONEST)


def error(status: int, code: str) -> Given:
    return status, {}, f"<Error><Code>{code}</Code><Message>the first words</Message></Error>".encode()


def answering(*answers: tuple[Callable[[AWSPreparedRequest], bool], Given]) -> Callable[..., Given]:
    """The answer of the first that fits a request."""

    def answer(request: AWSPreparedRequest, sent: bytes) -> Given:
        return next(given for fits, given in answers if fits(request))

    return answer


def anything(request: AWSPreparedRequest) -> bool:
    return True


def listing(request: AWSPreparedRequest) -> bool:
    return "list-type=2" in request.url


def method(name: str) -> Callable[[AWSPreparedRequest], bool]:
    return lambda request: request.method == name


def test_a_head_is_not_told_as_what_came_instead_of_a_listing(script: Script, client: S3Client) -> None:
    script.answer = answering((listing, PAGE), (anything, (403, {"x-amz-request-id": "first"}, b"")))
    with pytest.raises(StoreUnavailable, match=r"look at m/a .*request id first"):
        client.head_object("m/a")


def test_a_head_is_not_told_as_a_listing_that_could_not_be_sent(script: Script, client: S3Client) -> None:
    def answer(request: AWSPreparedRequest, sent: bytes) -> Given:
        if listing(request):
            raise ConnectionRefusedError(111, "Connection refused")
        return 403, {"x-amz-request-id": "first"}, b""

    script.answer = answer
    with pytest.raises(StoreUnavailable, match=r"look at m/a .*request id first") as caught:
        client.head_object("m/a")
    assert caught.value.reason is StoreReason.ACCESS_DENIED


@FAILURES
def test_what_a_deletion_says_of_no_key_is_told_where_the_key_cannot_be_looked_for(
    script: Script, client: S3Client, side: Given
) -> None:
    result = (
        b"<DeleteResult><Error><Key>m/a</Key><Code>ObjectLocked</Code></Error>"
        b"<Error><Code>InternalError</Code><Message>the first words</Message></Error></DeleteResult>"
    )
    script.answer = answering((method("POST"), (200, {}, result)), (anything, side))
    failures = client.delete_objects(["m/a", "m/b", "m/c"])
    assert set(failures) == {"m/a", "m/b", "m/c"}
    assert "locked" in str(failures["m/a"])
    for key in ("m/b", "m/c"):
        assert "the first words" in str(failures[key])
    # One that fails is enough to know that no other can be looked for.
    assert not any(request.url.endswith("m/c") for request in script.requests)


@pytest.mark.trio
@FAILURES
async def test_a_denied_deletion_is_told_where_another_cannot_be_tried(
    script: Script, client: S3Client, side: Given
) -> None:
    objects = ObjectStore(client, patience=AT_ONCE, capabilities=HONEST)
    objects._deletions.own_key = "m/own"
    denied = b"<DeleteResult><Error><Key>m/a</Key><Code>AccessDenied</Code><Message>the first words</Message></Error>"

    def answer(request: AWSPreparedRequest, sent: bytes) -> Given:
        return side if b"m/own" in sent else (200, {}, denied + b"</DeleteResult>")

    script.answer = answer
    with pytest.raises(StoreUnavailable, match="the first words"):
        await objects.delete_each(["m/a"])


@pytest.mark.trio
@FAILURES
@pytest.mark.parametrize("deletes", [True, False])
async def test_a_refused_object_is_told_where_another_cannot_be_tried(
    script: Script, objects: ObjectStore, side: Given, deletes: bool
) -> None:
    objects._uploads.sample_key = "m/sample"

    def answer(request: AWSPreparedRequest, sent: bytes) -> Given:
        if request.method == "PUT" and "m/sample" not in request.url:
            return error(400, "InvalidPolicyOfToday")
        return (200, {}, b"") if deletes and request.method == "PUT" else side

    script.answer = answer
    with trio.fail_after(60), pytest.raises(StoreRejected, match="the first words"):
        await objects.put("m/a", b"content")


@pytest.mark.trio
async def test_a_lost_answer_is_followed_by_another_put_where_a_look_is_refused(
    script: Script, client: S3Client
) -> None:
    objects = ObjectStore(client, patience=QUICK, capabilities=HONEST)
    puts = 0

    def answer(request: AWSPreparedRequest, sent: bytes) -> Given:
        nonlocal puts
        if request.method == "PUT":
            puts += 1
            return error(504, "GatewayTimeout") if puts == 1 else error(400, "SecondWords")
        return error(400, "InvalidRequest")

    script.answer = answer
    with trio.fail_after(60), pytest.raises(StoreRejected, match="SecondWords"):
        await objects.put("m/a", b"content")
    # With the header of a checksum each, and then without it.
    assert puts >= 2


@pytest.mark.trio
@FAILURES
async def test_until_when_an_object_is_kept_is_asked_once_and_is_not_known_where_that_fails(
    script: Script, objects: ObjectStore, side: Given
) -> None:
    script.answer = answering((anything, side))
    with trio.fail_after(60):
        assert await objects.retained_until("m/a") is None
    assert len(script.requests) == 1
    assert objects.condition.is_up
