"""The harness' own means for retention: who came and left, moments, a store that refuses, an administrator."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from botocore.exceptions import ClientError

from tests.harness.administrator import Administrator
from tests.harness.bucket import Bucket
from tests.harness.content import plan_of_size
from tests.harness.deleted import decode_deletion
from tests.harness.departures import Departures
from tests.harness.formats import FormatError, check_chunk, encode_blob, encode_encrypted_looking_blob
from tests.harness.mirror import Mirror
from tests.harness.model import Model
from tests.harness.moment import Moment
from tests.harness.operations import compressed_otherwise
from tests.harness.refusing_store import RefusingStore
from tests.harness.retention import RetentionSettings, choose_retention, chooses_versions
from tests.harness.scan import scan_datastore
from tests.harness.statistics import Statistics
from tests.harness.writer import DatastoreWriter
from tests.harness_tests.fake_s3 import FakeS3
from tests.stores.seaweedfs import StoreServer

TINY = plan_of_size(256 * 1024, chunk_size=64 * 1024)
PATH = "vm/1/2026-01-01T00:00:00Z"


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[DatastoreWriter]:
    with DatastoreWriter(tmp_path / "store", default_plan=TINY) as made:
        made.create("when needed")
        yield made


# -- the settings of a round -------------------------------------------------------------------------------


def test_rounds_have_every_kind_of_retention_and_the_same_seed_the_same() -> None:
    chosen = [choose_retention(seed) for seed in range(400)]
    assert chosen == [choose_retention(seed) for seed in range(400)]
    without = sum(settings.delete_after == 0 for settings in chosen)
    assert 140 < without < 260
    assert {settings.delete_after for settings in chosen} == {0, *range(5, 21), 3600}
    assert {settings.max_delete_fraction for settings in chosen} == {None, 0.1, 0.3, 0.6}
    assert {settings.lock_for for settings in chosen} == {None, 86400}
    assert 50 < sum(chooses_versions(seed) for seed in range(400)) < 150


def test_the_options_of_a_mount() -> None:
    assert RetentionSettings().mount_options == ()
    options = RetentionSettings(delete_after=20, max_delete_fraction=0.3, lock_for=86400).mount_options
    assert " ".join(options) == (
        "--retention-delete-after 20s --retention-max-delete-fraction 0.3 --retention-lock-for 86400s"
    )


# -- who came and left -------------------------------------------------------------------------------------


def test_a_removal_is_not_earlier_than_the_departure_that_asked_for_it() -> None:
    departures = Departures(began=0.0)
    departures.left(PATH, at=100.0)
    departures.left(PATH, at=200.0)
    departures.left(PATH, at=300.0)
    assert departures.earliest_removal(PATH, published_at=250.0) == 200.0
    assert departures.earliest_removal(PATH, published_at=50.0) == 100.0


def test_what_came_and_what_may_have_come_is_known() -> None:
    departures = Departures()
    assert not departures.is_known(PATH)
    departures.open("vm/1")
    assert departures.is_known(PATH)
    assert not departures.is_known(PATH.replace("vm/1", "vm/11"))
    departures.came(PATH)
    assert departures.came_after(PATH, departures.began - 1)
    assert not departures.came_after(PATH, time.time() + 1)


def test_the_model_tells_what_comes_and_leaves(writer: DatastoreWriter) -> None:
    model = Model()
    first, second = writer.backup("vm/1"), writer.backup("vm/2")
    model.wrote(first)
    model.wrote(second)
    assert model.departures.paths == []
    writer.forget(first.name)
    model.removed_below(first.path)
    assert model.departures.paths == [first.path]
    model.open_scopes.add("vm/2")
    before = time.time()
    assert model.resolve(scan_datastore(writer.path)) == []
    # That it was looked up again does not make it new.
    assert not model.departures.came_after(second.path, before)
    writer.forget(second.name)
    model.open_scopes.add("vm/2")
    assert model.resolve(scan_datastore(writer.path)) == []
    assert model.departures.earliest_removal(second.path, published_at=before) == model.departures.began


def test_a_snapshot_moves_into_another_group(writer: DatastoreWriter) -> None:
    first = writer.backup("vm/1", generation=0)
    writer.backup("ct/2", generation=1)
    moved = writer.move_snapshot(first.name, "ct/2")
    found = scan_datastore(writer.path)
    assert moved.path == first.path.replace("vm/1", "ct/2")
    assert moved.path in found.finished
    assert first.path not in found.finished


# -- moments -----------------------------------------------------------------------------------------------


def test_a_moment_equals_the_datastore_that_it_was_taken_of_and_no_other(writer: DatastoreWriter) -> None:
    first, second = writer.backup("vm/1"), writer.backup("vm/1")
    writer.create_namespace("empty")
    root = Path(writer.path)
    before = time.time()
    moment = Moment.now(scan_datastore(root))
    assert before - 1 <= moment.at <= time.time() + 1
    assert list(moment.differences(root)) == []
    writer.set_notes(first.name, "later")
    assert list(moment.differences(root)) == [f"{first.path}/index.json.blob: it has other bytes"]
    writer.forget(second.name)
    later = writer.backup("vm/1", generation=7)
    writer.remove_namespace("empty")
    (root / "vm/1/owner").unlink()
    assert {sentence.partition(": ")[0] for sentence in moment.differences(root) if second.path not in sentence} == {
        first.path + "/index.json.blob",
        later.path,
        "namespace empty",
        "vm/1/owner",
    }
    assert f"{second.path}: it is not there" in list(moment.differences(root))


def test_a_chunk_that_is_missing_is_a_difference_from_a_moment(writer: DatastoreWriter) -> None:
    written = writer.backup("vm/1")
    root = Path(writer.path)
    moment = Moment.now(scan_datastore(root))
    writer.corrupt_chunk(min(written.chunks))
    assert [sentence.partition(": ")[0] for sentence in moment.differences(root)] == [written.path]


# -- records and chunks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b'{"deleted": 1, "until": 2}',
        b'{"deleted": true, "until": 2, "owner": null, "notes": null}',
        b'{"deleted": 1, "until": "2", "owner": null, "notes": null}',
        b'{"deleted": 1, "until": 2, "owner": 3, "notes": null}',
    ],
)
def test_a_record_that_lacks_something_is_none(raw: bytes) -> None:
    with pytest.raises(FormatError):
        decode_deletion(raw)


def test_a_record_is_read() -> None:
    found = decode_deletion(b'{"deleted": 1, "until": 2.5, "owner": "root@pam\\n", "notes": null, "more": 1}')
    assert (found.deleted, found.until, found.owner, found.notes) == (1.0, 2.5, "root@pam\n", None)


def test_a_chunk_compressed_otherwise_is_the_same_chunk_with_other_bytes() -> None:
    content = b"abc" * 1000
    plain, compressed = encode_blob(content, compress=False), encode_blob(content, compress=True)
    assert compressed_otherwise(plain) == compressed
    assert compressed_otherwise(compressed) == plain
    for raw in (plain, compressed):
        check_chunk(raw, hashlib.sha256(content).hexdigest())
    assert compressed_otherwise(encode_encrypted_looking_blob(b"x" * 9, bytes(16), bytes(16), compressed=False)) == (
        encode_encrypted_looking_blob(b"x" * 9, bytes(16), bytes(16), compressed=False)
    )


# -- a store that refuses ----------------------------------------------------------------------------------


def test_single_keys_of_a_deletion_are_refused_and_the_others_deleted(store: StoreServer, bucket: str) -> None:
    with RefusingStore(store.access) as refusing:
        client = store.access.client(endpoint_url=refusing.endpoint_url)
        for key in ("a/1", "a/2", "b/1"):
            client.put_object(Bucket=bucket, Key=key, Body=key.encode())
        assert client.head_object(Bucket=bucket, Key="a/1")["ContentLength"] == 3
        with pytest.raises(ClientError, match="404"):
            client.head_object(Bucket=bucket, Key="c")
        order: Any = {"Objects": [{"Key": key} for key in ("a/1", "a/2", "b/1")], "Quiet": True}
        with refusing.refusing("a/1"):
            answer = client.delete_objects(Bucket=bucket, Delete=order)
        assert [(error["Key"], error["Code"]) for error in answer["Errors"]] == [("a/1", "AccessDenied")]
        assert store.access.keys(bucket) == ["a/1"]
        assert refusing.refused == 1
        assert "Errors" not in client.delete_objects(Bucket=bucket, Delete=order)
        assert store.access.keys(bucket) == []


# -- an administrator who looks ----------------------------------------------------------------------------


class Told(Mirror):
    """A mirror that tells what it is told to tell."""

    def status(self) -> dict[str, Any]:
        return answers


answers: dict[str, Any] = {}


def _administrator(model: Model, client: FakeS3, seen_published: float | None = math.inf) -> Administrator:
    mirror = Told(Path("/nowhere"), Path("/nowhere"), "s3://bucket/mirror", "", {})
    return Administrator(mirror, model, Bucket(client, "bucket", "mirror"), Statistics(), lambda _: seen_published)


def _tell(*held: str) -> None:
    answers.clear()
    removals = [{"snapshot": path, "since": time.time()} for path in held]
    answers["retention"] = {"held": removals, "deleted": [], "refused": {"count": 0, "examples": []}}


def test_what_is_held_must_stand_until_it_is_approved_or_back() -> None:
    model, client = Model(), FakeS3()
    manifest = f"mirror/.cnt/{PATH}/index.json.blob"
    administrator = _administrator(model, client)
    model.departures.came(PATH)
    model.removed_below(PATH)
    answers.clear()
    assert list(administrator.look()) == []
    client.put(manifest, b"x")
    time.sleep(0.01)
    _tell(PATH)
    assert list(administrator.look()) == []
    assert administrator.held == {PATH}
    client.delete(manifest)
    assert len(list(administrator.look())) == 1
    # Also when it is not said to be held any more: nobody has approved.
    _tell()
    assert len(list(administrator.look())) == 1
    assert list(administrator.look()) == []
    assert administrator.held == frozenset()


@pytest.mark.parametrize("seen_published", [None, "before it came"])
def test_what_never_stood_may_be_held_and_is_not_lost(seen_published: str | None) -> None:
    """It went when all of it but its manifest was in the bucket."""
    model = Model()
    seen = None if seen_published is None else time.time()
    time.sleep(0.01)
    model.departures.came(PATH)
    administrator = _administrator(model, FakeS3(), seen)
    time.sleep(0.01)
    _tell(PATH)
    assert list(administrator.look()) == []


@pytest.mark.parametrize("way", ["back", "open", "forgotten"])
def test_what_is_held_may_go_when_it_is_back_or_nobody_can_tell(way: str) -> None:
    model, client = Model(), FakeS3()
    manifest = f"mirror/.cnt/{PATH}/index.json.blob"
    model.departures.came(PATH)
    administrator = _administrator(model, client)
    client.put(manifest, b"x")
    time.sleep(0.01)
    _tell(PATH)
    assert list(administrator.look()) == []
    client.delete(manifest)
    _tell()
    match way:
        case "back":
            model.departures.came(PATH)
        case "open":
            model.open_scopes.add("vm/1")
        case "forgotten":
            administrator.forget()
    assert list(administrator.look()) == []


def test_what_is_refused_is_told() -> None:
    administrator = _administrator(Model(), FakeS3())
    _tell()
    assert administrator.refused() == []
    answers["retention"]["refused"] = {"count": 1, "examples": [{"name": "x", "reason": "y", "retry_at": 1.0}]}
    assert [cast("str", refusal["name"]) for refusal in administrator.refused()] == ["x"]
