"""Manifests: read when sound, refused when malformed or hostile, and files compared with them."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.datastore.blob import encode_blob
from mirrorfs.datastore.errors import BlobError, DatastoreError, IndexFormatError, ManifestError
from mirrorfs.datastore.manifest import (
    ManifestFile,
    check_listed_file,
    parse_manifest,
)
from mirrorfs.datastore.names import SnapshotId
from tests.datastore.formats import (
    dynamic_index,
    encrypted_blob,
    fixed_index,
    listed,
    manifest_blob,
    plain_blob,
)

SUM = hashlib.sha256(b"").digest()
FILES = [listed("drive.img.fidx", 1000, SUM, "encrypt"), listed("qemu-server.conf.blob", 20, SUM)]
SNAPSHOT = SnapshotId.parse("vm/100/2026-11-22T10:00:00Z")


def test_sound_manifest() -> None:
    manifest = parse_manifest(manifest_blob(FILES))
    assert manifest.files == (
        ManifestFile("drive.img.fidx", 1000, SUM, "encrypt"),
        ManifestFile("qemu-server.conf.blob", 20, SUM, "none"),
    )
    assert (manifest.size, manifest.is_encrypted) == (1020, True)
    assert (manifest.verify_state, manifest.notes) == ("ok", "weekly")


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        (["none", "none"], "none"),
        (["encrypt"], "encrypt"),
        (["sign-only", "sign-only"], "sign-only"),
        (["sign-only", "encrypt"], "mixed"),
        (["none", "encrypt"], "mixed"),
        ([], "none"),
    ],
)
def test_how_a_snapshot_as_a_whole_is_encrypted(modes: list[str], expected: str) -> None:
    files = [listed(f"{number}.blob", 0, SUM, mode) for number, mode in enumerate(modes)]
    assert parse_manifest(manifest_blob(files)).encryption == expected


def test_compressed_manifest_without_optional_parts() -> None:
    value = {"backup-type": "ct", "backup-id": "x", "backup-time": 5, "files": [listed("a.blob", 0, SUM)]}
    del value["files"][0]["crypt-mode"]  # type: ignore[index]
    manifest = parse_manifest(encode_blob(json.dumps(value).encode() + b" " * 1000, compress=True))
    assert manifest.files[0].encryption == "none"
    assert (manifest.verify_state, manifest.notes, manifest.is_encrypted) == (None, None, False)


@pytest.mark.parametrize(
    "filename",
    [
        "../../etc/passwd.blob",
        "a/b.blob",
        "/a.blob",
        "index.json.blob",
        ".protected",
        ".a.blob",
        "..",
        "a.blob\n",
        "a\0.blob",
        "owner",
        "",
        "é.blob",
        "a" * 252 + ".blob",
        "x.tmp_fidx",
    ],
)
def test_hostile_file_names_are_rejected(filename: str) -> None:
    with pytest.raises(ManifestError, match="forbidden name"):
        parse_manifest(manifest_blob([listed(filename, 1, SUM)]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        manifest_blob(FILES)[:-1],
        encrypted_blob(b"{}"),
        plain_blob(b"{"),
        plain_blob(b"[]"),
        plain_blob(b"\xff"),
        plain_blob(b"[" * 100_000),
        plain_blob(b'{"backup-time":' + b"9" * 5000 + b"}"),
        manifest_blob({}),
        manifest_blob("x"),
        manifest_blob([None]),
        manifest_blob([{}]),
        manifest_blob([FILES[0] | {"size": -1}]),
        manifest_blob([FILES[0] | {"size": True}]),
        manifest_blob([FILES[0] | {"size": 1.5}]),
        manifest_blob([FILES[0] | {"size": 2**63}]),
        manifest_blob([FILES[0] | {"csum": "00"}]),
        manifest_blob([FILES[0] | {"csum": "zz" * 32}]),
        manifest_blob([FILES[0] | {"csum": " " + "00" * 31 + " "}]),
        manifest_blob([FILES[0] | {"csum": "00 " * 32}]),
        manifest_blob([FILES[0] | {"crypt-mode": "rot13"}]),
        manifest_blob([FILES[0] | {"crypt-mode": []}]),
        manifest_blob([FILES[0], FILES[0]]),
        manifest_blob(FILES, backup_type="../vm"),
        manifest_blob(FILES, backup_id=".."),
        manifest_blob(FILES, backup_id=100),
        manifest_blob(FILES, backup_time="now"),
        manifest_blob(FILES, backup_time=True),
        manifest_blob(FILES, unprotected=[]),
    ],
)
def test_malformed_manifests_are_rejected(data: bytes) -> None:
    with pytest.raises(ManifestError):
        parse_manifest(data)


json_values: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(json_values, st.sampled_from(["files", "backup-id", "backup-type", "backup-time", "unprotected"]))
def test_no_json_raises_anything_but_manifest_error(value: object, changed: str) -> None:
    for data in (plain_blob(json.dumps(value).encode()), manifest_blob(FILES, **{changed: value})):
        try:
            manifest = parse_manifest(data)
        except ManifestError:
            continue
        assert isinstance(manifest.verify_state, str | None)


DIGESTS = [bytes([n]) * 32 for n in range(3)]
FIXED = fixed_index(DIGESTS, 3 * 4096 - 5, 4096)
DYNAMIC = dynamic_index([(10 * (n + 1), digest) for n, digest in enumerate(DIGESTS)])
BLOB = plain_blob(b"content")
SOUND = [
    ("a.fidx", FIXED, 3 * 4096 - 5, hashlib.sha256(FIXED[4096:]).digest()),
    ("a.didx", DYNAMIC, 30, hashlib.sha256(DYNAMIC[4096:]).digest()),
    ("a.blob", BLOB, len(BLOB), hashlib.sha256(BLOB).digest()),
]


@pytest.mark.parametrize(("filename", "data", "size", "checksum"), SOUND)
def test_listed_file_is_compared_with_the_manifest(filename: str, data: bytes, size: int, checksum: bytes) -> None:
    index = check_listed_file(ManifestFile(filename, size, checksum, "none"), data)
    assert (index is None) == filename.endswith(".blob")
    assert index is None or list(index) == DIGESTS
    with pytest.raises(ManifestError, match="size"):
        check_listed_file(ManifestFile(filename, size + 1, checksum, "none"), data)
    with pytest.raises(ManifestError, match="checksum"):
        check_listed_file(ManifestFile(filename, size, SUM, "none"), data)
    with pytest.raises((BlobError, IndexFormatError), match=filename):
        check_listed_file(ManifestFile(filename, size, checksum, "none"), data[:-1])


@pytest.mark.parametrize(("filename", "data", "size", "checksum"), SOUND)
@given(position=st.integers(4096, 2**16), change=st.integers(1, 255))
def test_any_flipped_content_byte_is_detected(
    filename: str, data: bytes, size: int, checksum: bytes, position: int, change: int
) -> None:
    damaged = bytearray(data)
    damaged[position % len(data) if filename == "a.blob" else 4096 + position % (len(data) - 4096)] ^= change
    with pytest.raises(DatastoreError):
        check_listed_file(ManifestFile(filename, size, checksum, "none"), bytes(damaged))
