"""What is longer than its kind is not read: files of the datastore, and what announces itself in its first bytes."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from mirrorfs.datastore import limits
from mirrorfs.datastore.blob import check_chunk, check_encryption, decode_blob, encode_blob
from mirrorfs.datastore.errors import BlobError, DatastoreError, IndexFormatError, ManifestError, TooMuch, contained
from mirrorfs.datastore.index import check_index_beginning, parse_index
from mirrorfs.datastore.limits import longest_file, longest_index
from mirrorfs.datastore.manifest import ManifestFile, parse_manifest
from mirrorfs.datastore.names import SnapshotId
from mirrorfs.datastore.tree import Tree
from tests.datastore.formats import ENCRYPTED_ZSTD, dynamic_index, encrypted_blob, fixed_index, listed, manifest_blob
from tests.datastore.formats import plain_blob as plain
from tests.datastore.test_blob import zstd_blob

SNAPSHOT = "vm/100/2026-11-22T10:00:00Z"
SUM = bytes(32)
MIB = 1024 * 1024


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield Tree(descriptor)
    os.close(descriptor)


@pytest.mark.parametrize(
    "name",
    [
        "vm/100/owner",
        "vm/100/notes",
        *(f"{SNAPSHOT}/{name}" for name in ("index.json.blob", "client.log.blob", "a.fidx", ".protected", "a.blob")),
    ],
)
def test_every_file_has_a_maximum(tree: Tree, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.touch()
    os.truncate(path, longest_file(name) + 1)
    with pytest.raises(DatastoreError, match=f"larger than {longest_file(name)} bytes"):
        tree.read(name)


def test_a_file_that_grows_while_it_is_read_is_cut_off(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner").write_bytes(b"root@pam\n")
    monkeypatch.setattr(os, "read", lambda descriptor, size: bytes(size or 1))
    with pytest.raises(DatastoreError, match="larger than"):
        tree.read("owner")


def test_an_index_is_given_up_by_its_header(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.fidx").touch()
    os.truncate(tmp_path / "a.fidx", 2048 * MIB)
    file = ManifestFile("a.fidx", 2**48, SUM, "none")
    monkeypatch.setattr(os, "read", lambda descriptor, size: pytest.fail("it was read"))
    with pytest.raises(IndexFormatError, match="magic"):
        tree.read_content("a.fidx", maximum_size=file.longest, check_beginning=file.check_beginning)


@pytest.mark.parametrize(
    ("size", "checksum", "length", "error"),
    [
        (2**40, SUM, 4096 + 32, "header asks for"),
        (4096, SUM, 4096 + 32, "checksum"),
        (8192, None, 4096 + 32, "size"),
        (4096, None, 4096 + 64, "header asks for"),
    ],
)
def test_a_header_must_agree_with_the_manifest(size: int, checksum: bytes | None, length: int, error: str) -> None:
    whole = fixed_index([SUM], 4096 if size != 2**40 else size, 4096)
    file = ManifestFile("a.fidx", size, whole[32:64] if checksum is None else checksum, "none")
    with pytest.raises(DatastoreError, match=error):
        file.check_beginning(whole[:4096], length)


def test_the_beginning_of_a_dynamic_index() -> None:
    whole = dynamic_index([(10, SUM)])
    assert check_index_beginning("a.didx", whole[:4096], len(whole))[1] is None
    with pytest.raises(IndexFormatError, match="entry"):
        check_index_beginning("a.didx", whole[:4096], len(whole) + 1)
    with pytest.raises(IndexFormatError, match="less than a header"):
        check_index_beginning("a.didx", whole[:100], 100)


def test_what_an_index_may_have_follows_from_its_archive() -> None:
    assert longest_index(0) < 50_000
    # Of the smallest chunks that PBS makes, and smaller ones.
    assert longest_index(2**30) > 4096 + 40 * (2**30 // 4096)
    assert longest_index(2**62) == limits.LONGEST_INDEX


def test_a_large_index_is_not_copied() -> None:
    whole = fixed_index([SUM] * 100_000, 4096 * 100_000, 4096)
    index = parse_index("a.fidx", whole)
    assert index.entries.obj is whole
    assert index.count == 100_000
    assert list(index.unique_digests()) == [SUM]
    dynamic = parse_index("a.didx", dynamic_index([(5, SUM), (9, bytes([1] * 32))]))
    assert (dynamic.size, dynamic.count, list(dynamic)) == (9, 2, [SUM, bytes([1] * 32)])


def test_a_manifest_is_bounded_encoded_and_decoded() -> None:
    files = [listed("a.blob", 0, SUM)]
    with pytest.raises(ManifestError, match="larger than 4194304 bytes"):
        parse_manifest(encode_blob(manifest_blob(files)[12:] + b" " * 60_000_000, compress=True))
    with pytest.raises(ManifestError):
        parse_manifest(plain(b" " * (4 * MIB + 1)))
    with pytest.raises(ManifestError, match="nests deeper"):
        parse_manifest(plain(b"[" * MIB))
    with pytest.raises(ManifestError, match="values"):
        parse_manifest(manifest_blob(files, x=[0] * 200_000))


def test_only_what_is_needed_of_a_manifest_is_kept() -> None:
    manifest = parse_manifest(
        manifest_blob(
            [], unprotected={"notes": "n" * 100_000, "verify_state": {"state": "s" * 5000}, "x": "y" * 10_000}
        )
    )
    assert manifest.notes == "n" * 4096 + "…"
    assert manifest.verify_state == "s" * 100 + "…"
    assert not hasattr(manifest, "unprotected")


def test_quoted_names_are_cut() -> None:
    for changes in ({"backup_id": "\n" * 100_000}, {"backup_type": "x" * 100_000}):
        with pytest.raises(ManifestError) as caught:
            parse_manifest(manifest_blob([], **changes))
        assert len(str(caught.value)) < 350
        assert "\n" not in str(caught.value)
    with pytest.raises(ManifestError) as caught:
        parse_manifest(manifest_blob([listed("\n" * 100_000, 0, SUM)]))
    assert len(str(caught.value)) < 250
    with pytest.raises(DatastoreError) as caught_name:
        SnapshotId.parse("x" * 10_000)
    assert len(str(caught_name.value)) < 200


def test_a_chunk_is_bounded_encoded_and_decoded() -> None:
    with pytest.raises(BlobError, match="more than any chunk"):
        check_chunk(plain(bytes(17 * MIB + 40)), SUM, content=True)
    with pytest.raises(BlobError, match="larger than"):
        check_chunk(encode_blob(bytes(17 * MIB + 1), compress=True), SUM, content=True)


@pytest.mark.parametrize(("window", "is_fine"), [(23, True), (25, True), (26, False), (30, False)])
def test_the_window_of_a_frame_is_bounded(window: int, is_fine: bool) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=window, compression_level=1)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = zstd_blob(compressor.compress(b"content") + compressor.flush())
    if is_fine:
        assert decode_blob(data, maximum_size=MIB) == b"content"
    else:
        with pytest.raises(BlobError, match="too much memory"):
            decode_blob(data, maximum_size=MIB)


def test_a_chunk_must_be_encrypted_if_its_backup_is() -> None:
    check_encryption(plain(b"")[:8], SUM, is_encrypted=False)
    check_encryption(encode_blob(b"a" * 100, compress=True)[:8], SUM, is_encrypted=False)
    check_encryption(encrypted_blob(b"")[:8], SUM, is_encrypted=True)
    check_encryption(encrypted_blob(b"", ENCRYPTED_ZSTD)[:8], SUM, is_encrypted=True)
    for data, is_encrypted, words in (
        (plain(b""), True, "is not encrypted, and its backup is"),
        (encrypted_blob(b""), False, "is encrypted, and its backup is not"),
        (struct.pack("<Q", 0), False, "unknown magic"),
        (b"", True, "unknown magic"),
    ):
        with pytest.raises(BlobError, match=words):
            check_encryption(data[:8], SUM, is_encrypted=is_encrypted)


@pytest.mark.parametrize("error", [MemoryError, RecursionError, OverflowError])
def test_what_exhausts_the_process_is_a_problem_of_its_input(error: type[Exception]) -> None:
    with pytest.raises(TooMuch, match=f"it does \\({error.__name__}\\)"), contained("it does"):
        raise error


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, None),
        ({"backup_id": "101"}, "vm/101 of the time 2026-11-22T10:00:00Z"),
        ({"backup_type": "ct"}, "ct/100 of the time 2026-11-22T10:00:00Z"),
        ({"backup_time": 0}, "vm/100 of the time 1970-01-01T00:00:00Z"),
        ({"backup_time": 2**62}, f"vm/100 of the time {2**62} s after 1970"),
    ],
)
def test_a_manifest_says_whose_it_is(changes: dict[str, object], named: str | None) -> None:
    manifest = parse_manifest(manifest_blob([], **changes))
    for namespace in ("", "ns/a/"):
        assert manifest.names_other_than(SnapshotId.parse(namespace + SNAPSHOT)) == named
