"""The grammar of the URLs that name a mirror, and of endpoints."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.objectstore.url import MAX_PREFIX_LENGTH, MalformedURL, StoreAddress, StoreOptions, parse_url


@pytest.mark.parametrize(
    ("url", "bucket", "prefix"),
    [
        ("s3://backups/store1", "backups", "store1"),
        ("s3://backups/store1/", "backups", "store1"),
        ("s3://backups/site/store_1.old", "backups", "site/store_1.old"),
        ("s3://my.backups-2/_x", "my.backups-2", "_x"),
        ("s3://abc/" + "n" * MAX_PREFIX_LENGTH, "abc", "n" * MAX_PREFIX_LENGTH),
    ],
)
def test_a_url_names_bucket_and_prefix(url: str, bucket: str, prefix: str) -> None:
    address = parse_url(url)
    assert address == StoreAddress(bucket, prefix)
    assert str(address) == url.removesuffix("/")
    assert address.key(".cnt/vm") == f"{prefix}/.cnt/vm"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "backups/store1",
        "/backups/store1",
        "https://backups/store1",
        "S3://backups/store1",
        "s3:/backups/store1",
        "s3://",
        "s3:///store1",
        "s3://backups",
        "s3://backups/",
        "s3://backups//",
        "s3://backups//store1",
        "s3://backups/a//b",
        "s3://backups/store1//",
        "s3://backups/../store1",
        "s3://backups/a/../b",
        "s3://backups/.hidden",
        "s3://backups/a/.cnt",
        "s3://backups/.",
        "s3://backups/-dash",
        "s3://backups/sto re",
        "s3://backups/store?x=1",
        "s3://backups/store#1",
        "s3://backups/störe",
        "s3://backups/a\n",
        "s3://backups/a\x00b",
        "s3://ab/store1",
        "s3://" + "b" * 256 + "/store1",
        "s3://-backups/store1",
        "s3://.backups/store1",
        "s3://192.0.2.1/store1",
        "s3://key:secret@backups/store1",
        "s3://abc/" + "n" * (MAX_PREFIX_LENGTH + 1),
    ],
)
def test_a_malformed_url_is_refused_with_a_sentence(url: str) -> None:
    with pytest.raises(MalformedURL, match=r"\.$"):
        parse_url(url)


_components = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True)


@given(
    bucket=st.from_regex(r"[a-z][a-z0-9-]{1,40}[a-z0-9]", fullmatch=True),
    components=st.lists(_components, min_size=1, max_size=5),
)
def test_what_is_well_formed_survives_the_round_trip(bucket: str, components: list[str]) -> None:
    address = parse_url(f"s3://{bucket}/{'/'.join(components)}")
    assert (address.bucket, address.prefix.split("/")) == (bucket, components)
    assert parse_url(str(address)) == address


@given(st.text(max_size=80), st.sampled_from(["", "s3://", "s3://bucket/", "s3://bucket/name/"]))
def test_no_text_gives_a_prefix_that_leaves_its_place(text: str, start: str) -> None:
    try:
        address = parse_url(start + text)
    except MalformedURL:
        return
    for component in address.prefix.split("/"):
        assert component.isascii()
        assert component.isprintable()
        assert not component.startswith(".")
        assert component != ""


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8333", "https://s3.example.org", "https://s3.example.org/", "http://[::1]:80"]
)
def test_endpoints_are_http_urls(url: str) -> None:
    assert StoreOptions(endpoint_url=url).endpoint_url == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "s3.example.org",
        "127.0.0.1:8333",
        "ftp://s3.example.org",
        "http://",
        "http://host:port",
        "http://host:99999",
        "http://host?x=1",
        "http://ho st",
        "http://[::1",
    ],
)
def test_a_malformed_endpoint_is_refused(url: str) -> None:
    with pytest.raises(MalformedURL, match=r"\.$"):
        StoreOptions(endpoint_url=url)


def test_credentials_in_an_endpoint_are_refused_and_not_repeated() -> None:
    with pytest.raises(MalformedURL) as caught:
        StoreOptions(endpoint_url="https://AKIAEXAMPLE:hunter2@s3.example.org")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("bucket", ["b" * 64, "Backups", "back_ups", "backups-", "back..ups", "B" * 255])
def test_bucket_names_of_old_stores_are_taken(bucket: str) -> None:
    assert parse_url(f"s3://{bucket}/store1") == StoreAddress(bucket, "store1")


def test_no_part_of_an_endpoint_that_may_be_a_password_is_repeated() -> None:
    for url in ("https://key:hunter2", "https://key:hunter2@host", "https://host:hunter2/", "key:hunter2@host"):
        for option in ("endpoint_url", "proxy"):
            named: Any = {option: url}
            with pytest.raises(MalformedURL) as caught:
                StoreOptions(**named)
            assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "named",
    [
        {"fingerprint": "aa:bb"},
        {"fingerprint": "zz" * 32},
        {"kms_key_id": "key"},
        {"kms_key_id": "key", "encryption": "AES256"},
        {"kms_key_id": "a b", "encryption": "aws:kms"},
        {"storage_class": "COLD\r\nX: y"},
        {"chunk_storage_class": ""},
        {"region": "eu west"},
        {"read_timeout": 0.0},
        {"slowest_rate": -1.0},
    ],
)
def test_an_option_that_cannot_be_meant_is_refused_with_a_sentence(named: dict[str, Any]) -> None:
    with pytest.raises(MalformedURL, match=r"\.$"):
        StoreOptions(**named)


def test_a_fingerprint_is_taken_as_pbs_shows_it() -> None:
    StoreOptions(fingerprint=":".join(["aB"] * 32))
    StoreOptions(fingerprint="ab" * 32)
