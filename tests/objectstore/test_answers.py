"""Whatever answers in a store's place: the client's own errors or a result that is justified, and nothing else."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from botocore.awsrequest import AWSPreparedRequest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mirrorfs.objectstore.answers import Retention, VersionMarker
from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.errors import ObjectMissing, StoreError, StoreReason, StoreRejected, StoreUnavailable
from mirrorfs.objectstore.features import Feature
from mirrorfs.objectstore.url import StoreOptions
from tests.objectstore.conftest import ACCESS_KEY, SECRET, Given, Script
from tests.stores.odd_answers import ODD_ANSWERS, PAGE, XHTML, OddAnswer

BODY = b"content"
MD5 = hashlib.md5(BODY).hexdigest()
DATE = "Fri, 27 Nov 2026 12:00:00 GMT"

pytestmark = pytest.mark.usefixtures("keys")


REQUESTS: Mapping[str, Callable[[S3Client], Any]] = {
    "put": lambda client: client.put_object("m/a", BODY, crc32c=1, md5=hashlib.md5(BODY).digest()),
    "copy": lambda client: client.copy_object("m/a", "m/b"),
    "get": lambda client: client.get_object("m/a", 1000),
    "get version": lambda client: client.get_version("m/a", "1", 1000),
    "head": lambda client: client.head_object("m/a"),
    "check": lambda client: client.check_bucket("m/"),
    "list": lambda client: client.list_page("m/", None),
    "go on listing": lambda client: client.list_page("m/", "token"),
    "versions": lambda client: client.list_versions_page("m/", None),
    "go on with versions": lambda client: client.list_versions_page("m/", VersionMarker("m/a", "1")),
    "versioning": lambda client: client.is_versioned(),
    "lock": lambda client: client.object_lock_rule(),
    "retention": lambda client: client.get_retention("m/a"),
    "retain": lambda client: client.put_retention("m/a", Retention("GOVERNANCE", 1_800_000_000.0)),
    "clock": lambda client: client.clock_difference("m/"),
    "delete": lambda client: client.delete_objects(["m/a", "m/b"]),
}
_LISTS = ("check", "list", "go on listing", "versions", "go on with versions", "clock")

_texts = st.one_of(
    st.sampled_from(
        ["", "0", "-1", "7", "1e3", "true", "True", "maybe", "m/a", "m/b", "x", "%3A", "url", "\u00e9", MD5]
    ),
    st.sampled_from(
        [DATE, "2026-11-27T12:00:00Z", "2026-13-45", "0001-01-01T00:00:00+23:59", "9" * 40, "AAAAAA==", "=="]
    ),
    st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="<&>"), max_size=12),
)
_elements = st.sampled_from(
    [
        *("Key", "Size", "ETag", "LastModified", "IsTruncated", "NextContinuationToken", "NextKeyMarker", "KeyCount"),
        *(
            "NextVersionIdMarker",
            "MaxKeys",
            "Name",
            "Prefix",
            "EncodingType",
            "Code",
            "Message",
            "RequestId",
            "Endpoint",
        ),
        *("Region", "VersionId", "IsLatest", "ChecksumCRC32C", "ChecksumType", "Mode", "RetainUntilDate", "Status"),
        *("ObjectLockEnabled", "Days", "Years"),
    ]
)
_parents = st.sampled_from(
    ["Contents", "Version", "DeleteMarker", "Deleted", "Error", "Rule", "DefaultRetention", "CommonPrefixes", "Errors"]
)
_roots = st.sampled_from(
    [
        "ListBucketResult",
        "ListVersionsResult",
        "DeleteResult",
        "CopyObjectResult",
        "Error",
        "ErrorResponse",
        "VersioningConfiguration",
        "ObjectLockConfiguration",
        "Retention",
        "html",
        "x",
    ]
)


@st.composite
def _documents(draw: st.DrawFn) -> bytes:
    def leaf() -> str:
        name = draw(_elements)
        return f"<{name}>{draw(_texts)}</{name}>"

    inner = ""
    for _ in range(draw(st.integers(0, 4))):
        if draw(st.booleans()):
            inner += leaf()
        else:
            parent = draw(_parents)
            inner += f"<{parent}>{''.join(leaf() for _ in range(draw(st.integers(0, 4))))}</{parent}>"
    root = draw(_roots)
    namespace = draw(st.sampled_from(["", ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"']))
    return f"<{root}{namespace}>{inner}</{root}>".encode()


_bodies = st.one_of(
    _documents(),
    st.sampled_from(
        [b"", BODY, PAGE, XHTML, b'{"code": "x"}', b"<", b"\xff\xfe<\x00", b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>"]
    ),
    st.binary(max_size=30),
)
_headers = st.dictionaries(
    st.sampled_from(
        [
            "content-length",
            "content-type",
            "etag",
            "last-modified",
            "date",
            "retry-after",
            "location",
            "x-amz-request-id",
            "x-amz-bucket-region",
            "x-amz-delete-marker",
            "x-amz-checksum-crc32c",
            "x-amz-checksum-type",
            "x-amz-server-side-encryption",
            "x-amz-version-id",
        ]
    ),
    st.one_of(
        _texts,
        st.sampled_from(["text/html", "application/xml", "aws:kms", '"' + MD5 + '"', "http://[::1", "http://u:p@h/"]),
    ),
    max_size=6,
)
_statuses = st.one_of(
    st.sampled_from(
        [200, 204, 206, 301, 302, 304, 307, 400, 401, 403, 404, 405, 409, 411, 412, 413, 417, 429, 500, 501, 503, 507]
    ),
    st.integers(100, 999),
)


@pytest.mark.parametrize("name", REQUESTS)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answers=st.lists(st.tuples(_statuses, _headers, _bodies), min_size=1, max_size=3))
def test_no_answer_is_more_than_an_error_or_a_result(
    script: Script, client: S3Client, name: str, answers: list[Given]
) -> None:
    turn: Iterator[int] = iter(range(10**9))
    script.answer = lambda request, sent: answers[next(turn) % len(answers)]
    result, error = outcome(REQUESTS[name], client)
    if error is None:
        assert_justified(name, result, answers)
        return
    assert str(error).startswith("Could not ")
    assert str(error).isprintable()
    assert SECRET not in str(error)
    assert "u:p@" not in str(error)


def outcome(ask: Callable[[S3Client], Any], client: S3Client) -> tuple[Any, StoreError | None]:
    """The result of a request, or its error; any other exception is a failure of the test."""
    try:
        return ask(client), None
    except StoreError as error:
        return None, error


def assert_justified(name: str, result: Any, answers: list[Given]) -> None:  # noqa: ANN401
    """Whether an answer said so, of those that came: a success, and its own document."""
    successes = [body for status, _, body in answers if 200 <= status < 300]
    documents = b"".join(successes)
    if name in _LISTS:
        assert b"Result" in documents
    if name == "delete" and not result:
        # Gone by its word, or looked for and not found.
        assert b"DeleteResult" in documents or any(status in (200, 204) for status, _, _ in answers)
    if name.startswith("get"):
        assert result in successes
    if name == "head" and result is None:
        assert any(status == 404 for status, _, _ in answers)
        assert b"ListBucketResult" in documents
    if name == "copy":
        assert b"CopyObjectResult" in documents
    if name in ("put", "retain"):
        assert successes


@pytest.mark.parametrize("odd", ODD_ANSWERS.values(), ids=ODD_ANSWERS.keys())
def test_each_odd_answer_is_an_error_or_means_what_it_changes(script: Script, client: S3Client, odd: OddAnswer) -> None:
    script.answer = lambda request, sent: _given_by(odd, request, sent)
    for name, ask in REQUESTS.items():
        result, error = outcome(ask, client)
        if error is not None:
            # Only to a copy is it an answer: there it is the source that is missing.
            assert name == "copy" or not isinstance(error, ObjectMissing), (name, error)
            continue
        if name == "list":
            assert [found.key for found in result.objects] == ["m/a:1", "m/b"]
        if name == "head":
            assert result.size == len(BODY)
        if name == "delete":
            assert all(isinstance(failure, StoreUnavailable) for failure in result.values())


_LISTING = f"""<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name><IsTruncated>false</IsTruncated>
<Contents><Key>m/a:1</Key><Size>7</Size><ETag>"{MD5}"</ETag><LastModified>2026-11-27T12:00:00Z</LastModified></Contents>
<Contents><Key>m/b</Key><Size>7</Size><ETag>"{MD5}"</ETag><LastModified>2026-11-27T12:00:00Z</LastModified></Contents>
</ListBucketResult>""".replace("\n", "").encode()
_DELETED = b"<DeleteResult><Deleted><Key>m/a</Key></Deleted><Deleted><Key>m/b</Key></Deleted></DeleteResult>"


def _given_by(odd: OddAnswer, request: AWSPreparedRequest, sent: bytes) -> Given:
    """The answer of a store that has two objects, changed by one odd kind."""
    url = request.url
    if "list-type=2" in url:
        kind, answer = "listing", (200, {"date": DATE}, _LISTING)
    elif "?delete" in url:
        kind, answer = "delete", (200, {}, _DELETED)
    elif "?" in url and request.method != "HEAD":
        kind, answer = "question", (501, {}, b"<Error><Code>NotImplemented</Code></Error>")
    elif "a%253A1" in url:
        # What nobody has put; asked for by whoever has taken a listing at its word.
        return 404, {"x-amz-request-id": "1"}, b""
    else:
        kind = str(request.method)
        headers = {"etag": f'"{MD5}"', "date": DATE, "last-modified": DATE, "content-length": "7"}
        answer = (200, headers, BODY if kind == "GET" else b"")
    if kind not in odd.requests:
        return answer
    return odd.change(*answer)


@pytest.mark.parametrize("name", _LISTS)
@pytest.mark.parametrize(
    "body", [b"", PAGE, XHTML, b"{}", b"<ListBucketResult/>", b"<ListVersionsResult/>", b"ok", b"<x/>"]
)
def test_no_listing_is_empty_that_was_none(script: Script, client: S3Client, name: str, body: bytes) -> None:
    script.always(200, {"content-type": "application/xml"}, body)
    with pytest.raises(StoreError):
        REQUESTS[name](client)


def test_a_redirect_names_the_address_to_give(script: Script, client: S3Client) -> None:
    script.always(307, {"location": "https://key:secret@s3.example.org:9000/bucket/m/a?X-Amz-Signature=abc"})
    with pytest.raises(StoreUnavailable) as caught:
        client.get_object("m/a", 10)
    assert caught.value.reason is StoreReason.REDIRECTED
    assert "redirect (307) to https://s3.example.org:9000." in str(caught.value)
    assert "--endpoint-url" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_redirect_to_another_region_names_it(script: Script, client: S3Client) -> None:
    script.always(301, {"x-amz-bucket-region": "eu-west-3"})
    with pytest.raises(StoreUnavailable, match=r"region is eu-west-3.*--region") as caught:
        client.head_object("m/a")
    assert caught.value.reason is StoreReason.WRONG_REGION


def _error(code: str, message: str = "") -> bytes:
    identity = "<RequestId>4442587FB7D0A2F9</RequestId>"
    return f"<Error><Code>{code}</Code><Message>{message}</Message>{identity}</Error>".encode()


@pytest.mark.parametrize(
    ("status", "code", "message", "reason"),
    [
        (403, "AccessDenied", "storage cap exceeded", StoreReason.FULL),
        (403, "AccessDenied", "Cannot upload: account quota reached", StoreReason.FULL),
        (400, "XMinioAdminBucketQuotaExceeded", "", StoreReason.FULL),
        (403, "AccessDenied", "is not authorized to perform: kms:GenerateDataKey", StoreReason.ENCRYPTION),
        (400, "KMS.DisabledException", "", StoreReason.ENCRYPTION),
        (403, "AccessDenied", "a server-side encryption header is required", StoreReason.ENCRYPTION),
        (403, "UserSuspended", "", StoreReason.ACCOUNT_SUSPENDED),
        (403, "AccessDenied", "This account has been suspended", StoreReason.ACCOUNT_SUSPENDED),
        (403, "SecondLevelDomainForbidden", "", StoreReason.ADDRESSING),
        (400, "InvalidRequest", "Please use virtual-hosted style", StoreReason.ADDRESSING),
        (403, "AccessDenied", "explicit deny in a bucket policy", StoreReason.ACCESS_DENIED),
        (404, "NoSuchKey", "", StoreReason.SERVER_ERROR),
        (404, "NoSuchBucket", "", StoreReason.BUCKET_MISSING),
    ],
)
def test_each_kind_of_refusal_of_a_write_has_its_sentence(
    script: Script, client: S3Client, status: int, code: str, message: str, reason: StoreReason
) -> None:
    script.always(status, {}, _error(code, message))
    with pytest.raises(StoreUnavailable) as caught:
        REQUESTS["put"](client)
    assert caught.value.reason is reason
    assert str(caught.value).endswith(reason.hint)
    assert message in str(caught.value)
    if code != "NoSuchBucket":
        assert "4442587FB7D0A2F9" in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        f"the key {ACCESS_KEY} is unknown",
        f"expected {SECRET}",
        "X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404",
        "Authorization: AWS4-HMAC-SHA256 Credential=someone/20261127, Signature=abcdef0123456789",
        "see https://someone:opensesame@proxy.example/path",
        "token=opensesame",
        "secret_access_key = opensesame",
    ],
)
def test_what_the_store_repeats_of_our_secrets_is_masked(script: Script, client: S3Client, words: str) -> None:
    script.always(403, {}, _error("AccessDenied", words))
    for ask in REQUESTS.values():
        with pytest.raises(StoreError) as caught:
            ask(client)
        for secret in (ACCESS_KEY, SECRET, "opensesame", "aeeed9bb", "abcdef0123456789"):
            assert secret not in str(caught.value)


def test_a_head_without_a_length_is_read(script: Script, client: S3Client) -> None:
    script.answer = lambda request, sent: (200, {}, BODY if request.method == "GET" else b"")
    found = client.head_object("m/a")
    assert found is not None
    assert found.size == len(BODY)


def test_a_listing_without_sizes_asks_for_them(script: Script, client: S3Client) -> None:
    listing = _LISTING.replace(b"<Size>7</Size>", b"<Size/>", 1).replace(b"a:1", b"a")
    script.answer = lambda request, sent: (
        (200, {}, listing) if "list-type" in request.url else (200, {"content-length": "9"}, b"")
    )
    assert [(found.key, found.size) for found in client.list_page("m/", None).objects] == [("m/a", 9), ("m/b", 7)]


@pytest.mark.parametrize("truth", ["True", "TRUE", "1"])
def test_a_listing_goes_on_however_that_is_written(script: Script, client: S3Client, truth: str) -> None:
    following = f"<NextContinuationToken>n</NextContinuationToken><IsTruncated>{truth}"
    body = _LISTING.replace(b"<IsTruncated>false", following.encode())
    script.always(200, {}, body)
    assert client.list_page("m/", None).next_token == "n"


def test_a_full_page_that_does_not_say_whether_it_is_the_last_is_not_believed(script: Script, client: S3Client) -> None:
    body = _LISTING.replace(b"<IsTruncated>false</IsTruncated>", b"<MaxKeys>2</MaxKeys>")
    script.always(200, {}, body)
    with pytest.raises(StoreRejected, match="breaks the listing off"):
        client.list_page("m/", None)


def test_an_etag_is_one_however_it_is_written(script: Script, client: S3Client) -> None:
    for written in (MD5, f'"{MD5}"', f'W/"{MD5}"', f'"{MD5.upper()}"'):
        script.always(200, {"etag": written, "content-length": "7"})
        found = client.head_object("m/a")
        assert found is not None
        assert found.etag == MD5


def test_an_object_under_kms_has_no_etag_that_could_be_compared(script: Script, client: S3Client) -> None:
    script.always(200, {"etag": f'"{MD5}"', "content-length": "7", "x-amz-server-side-encryption": "aws:kms"})
    found = client.head_object("m/a")
    assert found is not None
    assert found.etag == ""


@pytest.mark.parametrize("code", ["InvalidArgument", "NotImplemented", "InvalidRequest"])
def test_a_refused_checksum_header_is_remembered_and_done_without(script: Script, client: S3Client, code: str) -> None:
    def answer(request: AWSPreparedRequest, sent: bytes) -> Given:
        if "x-amz-checksum-crc32c" in {name.lower() for name in request.headers}:
            return 400, {}, _error(code, "no such header")
        return 200, {"etag": f'"{MD5}"'}, b""

    script.answer = answer
    for _ in range(3):
        REQUESTS["put"](client)
    assert len(script.requests) == 4
    assert set(client.features.refused()) == {"checksum-headers"}
    assert {"Content-MD5", "content-md5"} & set(script.requests[-1].headers)


def test_a_header_that_was_accepted_before_is_not_what_is_refused(script: Script, client: S3Client) -> None:
    script.always(200)
    REQUESTS["put"](client)
    script.always(400, {}, _error("InvalidRequest", "not today"))
    with pytest.raises(StoreRejected, match="not today"):
        REQUESTS["put"](client)
    assert len(script.requests) == 2


@pytest.mark.parametrize(("checksums", "sends"), [("off", False), ("on", True)])
def test_checksums_may_be_forced(script: Script, checksums: Any, sends: bool) -> None:  # noqa: ANN401
    client = S3Client("bucket", StoreOptions(endpoint_url="http://192.0.2.1", checksums=checksums))
    script.always(400, {}, _error("InvalidArgument", "no such header"))
    with pytest.raises(StoreRejected):
        REQUESTS["put"](client)
    (request,) = script.requests
    assert ("x-amz-checksum-crc32c" in {name.lower() for name in request.headers}) is sends


def test_a_store_that_does_not_delete_many_deletes_one_by_one(script: Script, client: S3Client) -> None:
    def answer(request: AWSPreparedRequest, sent: bytes) -> Given:
        if request.method == "POST":
            return 501, {}, _error("NotImplemented")
        return (404, {}, _error("NoSuchKey")) if request.url.endswith("/b") else (204, {}, b"")

    script.answer = answer
    assert client.delete_objects(["m/a", "m/b"]) == {}
    assert client.delete_objects(["m/a"]) == {}
    assert [request.method for request in script.requests] == ["POST", "DELETE", "DELETE", "DELETE"]
    assert client.features.refuses(Feature.MULTI_DELETE)
    assert client.keys_per_delete < 1000


def test_an_error_of_a_deletion_that_names_no_key_is_told_of_what_is_still_there(
    script: Script, client: S3Client
) -> None:
    result = b"<DeleteResult><Deleted><Key>m/a</Key></Deleted><Error><Code>InternalError</Code></Error></DeleteResult>"
    script.answer = lambda request, sent: (
        (200, {}, result) if request.method == "POST" else (200, {"content-length": "7"}, b"")
    )
    failures = client.delete_objects(["m/a", "m/b"])
    assert set(failures) == {"m/b"}
    assert "InternalError" in str(failures["m/b"])


def test_a_missing_object_is_missing_only_where_s3_says_so(script: Script, client: S3Client) -> None:
    script.always(404, {}, _error("NoSuchKey"))
    with pytest.raises(ObjectMissing):
        client.get_object("m/a", 10)
    for body in (b"", b"404 page not found", PAGE, b"{}"):
        script.always(404, {}, body)
        with pytest.raises(StoreUnavailable):
            client.get_object("m/a", 10)


def test_a_head_that_contradicts_the_listing_is_decided_by_the_object(script: Script, client: S3Client) -> None:
    listing = _LISTING.replace(b"a:1", b"a").replace(b"m/b", b"m/a/b")

    def answer(request: AWSPreparedRequest, sent: bytes) -> Given:
        if "list-type" in request.url:
            return 200, {}, listing
        return (404, {}, b"") if request.method == "HEAD" else (200, {}, BODY)

    script.answer = answer
    found = client.head_object("m/a")
    assert found is not None
    assert found.size == len(BODY)


@pytest.mark.parametrize("key", ["AKIA\n", "AKIA\r", "AK IA", "AK\u00e9"])
def test_a_key_that_no_header_can_carry_is_named_as_such(
    monkeypatch: pytest.MonkeyPatch, client: S3Client, script: Script, key: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    with pytest.raises(StoreUnavailable, match="line break") as caught:
        client.check_bucket()
    assert caught.value.reason is StoreReason.NO_CREDENTIALS
    assert not script.requests


@pytest.mark.parametrize(
    "config",
    ["s3 =\n  addressing_style = diagonal", "region = -not a region-"],
)
def test_a_value_of_the_profile_that_boto3_cannot_use_is_named_as_such(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    client: S3Client,
    script: Script,
    config: str,
) -> None:
    path = tmp_path / "config"
    path.write_text(f"[default]\n{config}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(path))
    with pytest.raises(StoreUnavailable) as caught:
        client.check_bucket()
    assert caught.value.reason is StoreReason.LOCAL_SETTING
    assert not script.requests


def test_a_helper_for_credentials_that_fails_is_named_as_such(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    client: S3Client,
) -> None:
    path = tmp_path / "config"
    path.write_text("[default]\ncredential_process = /bin/false\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(StoreUnavailable) as caught:
        client.check_bucket()
    assert caught.value.reason is StoreReason.NO_CREDENTIALS


def test_a_helper_for_credentials_that_hangs_is_named_as_such(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    client: S3Client,
) -> None:
    monkeypatch.setattr("mirrorfs.objectstore.connection._HELPER_SECONDS", 0.3)
    released = tmp_path / "fifo"
    os.mkfifo(released)
    path = tmp_path / "config"
    path.write_text(f"[default]\ncredential_process = /bin/cat {released}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="credential_process") as caught:
            client.check_bucket()
        assert caught.value.reason is StoreReason.NO_CREDENTIALS
    # Lets the helper end.
    with open(released, "w"):
        pass


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_endpoint_of_the_environment_is_checked_and_never_shown_with_its_user(
    monkeypatch: pytest.MonkeyPatch, script: Script, variable: str
) -> None:
    monkeypatch.setenv(variable, "https://someone:opensesame@s3.example.org")
    client = S3Client("bucket", StoreOptions())
    with pytest.raises(StoreUnavailable, match="credentials") as caught:
        client.check_bucket()
    assert caught.value.reason is StoreReason.LOCAL_SETTING
    assert "opensesame" not in str(caught.value) + client.place


def test_what_new_objects_get_is_asked_for(script: Script) -> None:
    options = StoreOptions(
        endpoint_url="http://192.0.2.1",
        encryption="aws:kms",
        kms_key_id="alias/backups",
        storage_class="STANDARD",
        chunk_storage_class="STANDARD_IA",
    )
    client = S3Client("bucket", options, is_chunk=lambda key: key.startswith("m/.chunks/"))
    script.always(200)
    for key, expected in (("m/a", "STANDARD"), ("m/.chunks/b", "STANDARD_IA")):
        client.put_object(key, BODY, crc32c=None, md5=None)
        headers = {name.lower(): value for name, value in script.requests[-1].headers.items()}
        sent = {name: value.decode() if isinstance(value, bytes) else value for name, value in headers.items()}
        assert sent["x-amz-storage-class"] == expected
        assert sent["x-amz-server-side-encryption"] == "aws:kms"
        assert sent["x-amz-server-side-encryption-aws-kms-key-id"] == "alias/backups"


@pytest.mark.parametrize(
    ("bucket", "style", "url"),
    [
        ("bucket", "virtual", "http://bucket.s3.example.org/m/a"),
        ("bucket", "path", "http://s3.example.org/bucket/m/a"),
        ("Old_Bucket", None, "http://s3.example.org/Old_Bucket/m/a"),
    ],
)
def test_the_bucket_is_addressed_as_it_is_asked_for(script: Script, bucket: str, style: Any, url: str) -> None:  # noqa: ANN401
    client = S3Client(bucket, StoreOptions(endpoint_url="http://s3.example.org", addressing_style=style))
    script.always(200)
    client.put_object("m/a", BODY, crc32c=None, md5=None)
    assert script.requests[0].url == url
