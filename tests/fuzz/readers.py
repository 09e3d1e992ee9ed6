"""Each reader of what others wrote, with what must hold for anything that it is given."""

from __future__ import annotations

import io
import json
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio
from hypothesis import strategies as st

from mirrorfs.cli.durations import parse_duration
from mirrorfs.cli.settings_file import KeyGivenTwice, parse_settings
from mirrorfs.database.errors import DatabaseCorrupt, DatabaseError
from mirrorfs.datastore.blob import check_chunk, check_encryption, decode_blob
from mirrorfs.datastore.deletion import parse_deletion
from mirrorfs.datastore.errors import BlobError, DatastoreError, IndexFormatError, ManifestError
from mirrorfs.datastore.group_files import check_notes, check_owner
from mirrorfs.datastore.index import HEADER_SIZE, check_index_beginning, parse_index
from mirrorfs.datastore.json_input import MalformedJSON, parse_json
from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.limits import LONGEST_INDEX, LONGEST_LISTED_BLOB, LONGEST_NOTES
from mirrorfs.datastore.manifest import check_listed_file, parse_manifest
from mirrorfs.datastore.names import (
    ChunkName,
    ForeignName,
    GroupFileName,
    GroupId,
    InternalName,
    NamespaceId,
    SnapshotFileName,
    SnapshotId,
    classify,
    is_final,
    topmost_foreign,
)
from mirrorfs.objectstore.errors import StoreError
from mirrorfs.objectstore.url import MalformedURL, parse_url
from mirrorfs.recovery.checkpoint import CheckpointFile
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.recovery.marker import Marker
from mirrorfs.recovery.moment import format_moment, parse_moment
from mirrorfs.recovery.ownership import parse_owner
from mirrorfs.replay.exchange import Export, MalformedExport
from mirrorfs.replication import control
from mirrorfs.replication.ownership.claim import parse_claim
from mirrorfs.state import chunks as chunks_of_state
from mirrorfs.state import contents, counting, problems, retention, snapshots
from tests.fuzz import strategies

_LONGEST_MESSAGE = 1000
_NOW = 1_800_000_000.0
_MOST = 1_000_000
_SNAPSHOT = SnapshotId.parse("vm/100/2026-11-22T10:00:00Z")
_LAYOUT = BucketLayout("m")


@dataclass(frozen=True, slots=True)
class Reader:
    """A reader: what it is given, and a check that raises where something does not hold."""

    inputs: st.SearchStrategy[object]
    check: Callable[[object], None]


READERS: dict[str, Reader] = {}


def reader(inputs: st.SearchStrategy[object]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Enter a check into READERS, under its name in words."""

    def enter(check: Callable[..., None]) -> Callable[..., None]:
        READERS[check.__name__.replace("_", " ")] = Reader(inputs, check)
        return check

    return enter


def _is_short(error: Exception) -> None:
    assert len(str(error)) < _LONGEST_MESSAGE, str(error)[:200]


@reader(strategies.blobs)
def blobs(data: bytes) -> None:
    """A content is bounded, and comes only with a right CRC."""
    try:
        assert len(decode_blob(data, maximum_size=_MOST)) <= _MOST
    except BlobError as error:
        _is_short(error)


@reader(st.tuples(strategies.blobs, strategies.digests, st.booleans()))
def chunks(given: tuple[bytes, bytes, bool]) -> None:
    """What is accepted for a backup that is not encrypted has the content that its name says."""
    data, digest, is_encrypted = given
    try:
        check_chunk(data, digest, content=True)
        check_encryption(data[:8], digest, is_encrypted=is_encrypted)
    except BlobError as error:
        _is_short(error)
        return
    assert is_encrypted or strategies.sha256(decode_blob(data, maximum_size=_MOST)) == digest


@reader(strategies.indexes)
def indexes(given: tuple[str, bytes]) -> None:
    """The beginning is refused only where the whole is; an accepted one has the digests that its length says."""
    filename, data = given
    try:
        index = parse_index(filename, data)
    except IndexFormatError as error:
        _is_short(error)
        return
    checksum, size = check_index_beginning(filename, data[:HEADER_SIZE], len(data))
    assert (index.checksum, index.size) == (checksum, index.size if size is None else size)
    assert len(list(index)) == index.count == (len(data) - HEADER_SIZE) // (32 if filename.endswith("fidx") else 40)
    assert list(index.unique_digests()) == sorted(set(index))


@reader(strategies.manifests)
def manifests(data: bytes) -> None:
    """An accepted one lists safe names, sizes within bounds, and says in a line whose it is."""
    try:
        manifest = parse_manifest(data)
    except ManifestError as error:
        _is_short(error)
        return
    assert len(manifest.notes or "") <= LONGEST_NOTES + 1
    assert len(manifest.names_other_than(_SNAPSHOT) or "") < 200
    for file in manifest.files:
        assert "/" not in file.filename
        assert 0 <= file.longest <= max(LONGEST_INDEX, LONGEST_LISTED_BLOB)
        assert is_final(classify(f"{_SNAPSHOT.path}/{file.filename}".encode()))
        for content in (b"", data):
            with suppress(DatastoreError):
                file.check_beginning(content[:HEADER_SIZE], len(content))
            with suppress(DatastoreError):
                check_listed_file(file, content)


@reader(strategies.deletions)
def deletions(data: bytes) -> None:
    """An accepted one can be shown, written to files, and read again."""
    try:
        deletion = parse_deletion(data)
    except DatastoreError as error:
        _is_short(error)
        return
    assert format_moment(int(deletion.deleted))
    assert format_moment(int(deletion.until))
    for text in (deletion.owner, deletion.notes):
        assert text is None or text.encode() is not None
    assert parse_deletion(deletion.encode()) == deletion


@reader(strategies.claims)
def claims(data: bytes) -> None:
    """An accepted one is text throughout."""
    try:
        claim = parse_claim(data)
    except DatastoreError as error:
        _is_short(error)
        return
    assert all(isinstance(text, str) for text in (claim.mirror_id, claim.hostname, claim.datastore, claim.epoch))


@reader(strategies.nested() | st.binary(max_size=80) | strategies.json_values.map(strategies.as_json))
def json_within_bounds(data: bytes) -> None:
    """What is accepted is what Python reads."""
    try:
        value = parse_json(data, maximum_size=_MOST)
    except MalformedJSON as error:
        _is_short(error)
        return
    assert repr(value) == repr(json.loads(data))


@reader(strategies.markers)
def restore_markers(data: bytes) -> None:
    """An accepted one comes back from what it is written as."""
    try:
        marker = Marker.decode(data)
    except (ValueError, DatastoreError):
        return
    assert Marker.decode(marker.encode()) == marker


@reader(st.binary(max_size=80) | strategies.texts.map(lambda text: text.encode("utf-8", "surrogatepass")))
def owners_and_notes(data: bytes) -> None:
    """Nothing else is raised."""
    for check in (check_owner, check_notes):
        try:
            check(data)
        except DatastoreError as error:
            _is_short(error)


@reader(strategies.paths)
def paths(path: bytes) -> None:
    """Each path is one thing; one of a datastore can be read back from its identifiers; a foreign one has a top."""
    name = classify(path)
    assert classify(path) == name
    topmost = topmost_foreign(path)
    assert topmost is None or isinstance(classify(topmost), ForeignName)
    assert topmost is not None or not isinstance(name, ForeignName) or _lies_in_something_internal(path)
    if isinstance(name, ChunkName | SnapshotFileName | GroupFileName):
        assert path.decode() == name.path
    for parse in (NamespaceId.parse, GroupId.parse, SnapshotId.parse):
        try:
            assert parse(path.decode("latin-1")).path.encode() == path
        except DatastoreError as error:
            _is_short(error)


def _lies_in_something_internal(path: bytes) -> bool:
    parts = path.split(b"/")
    return any(isinstance(classify(b"/".join(parts[:count])), InternalName) for count in range(1, len(parts)))


@reader(strategies.keys)
def object_keys(key: str) -> None:
    """A key that is taken for ours is the one that we would give, and its path leads nowhere else."""
    for full in (key, f"m/{key}"):
        path, deleted, digest = _LAYOUT.content_path(full), _LAYOUT.deleted_path(full), _LAYOUT.chunk_digest(full)
        if path is not None:
            assert _LAYOUT.content_key(path) == full
            assert ".." not in path.split("/")
        if deleted is not None:
            directory, _, filename = deleted.rpartition("/")
            assert _LAYOUT.deleted_key(directory, filename) == full
        if digest is not None:
            assert _LAYOUT.chunk_key(digest) == full


@reader(strategies.exports)
def journal_exports(data: bytes) -> None:
    """Nothing else is raised."""
    try:
        for record in Export(io.BytesIO(data), "export").records():
            assert isinstance(record.path, bytes)
    except (MalformedExport, DatabaseError):
        return


@reader(strategies.texts)
def times_and_places(text: str) -> None:
    """What an administrator writes on a command line."""
    with suppress(RestoreError):
        assert 0 <= parse_moment(text, _NOW) <= _NOW
    with suppress(ValueError):
        assert parse_duration(text) >= 0
    with suppress(RestoreError):
        parse_owner(text)
    for url in (text, f"s3://{text}", f"s3://bucket/{text}"):
        with suppress(MalformedURL, StoreError):
            assert str(parse_url(url)).startswith("s3://")


@reader(strategies.checkpoints)
def checkpoints_of_a_verification(data: bytes) -> None:
    """What is gone on from has the kinds that were saved."""
    try:
        saved = CheckpointFile(Path("checkpoint"), {"url": "s3://bucket/name"})._parsed(data)
    except RestoreError as error:
        _is_short(error)
        return
    saved.advanced("", saved.damaged, saved.chunks + 1, saved.bytes + 1)
    assert all(isinstance(text, str) for pair in saved.damaged.items() for text in pair)


@reader(strategies.settings_files)
def settings_files(data: bytes) -> None:
    """Nothing else is raised."""
    with suppress(KeyGivenTwice, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError):
        assert not any(isinstance(value, dict) for value in parse_settings(data).values())


@reader(strategies.requests)
def requests_on_the_control_socket(line: bytes) -> None:
    """Each has an answer, which can be sent."""

    async def tell(_: object) -> None:
        await trio.lowlevel.checkpoint()

    async def answer(_: object, __: object) -> dict[str, object]:
        await trio.lowlevel.checkpoint()
        return {}

    answered = json.loads(trio.run(control._answer, line, {"status": answer}, tell))
    assert answered == {} or len(answered["error"]) < _LONGEST_MESSAGE
    assert "could not answer" not in answered.get("error", "")


@reader(strategies.stored_values)
def values_of_the_state(data: bytes) -> None:
    """What is damaged is said to be."""
    for form in (
        chunks_of_state._FORM,
        contents._FORM,
        counting._FORM,
        problems._FORM,
        retention._DELETED_FORM,
        retention._HELD_FORM,
        retention._REFUSED_FORM,
        snapshots._FORM,
    ):
        with suppress(DatabaseCorrupt):
            form.read(data)
