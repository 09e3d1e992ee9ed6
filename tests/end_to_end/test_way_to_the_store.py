"""From `mount` to `status`: certificates, proxies and the settings of the store, on the command line and in a file."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.mirrors import MirrorUnderTest
from tests.end_to_end.test_crashes import TINY
from tests.harness.writer import DatastoreWriter
from tests.stores.forward_proxy import running_forward_proxy
from tests.stores.seaweedfs import StoreServer, running_seaweedfs


@pytest.fixture(scope="module")
def tls_store() -> Iterator[StoreServer]:
    with running_seaweedfs(tls=True) as server:
        yield server


@pytest.fixture
def tls_mirror(base: Path, tls_store: StoreServer) -> Iterator[MirrorUnderTest]:
    """A mirror into a store whose certificate nobody vouches for."""
    under_test = MirrorUnderTest(base, tls_store, tls_store.create_bucket(), tls_store.endpoint_url)
    under_test.extra_environment = {
        **{name: value for name, value in tls_store.environment().items() if "BUNDLE" not in name},
        "NO_PROXY": "",
        "no_proxy": "",
    }
    under_test.create()
    yield under_test
    under_test.tear_down()


def fingerprint_of(store: StoreServer) -> str:
    path = store.access.ca_bundle
    assert path is not None
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(Path(path).read_text())).hexdigest()
    return ":".join(digest[at : at + 2] for at in range(0, 64, 2))


def assert_told(mirror: MirrorUnderTest, reason: str, words: str) -> None:
    """Before the first claim: exit code, a sentence in status, one line in the log, and metrics."""
    path = str(mirror.datastore)
    status = mirror.run("status", path)
    assert status.returncode == 1
    assert words in status.stdout
    waiting = mirror.status()["waiting"]
    assert (waiting["reason"], waiting["needs_an_administrator"]) == (reason, True)
    assert f'mirrorfs_needs_administrator{{datastore="{path}"}} 1.0' in mirror.run("metrics", path).stdout
    assert mirror.log.count(words) <= 2
    assert words in mirror.log


def test_a_fingerprint_and_a_proxy_from_mount_to_status(tls_mirror: MirrorUnderTest, tls_store: StoreServer) -> None:
    mirror, fingerprint = tls_mirror, fingerprint_of(tls_store)
    done = mirror.run(*mirror.mount_arguments("--fingerprint", ":".join(["ab"] * 32)))
    assert done.returncode == 0
    assert f"the certificate's fingerprint is {fingerprint}" in done.stderr
    with DatastoreWriter(mirror.datastore, seed=41, default_plan=TINY) as writer:
        snapshot = writer.backup("vm/1")
    assert_told(mirror, "tls-failed", f"the certificate's fingerprint is {fingerprint}, not the one that was given")
    mirror.umount()

    with running_forward_proxy("mirror", "opensesame") as proxy:
        done = mirror.run(*mirror.mount_arguments("--fingerprint", fingerprint, "--proxy", proxy.url))
        assert done.returncode == 0
        words = f"the proxy {proxy.url} does not let us through: it wants a name and password"
        assert words in done.stderr
        assert_told(mirror, "proxy-failed", words)
        mirror.umount()

        mirror.extra_environment = {**mirror.extra_environment, "HTTPS_PROXY": proxy.url_with("mirror", "opensesame")}
        mirror.mount("--fingerprint", fingerprint)
        mirror.wait()
        assert mirror.published() == [snapshot.path]
        assert proxy.passed
        assert mirror.run("status", str(mirror.datastore)).returncode == 0
        mirror.umount()
    assert "opensesame" not in mirror.log


def test_a_credential_helper_that_fails_is_told_before_the_first_claim(
    tls_mirror: MirrorUnderTest, tls_store: StoreServer, tmp_path: Path
) -> None:
    mirror = tls_mirror
    config = tmp_path / "config"
    config.write_text("[default]\ncredential_process = /bin/false\n")
    mirror.extra_environment = {
        name: value for name, value in mirror.extra_environment.items() if "ACCESS_KEY" not in name
    } | {"AWS_CONFIG_FILE": str(config)}
    done = mirror.run(*mirror.mount_arguments("--fingerprint", fingerprint_of(tls_store)))
    assert done.returncode == 0
    assert_told(mirror, "no-credentials", "custom-process")
    mirror.umount()
