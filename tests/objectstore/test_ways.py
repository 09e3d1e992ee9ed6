"""The way to a store: TLS with an own authority or a fingerprint, proxies; each obstacle on this side has its name."""

from __future__ import annotations

import hashlib
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.errors import StoreReason, StoreUnavailable
from mirrorfs.objectstore.url import StoreOptions
from tests.objectstore.conftest import use_credentials
from tests.stores.forward_proxy import ForwardProxy, running_forward_proxy
from tests.stores.seaweedfs import StoreServer, running_seaweedfs

USER, PASSWORD = "mirror", "opensesame"


@pytest.fixture(scope="module")
def tls_store() -> Iterator[StoreServer]:
    """A store with a certificate that it has signed itself."""
    with running_seaweedfs(tls=True) as server:
        yield server


@pytest.fixture(scope="module")
def tls_bucket(tls_store: StoreServer) -> str:
    return tls_store.create_bucket()


@pytest.fixture(autouse=True)
def plain_environment(tls_store: StoreServer, monkeypatch: pytest.MonkeyPatch) -> None:
    use_credentials(tls_store, monkeypatch)
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def certificate(tls_store: StoreServer) -> Path:
    path = tls_store.access.ca_bundle
    assert path is not None
    return Path(path)


@pytest.fixture
def fingerprint(certificate: Path) -> str:
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.read_text())).hexdigest()
    return ":".join(digest[at : at + 2] for at in range(0, 64, 2))


@pytest.fixture
def proxy() -> Iterator[ForwardProxy]:
    with running_forward_proxy() as running:
        yield running


@pytest.fixture
def closed_proxy() -> Iterator[ForwardProxy]:
    """One that wants a name and password."""
    with running_forward_proxy(USER, PASSWORD) as running:
        yield running


def stores_and_reads(client: S3Client) -> None:
    client.put_object("m/a", b"content", crc32c=None, md5=None)
    assert client.get_object("m/a", 100) == b"content"
    assert client.head_object("m/a") is not None
    assert [found.key for found in client.list_page("m/", None).objects] == ["m/a"]
    assert client.delete_objects(["m/a"]) == {}


def failure(client: S3Client) -> StoreUnavailable:
    with pytest.raises(StoreUnavailable) as caught:
        client.put_object("m/a", b"content", crc32c=None, md5=None)
    assert str(caught.value).endswith(caught.value.reason.hint)
    assert not caught.value.may_be_done
    return caught.value


# -- certificates


def test_a_certificate_that_nobody_vouches_for_is_not_accepted(tls_store: StoreServer, tls_bucket: str) -> None:
    error = failure(S3Client(tls_bucket, StoreOptions(endpoint_url=tls_store.endpoint_url)))
    assert error.reason is StoreReason.TLS_FAILED
    assert "certificate" in error.cause.lower()
    assert "--fingerprint" in str(error)
    assert "--ca-bundle" in str(error)


def test_the_right_fingerprint_is_enough_however_it_is_written(
    tls_store: StoreServer, tls_bucket: str, fingerprint: str
) -> None:
    for written in (fingerprint, fingerprint.upper(), fingerprint.replace(":", "")):
        stores_and_reads(S3Client(tls_bucket, StoreOptions(endpoint_url=tls_store.endpoint_url, fingerprint=written)))


def test_a_wrong_fingerprint_is_refused_and_the_one_that_is_there_is_named(
    tls_store: StoreServer, tls_bucket: str, fingerprint: str, certificate: Path
) -> None:
    wrong = ":".join(["ab"] * 32)
    # Also where somebody vouches for the certificate: it is this one that was asked for.
    options = StoreOptions(endpoint_url=tls_store.endpoint_url, fingerprint=wrong, ca_bundle=str(certificate))
    error = failure(S3Client(tls_bucket, options))
    assert error.reason is StoreReason.TLS_FAILED
    assert f"the certificate's fingerprint is {fingerprint}, not the one that was given" in error.cause


def test_the_right_authority_is_enough_by_option_and_by_environment(
    tls_store: StoreServer, tls_bucket: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = StoreOptions(endpoint_url=tls_store.endpoint_url, ca_bundle=str(certificate))
    stores_and_reads(S3Client(tls_bucket, options))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    stores_and_reads(S3Client(tls_bucket, StoreOptions(endpoint_url=tls_store.endpoint_url)))


def test_another_authority_is_not_enough(tls_store: StoreServer, tls_bucket: str, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=another",
         "-keyout", str(tmp_path / "key.pem"), "-out", str(other)],
        check=True,
        capture_output=True,
    )  # fmt: skip
    error = failure(S3Client(tls_bucket, StoreOptions(endpoint_url=tls_store.endpoint_url, ca_bundle=str(other))))
    assert error.reason is StoreReason.TLS_FAILED


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_certificates_that_cannot_be_used_are_named_with_their_file(
    tls_store: StoreServer, tls_bucket: str, tmp_path: Path, content: bytes | None
) -> None:
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_bytes(content)
    error = failure(S3Client(tls_bucket, StoreOptions(endpoint_url=tls_store.endpoint_url, ca_bundle=str(bundle))))
    assert error.reason in (StoreReason.LOCAL_SETTING, StoreReason.TLS_FAILED)
    assert str(bundle) in error.cause


def test_a_store_that_speaks_no_tls_is_named(store: StoreServer, tls_bucket: str) -> None:
    endpoint = store.endpoint_url.replace("http:", "https:")
    assert failure(S3Client(tls_bucket, StoreOptions(endpoint_url=endpoint))).reason is StoreReason.TLS_FAILED


# -- proxies


def test_what_is_encrypted_passes_a_proxy_by_connect(
    tls_store: StoreServer, tls_bucket: str, fingerprint: str, proxy: ForwardProxy
) -> None:
    options = StoreOptions(endpoint_url=tls_store.endpoint_url, fingerprint=fingerprint, proxy=proxy.url)
    stores_and_reads(S3Client(tls_bucket, options))
    assert {method for method, _ in proxy.passed} == {"CONNECT"}


def test_what_is_not_encrypted_passes_a_proxy_too(
    store: StoreServer, shared_bucket: str, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_credentials(store, monkeypatch)
    client = S3Client(shared_bucket, StoreOptions(endpoint_url=store.endpoint_url, proxy=proxy.url))
    client.put_object("proxied/a", b"content", crc32c=None, md5=None)
    assert client.get_object("proxied/a", 100) == b"content"
    assert [method for method, _ in proxy.passed] == ["PUT", "GET"]


def test_a_name_and_password_stand_in_the_environment(
    tls_store: StoreServer,
    tls_bucket: str,
    fingerprint: str,
    closed_proxy: ForwardProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", closed_proxy.url_with(USER, PASSWORD))
    stores_and_reads(S3Client(tls_bucket, StoreOptions(endpoint_url=tls_store.endpoint_url, fingerprint=fingerprint)))
    assert closed_proxy.passed


@pytest.mark.parametrize("encrypted", [True, False])
@pytest.mark.parametrize("password", [None, "wrong-password"])
def test_a_proxy_that_wants_a_password_is_named_and_none_is_shown(
    tls_store: StoreServer,
    store: StoreServer,
    tls_bucket: str,
    fingerprint: str,
    closed_proxy: ForwardProxy,
    monkeypatch: pytest.MonkeyPatch,
    password: str | None,
    encrypted: bool,
) -> None:
    url = closed_proxy.url if password is None else closed_proxy.url_with(USER, password)
    for name in ("HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(name.lower(), url)
    if encrypted:
        options = StoreOptions(endpoint_url=tls_store.endpoint_url, fingerprint=fingerprint)
    else:
        options = StoreOptions(endpoint_url=store.endpoint_url)
    error = failure(S3Client(tls_bucket, options))
    assert error.reason is StoreReason.PROXY_FAILED
    assert f"the proxy {closed_proxy.url} does not let us through: it wants a name and password" in error.cause
    assert "wrong-password" not in str(error)
    assert "HTTPS_PROXY" in str(error)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_is_dead_is_named(tls_bucket: str, scheme: str) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{holder.getsockname()[1]}"
        error = failure(S3Client(tls_bucket, StoreOptions(endpoint_url=f"{scheme}://192.0.2.1", proxy=dead)))
    assert error.reason is StoreReason.PROXY_FAILED
    assert f"the proxy {dead} does not let us through: Connection refused" in error.cause
