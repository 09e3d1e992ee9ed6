"""The auditor against a true mirror, against every kind of damage, and against buckets that change while it reads."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from tests.harness import formats
from tests.harness.auditor import Auditor, Violation, audit_continuously, audit_until_converged
from tests.harness.backup import WrittenSnapshot
from tests.harness.content import plan_of_size
from tests.harness.names import chunk_path
from tests.harness.scan import scan_datastore
from tests.harness.writer import DatastoreWriter
from tests.harness_tests.fake_s3 import FakeMirror

TINY = plan_of_size(512 * 1024, chunk_size=64 * 1024)


class World:
    """A datastore with two snapshots of a group, one in a namespace, an empty namespace, and its mirror."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer = DatastoreWriter(path, default_plan=TINY)
        self.writer.create("when needed")
        self.first = self.writer.backup("vm/1")
        self.second = self.writer.backup("vm/1")
        self.writer.set_protected(self.second.name)
        self.writer.upload_log(self.first.name)
        self.writer.set_group_notes("vm/1", "notes of the group")
        self.writer.create_namespace("empty")
        self.writer.create_namespace("a/b")
        self.inner = self.writer.backup("host/2", namespace="a/b", encrypted=True)
        self.mirror = FakeMirror(path)

    def manifest_key(self, snapshot: WrittenSnapshot) -> str:
        return f".cnt/{snapshot.path}/index.json.blob"

    def own_chunk(self) -> str:
        """The key of a chunk that the first snapshot alone references."""
        return chunk_path(min(self.first.chunks - self.second.chunks))

    def audit(self, *, deep: bool = False) -> list[Violation]:
        return Auditor(self.mirror.bucket, deep=deep).audit_datastore(self.path)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "store")
    yield made
    made.writer.close()


@pytest.mark.parametrize("deep", [False, True])
def test_a_true_mirror_has_no_violations_and_everything_was_looked_at(world: World, deep: bool) -> None:
    auditor = Auditor(world.mirror.bucket, deep=deep)
    assert auditor.audit_datastore(world.path) == []
    assert auditor.audit_bucket() == []
    snapshots = (world.first, world.second, world.inner)
    assert auditor.counts.manifests == 2 * 3
    assert auditor.counts.files == 2 * sum(len(snapshot.files) for snapshot in snapshots)
    assert auditor.counts.chunk_references == 2 * sum(len(snapshot.chunks) for snapshot in snapshots)
    chunks = frozenset[str]().union(*(snapshot.chunks for snapshot in snapshots))
    assert auditor.counts.chunks_read == (len(chunks) if deep else 0)


Damage = Callable[[World], str]
DAMAGES: dict[str, tuple[str, bool, Damage]] = {}


def damages(promise: str, *, deep: bool = False) -> Callable[[Damage], Damage]:
    """Registers a way to damage the mirror; it gives the key that must be reported for the promise."""

    def register(damage: Damage) -> Damage:
        DAMAGES[damage.__name__] = (promise, deep, damage)
        return damage

    return register


def _deleted(world: World, key: str) -> str:
    world.mirror.delete(key)
    return key


def _changed(world: World, key: str, data: bytes) -> str:
    world.mirror.put(key, data)
    return key


@damages("P1")
def missing_chunk(world: World) -> str:
    return _deleted(world, world.own_chunk())


@damages("P1")
def empty_chunk(world: World) -> str:
    return _changed(world, world.own_chunk(), b"")


@damages("P6", deep=True)
def corrupt_chunk(world: World) -> str:
    data = bytearray(world.mirror.data(world.own_chunk()))
    data[-1] ^= 1
    return _changed(world, world.own_chunk(), bytes(data))


@damages("P6", deep=True)
def corrupt_chunk_that_nobody_references(world: World) -> str:
    return _changed(world, chunk_path("ab" * 32), b"not a chunk at all")


@damages("P6", deep=True)
def corrupt_client_log(world: World) -> str:
    key = f".cnt/{world.first.path}/client.log.blob"
    return _changed(world, key, world.mirror.data(key)[:-1])


@damages("P6")
def damaged_index_of_the_datastore_that_was_uploaded(world: World) -> str:
    path = f"{world.first.path}/drive-scsi0.img.fidx"
    world.writer.corrupt_file(world.first.name, "drive-scsi0.img.fidx")
    return _changed(world, f".cnt/{path}", (world.path / path).read_bytes())


@damages("P6")
def damaged_manifest_of_the_datastore_that_was_uploaded(world: World) -> str:
    world.writer.corrupt_file(world.first.name, "index.json.blob")
    path = f"{world.first.path}/index.json.blob"
    return _changed(world, f".cnt/{path}", (world.path / path).read_bytes())


@damages("P6", deep=True)
def chunk_of_another_name(world: World) -> str:
    return _changed(world, world.own_chunk(), formats.encode_blob(b"something else"))


@damages("P1")
def missing_index(world: World) -> str:
    return _deleted(world, f".cnt/{world.first.path}/root.pxar.didx")


@damages("P1")
def truncated_index(world: World) -> str:
    key = f".cnt/{world.first.path}/drive-scsi0.img.fidx"
    return _changed(world, key, world.mirror.data(key)[:-32])


@damages("P1")
def index_of_another_snapshot(world: World) -> str:
    key = f".cnt/{world.first.path}/drive-scsi0.img.fidx"
    return _changed(world, key, world.mirror.data(f".cnt/{world.second.path}/drive-scsi0.img.fidx"))


@damages("P1")
def missing_blob(world: World) -> str:
    return _deleted(world, f".cnt/{world.first.path}/qemu-server.conf.blob")


@damages("P1")
def blob_with_other_bytes(world: World) -> str:
    return _changed(world, f".cnt/{world.first.path}/qemu-server.conf.blob", formats.encode_blob(b"other"))


@damages("P1")
def truncated_manifest(world: World) -> str:
    key = world.manifest_key(world.first)
    return _changed(world, key, world.mirror.data(key)[:-1])


@damages("P2")
def missing_manifest(world: World) -> str:
    return _deleted(world, world.manifest_key(world.first))


@damages("P2")
def stale_manifest(world: World) -> str:
    world.writer.set_notes(world.first.name, "newer than the mirror")
    return world.manifest_key(world.first)


@damages("P2")
def leftover_blob_without_manifest(world: World) -> str:
    world.writer.forget(world.first.name)
    prefix = f".cnt/{world.first.path}/"
    for key in world.mirror.all_keys():
        if key.startswith(prefix) and not key.endswith("/qemu-server.conf.blob"):
            world.mirror.delete(key)
    return f"{prefix}qemu-server.conf.blob"


@damages("P2")
def forgotten_snapshot(world: World) -> str:
    world.writer.forget(world.first.name)
    return world.manifest_key(world.first)


@damages("P2")
def snapshot_without_manifest_in_the_datastore(world: World) -> str:
    (world.path / world.first.path / "index.json.blob").unlink()
    return world.manifest_key(world.first)


@damages("P2")
def missing_owner(world: World) -> str:
    return _deleted(world, ".cnt/vm/1/owner")


@damages("P2")
def other_owner(world: World) -> str:
    return _changed(world, ".cnt/vm/1/owner", b"somebody@pbs\n")


@damages("P2")
def missing_group_notes(world: World) -> str:
    return _deleted(world, ".cnt/vm/1/notes")


@damages("P2")
def leftover_group_notes(world: World) -> str:
    return _changed(world, ".cnt/ns/a/ns/b/host/2/notes", b"of old")


@damages("P2")
def missing_protection(world: World) -> str:
    return _deleted(world, f".cnt/{world.second.path}/.protected")


@damages("P2")
def leftover_protection(world: World) -> str:
    world.writer.set_protected(world.second.name, protected=False)
    return f".cnt/{world.second.path}/.protected"


@damages("P2")
def missing_client_log(world: World) -> str:
    return _deleted(world, f".cnt/{world.first.path}/client.log.blob")


@damages("P2")
def missing_marker_of_an_empty_namespace(world: World) -> str:
    return _deleted(world, ".cnt/ns/empty/.namespace")


@damages("P2")
def missing_marker_of_an_outer_namespace(world: World) -> str:
    return _deleted(world, ".cnt/ns/a/.namespace")


@damages("P2")
def leftover_namespace_marker(world: World) -> str:
    world.writer.remove_namespace("empty")
    return ".cnt/ns/empty/.namespace"


@damages("P2")
def namespace_marker_with_content(world: World) -> str:
    return _changed(world, ".cnt/ns/empty/.namespace", b"x")


@damages("P2")
def extra_object_in_a_snapshot(world: World) -> str:
    return _changed(world, f".cnt/{world.first.path}/root.pxar.tmp_didx", b"x")


@damages("P2")
def extra_object_below_content(world: World) -> str:
    return _changed(world, ".cnt/.lock", b"")


@damages("P2")
def extra_object_at_the_top(world: World) -> str:
    return _changed(world, "lost+found", b"x")


@damages("P2")
def orphan_chunk(world: World) -> str:
    return _changed(world, chunk_path("ab" * 32), formats.encode_blob(b"x"))


@damages("P2")
def chunk_under_a_wrong_directory(world: World) -> str:
    digest = min(world.first.chunks)
    return _changed(world, f".chunks/zzzz/{digest}", world.mirror.data(chunk_path(digest)))


@damages("P2")
def missing_unreferenced_chunk_of_the_datastore(world: World) -> str:
    world.writer.abort_backup("ct/3")
    aborted = {f".chunks/{path.parent.name}/{path.name}" for path in (world.path / ".chunks").glob("*/*")}
    return min(aborted - set(world.mirror.all_keys()))


@damages("P2")
def chunk_of_another_size(world: World) -> str:
    key = world.own_chunk()
    return _changed(world, key, world.mirror.data(key) + b"x")


@damages("P2", deep=True)
def chunk_with_other_bytes(world: World) -> str:
    key = chunk_path(min(world.inner.chunks))
    raw = world.mirror.data(key)
    return _changed(world, key, raw[:20] + b"\0" + raw[21:])  # in an encrypted chunk's iv: no check finds that


@pytest.mark.parametrize("name", sorted(DAMAGES))
def test_damage_is_reported(world: World, name: str) -> None:
    promise, deep, damage = DAMAGES[name]
    key = damage(world)
    violations = world.audit(deep=deep)
    assert (promise, key) in {(found.promise, found.key) for found in violations}, violations


def quarantine(world: World) -> str:
    """A verification finds a chunk of the first snapshot corrupt; the mirror follows. Gives the object's key."""
    digest = min(world.first.chunks - world.second.chunks)
    world.writer.corrupt_chunk(digest)
    assert world.writer.verify(world.first.name).bad == (digest,)
    world.mirror.put(world.manifest_key(world.first), (world.path / world.first.path / "index.json.blob").read_bytes())
    return chunk_path(digest)


def promises(violations: list[Violation], key: str) -> set[str]:
    return {found.promise for found in violations if found.key == key}


def test_a_chunk_that_is_bad_locally_keeps_its_good_object(world: World) -> None:
    key = quarantine(world)
    auditor = Auditor(world.mirror.bucket, deep=True)
    assert auditor.audit_datastore(world.path) == []
    good = world.mirror.data(key)
    world.mirror.delete(key)
    assert promises(auditor.audit_quarantine(world.path), key) == {"P5"}
    assert promises(auditor.audit_datastore(world.path), key) == {"P1", "P5"}
    assert promises(world.audit(), key) == {"P1"}  # who has not seen it good accuses nobody of deleting it
    world.mirror.put(key, good[:-1])
    assert promises(auditor.audit_datastore(world.path), key) == {"P5", "P6"}
    world.mirror.put(key, good)
    assert auditor.audit_datastore(world.path) == []


def test_the_good_object_must_stay_although_its_snapshot_is_not_published(world: World) -> None:
    key = quarantine(world)
    auditor = Auditor(world.mirror.bucket)
    assert auditor.audit_datastore(world.path) == []
    unpublish(world, world.first)
    found = auditor.audit_datastore(world.path)
    assert promises(found, key) == {"P5"}
    # As soon as the snapshot is forgotten nobody needs it.
    world.writer.forget(world.first.name)
    assert auditor.audit_quarantine(world.path) == []


def test_the_object_of_a_quarantined_chunk_that_nobody_needs_may_stand(world: World) -> None:
    key = quarantine(world)
    world.writer.forget(world.first.name)
    good = world.mirror.data(key)
    unpublish(world, world.first)
    world.mirror.put(key, good)
    auditor = Auditor(world.mirror.bucket)
    assert promises(auditor.audit_datastore(world.path), key) == set()
    Path(f"{world.path}/{key}.0.bad").unlink()
    assert promises(auditor.audit_datastore(world.path), key) == {"P2"}


def test_a_damaged_snapshot_may_be_published_from_better_days_but_not_anew(world: World) -> None:
    world.writer.corrupt_file(world.first.name, "qemu-server.conf.blob")
    objects = dict(world.mirror.client.objects)
    auditor = Auditor(world.mirror.bucket, deep=True)
    assert auditor.audit_datastore(world.path) == []
    unpublish(world, world.first)
    assert promises(auditor.audit_datastore(world.path), world.manifest_key(world.first)) == set()
    world.mirror.client.objects = objects
    assert promises(auditor.audit_datastore(world.path), world.manifest_key(world.first)) == {"P6"}


def test_what_cannot_be_read_in_the_datastore_is_damaged_and_no_failure_of_the_audit(world: World) -> None:
    chunk = world.path / world.own_chunk()
    chunk.unlink()
    chunk.mkdir()
    blob = world.path / world.second.path / "qemu-server.conf.blob"
    blob.unlink()
    blob.mkdir()
    assert world.audit(deep=True) == []
    assert set(scan_datastore(world.path).damaged) == {world.first.path, world.second.path}


@pytest.mark.parametrize("name", ["-bad", "ä", "a b", ".hidden", "a/ns/b/ns/c/ns/d/ns/e/ns/f/ns/g/ns/h"])
def test_a_directory_outside_the_grammar_is_no_namespace(world: World, name: str) -> None:
    (world.path / "ns" / name).mkdir(parents=True)
    found = [
        violation for violation in world.audit() if violation.key.endswith(f"{name.rpartition('/')[2]}/.namespace")
    ]
    assert found == []
    assert scan_datastore(world.path).namespaces[:1] == ("a",)


def test_chunks_of_an_aborted_backup_may_stand_in_the_bucket_until_they_are_collected(world: World) -> None:
    world.writer.abort_backup("ct/3")
    world.mirror.publish(world.path)
    assert world.audit() == []
    world.writer.collect_garbage(age_seconds=0, safety_seconds=0)
    assert {found.promise for found in world.audit()} == {"P2"}


# -- changes while the auditor reads -----------------------------------------------------------------------


def unpublish(world: World, snapshot: WrittenSnapshot) -> None:
    """In the right order: the manifest first."""
    prefix = f".cnt/{snapshot.path}/"
    world.mirror.delete(f"{prefix}index.json.blob")
    for key in world.mirror.all_keys():
        if key.startswith(prefix):
            world.mirror.delete(key)
    for digest in snapshot.chunks - world.second.chunks - world.inner.chunks:
        world.mirror.delete(chunk_path(digest))


def at_call(world: World, number: int, change: Callable[[], None]) -> None:
    """Make a change before the auditor's call of this number."""
    calls = iter(range(1_000_000))

    def before(operation: str, key: str) -> None:
        if next(calls) == number:
            change()

    world.mirror.client.before_call = before


def count_calls(world: World) -> int:
    calls: list[str] = []
    world.mirror.client.before_call = lambda operation, key: calls.append(key)
    assert Auditor(world.mirror.bucket, threads=1).audit_bucket() == []
    world.mirror.client.before_call = lambda operation, key: None
    return len(calls)


def test_a_snapshot_unpublished_at_any_moment_of_an_audit_is_no_violation(world: World) -> None:
    objects = dict(world.mirror.client.objects)
    for number in range(count_calls(world)):
        world.mirror.client.objects = dict(objects)
        at_call(world, number, lambda: unpublish(world, world.first))
        assert Auditor(world.mirror.bucket, threads=1).audit_bucket() == [], number


def test_a_snapshot_published_at_any_moment_of_an_audit_is_no_violation(world: World) -> None:
    for number in range(count_calls(world)):
        unpublish(world, world.first)
        at_call(world, number, lambda: world.mirror.publish(world.path))
        assert Auditor(world.mirror.bucket, threads=1).audit_bucket() == [], number
        world.mirror.client.before_call = lambda operation, key: None
        world.mirror.publish(world.path)


def test_a_manifest_replaced_at_any_moment_of_an_audit_is_no_violation(world: World) -> None:
    raw = world.writer.set_notes(world.first.name, "changed meanwhile")
    old = world.mirror.data(world.manifest_key(world.first))
    for number in range(count_calls(world)):
        world.mirror.put(world.manifest_key(world.first), old)
        at_call(world, number, lambda: world.mirror.put(world.manifest_key(world.first), raw))
        assert Auditor(world.mirror.bucket, threads=1).audit_bucket() == [], number
        world.mirror.client.before_call = lambda operation, key: None


def test_a_chunk_that_comes_after_its_manifest_is_a_violation_although_it_is_there_at_the_end(world: World) -> None:
    key = world.own_chunk()
    raw = world.mirror.data(key)
    world.mirror.delete(key)

    def bring_it(operation: str, called: str) -> None:
        if operation == "head":
            world.mirror.client.before_call = lambda operation, key: None
            world.mirror.put(key, raw)

    world.mirror.client.before_call = bring_it
    found = Auditor(world.mirror.bucket).audit_bucket()
    assert [(violation.promise, violation.key) for violation in found] == [("P1", key)]
    assert "came only after" in found[0].sentence


def test_a_chunk_deleted_beneath_a_standing_manifest_is_a_violation_of_p5(world: World) -> None:
    auditor = Auditor(world.mirror.bucket)
    auditor.audit_bucket()
    key = world.own_chunk()
    raw = world.mirror.data(key)
    world.mirror.delete(key)
    assert promises(auditor.audit_bucket(), key) == {"P1", "P5"}
    world.mirror.put(key, raw)
    assert auditor.audit_bucket() == []


def test_a_chunk_deleted_and_put_again_while_the_auditor_looks_is_a_violation_of_p5(world: World) -> None:
    auditor = Auditor(world.mirror.bucket)
    auditor.audit_bucket()
    key = world.own_chunk()
    raw = world.mirror.data(key)
    world.mirror.delete(key)

    def bring_it(operation: str, called: str) -> None:
        if operation == "head":
            world.mirror.client.before_call = lambda operation, key: None
            world.mirror.put(key, raw)

    world.mirror.client.before_call = bring_it
    assert promises(auditor.audit_bucket(), key) == {"P1", "P5"}


def test_a_chunk_put_again_with_another_compression_is_counted_and_no_violation(world: World) -> None:
    auditor = Auditor(world.mirror.bucket)
    auditor.audit_bucket()
    key = world.own_chunk()
    world.mirror.put(
        key, formats.encode_blob(formats.decode_blob(world.mirror.data(key)).content or b"", compress=False)
    )
    assert auditor.audit_bucket() == []
    assert auditor.counts.rewritten == 1


def test_a_snapshot_unpublished_and_published_anew_between_audits_is_no_violation(world: World) -> None:
    auditor = Auditor(world.mirror.bucket)
    auditor.audit_bucket()
    objects = [(key, world.mirror.data(key)) for key in world.mirror.all_keys()]
    unpublish(world, world.first)
    for key, raw in sorted(objects, key=lambda item: item[0].endswith("/index.json.blob")):
        if key not in world.mirror.all_keys():
            world.mirror.put(key, raw)
    assert auditor.audit_bucket() == []


# -- a mirror at work, and listings that lag -----------------------------------------------------------------


class Actor:
    """Changes the mirror as it should be changed, one object at a time, in the midst of the auditor's calls."""

    def __init__(self, world: World, seed: int) -> None:
        self._world, self._mirror = world, world.mirror
        self._random = random.Random(seed)
        self._objects = {key: world.mirror.data(key) for key in world.mirror.all_keys()}
        self._published = {snapshot.path: snapshot for snapshot in (world.first, world.second, world.inner)}
        self._unpublished: dict[str, WrittenSnapshot] = {}
        self._steps: Iterator[None] = iter(())

    def __call__(self, operation: str, key: str) -> None:
        if self._random.random() < 0.7:
            self.advance()

    def advance(self) -> None:
        if next(self._steps, StopIteration) is StopIteration:
            self._steps = self._random.choice([self._unpublish, self._publish, self._note, self._recompress])()

    def _unpublish(self) -> Iterator[None]:
        if len(self._published) < 2:
            return
        path = self._random.choice(sorted(self._published))
        snapshot = self._published.pop(path)
        self._unpublished[path] = snapshot
        keys = sorted(key for key in self._mirror.all_keys() if key.startswith(f".cnt/{path}/"))
        keys.sort(key=lambda key: not key.endswith("/index.json.blob"))
        needed = frozenset[str]().union(*(other.chunks for other in self._published.values()))
        for key in [*keys, *map(chunk_path, sorted(snapshot.chunks - needed))]:
            self._mirror.delete(key)
            yield

    def _publish(self) -> Iterator[None]:
        if not self._unpublished:
            return
        path = self._random.choice(sorted(self._unpublished))
        snapshot = self._unpublished.pop(path)
        files = sorted(key for key in self._objects if key.startswith(f".cnt/{path}/"))
        files.sort(key=lambda key: key.endswith("/index.json.blob"))
        standing = set(self._mirror.all_keys())
        for key in [*map(chunk_path, sorted(snapshot.chunks)), *files]:
            if key not in standing:
                self._mirror.put(key, self._objects[key])
                yield
        self._published[path] = snapshot

    def _note(self) -> Iterator[None]:
        if self._published:
            path = self._random.choice(sorted(self._published))
            self._world.writer.set_notes(path, f"note {self._random.random()}")
            key = f".cnt/{path}/index.json.blob"
            self._objects[key] = (self._world.path / path / "index.json.blob").read_bytes()
            self._mirror.put(key, self._objects[key])
        yield

    def _recompress(self) -> Iterator[None]:
        key = self._random.choice([key for key in self._mirror.all_keys() if key.startswith(".chunks/")])
        content = formats.decode_blob(self._mirror.data(key)).content
        if content is not None:
            raw = formats.encode_blob(content, compress=self._random.random() < 0.5)
            self._objects[key] = raw
            self._mirror.put(key, raw)
        yield


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("longest_lag", [0, 40])
def test_a_mirror_at_work_is_never_accused(world: World, seed: int, longest_lag: int) -> None:
    lag = random.Random(seed)
    world.mirror.client.before_call = Actor(world, seed)
    world.mirror.client.lag = lambda: lag.randint(0, longest_lag)
    auditor = Auditor(world.mirror.bucket, deep=seed % 2 == 0, listings_lag=longest_lag > 0, threads=1)
    for _ in range(8):
        assert auditor.audit_bucket() == []
    assert auditor.counts.manifests > 0


def manifest_before_its_chunk(world: World) -> str:
    """A snapshot is published without one of its chunks."""
    key = world.own_chunk()
    manifest = world.mirror.data(world.manifest_key(world.first))
    world.mirror.delete(world.manifest_key(world.first))
    world.mirror.delete(key)
    world.mirror.put(world.manifest_key(world.first), manifest)
    return key


BREAKS: dict[str, tuple[str, Callable[[World], str]]] = {
    "a deleted chunk": ("P1", lambda world: _deleted(world, world.own_chunk())),
    "a deleted chunk seen before": ("P5", lambda world: _deleted(world, world.own_chunk())),
    "a deleted index": ("P1", lambda world: _deleted(world, f".cnt/{world.first.path}/root.pxar.didx")),
    "a truncated chunk": (
        "P6",
        lambda world: _changed(world, world.own_chunk(), world.mirror.data(world.own_chunk())[:-1]),
    ),
    "another index": ("P1", index_of_another_snapshot),
    "a manifest before its chunk": ("P1", manifest_before_its_chunk),
}


@pytest.mark.parametrize("name", sorted(BREAKS))
@pytest.mark.parametrize("seed", range(4))
def test_listings_that_lag_hide_no_broken_promise_for_long(world: World, name: str, seed: int) -> None:
    promise, damage = BREAKS[name]
    lag = random.Random(seed)
    auditor = Auditor(world.mirror.bucket, deep=True, listings_lag=True, threads=1)
    assert auditor.audit_bucket() == []
    world.mirror.client.lag = lambda: lag.randint(0, 40)
    key = damage(world)
    found: list[Violation] = []
    for _ in range(12):
        found += auditor.audit_bucket()
    assert (promise, key) in {(violation.promise, violation.key) for violation in found}


@pytest.mark.parametrize("listings_lag", [False, True])
def test_a_chunk_replaced_before_its_first_listing_is_no_violation_where_listings_lag(
    world: World, listings_lag: bool
) -> None:
    key = world.own_chunk()
    world.mirror.put(
        key, formats.encode_blob(formats.decode_blob(world.mirror.data(key)).content or b"", compress=False)
    )

    def before(operation: str, called: str) -> None:
        age = 1_000_000 if called.endswith(".chunks/") else 0
        world.mirror.client.lag = lambda: age

    world.mirror.client.before_call = before
    auditor = Auditor(world.mirror.bucket, listings_lag=listings_lag)
    assert promises(auditor.audit_bucket(), key) == (set() if listings_lag else {"P1"})
    assert auditor.counts.undecided == (1 if listings_lag else 0)


def test_a_quiet_mirror_whose_listings_lag_equals_its_datastore(world: World) -> None:
    auditor = Auditor(world.mirror.bucket, deep=True, listings_lag=True, threads=1)
    world.mirror.put(world.manifest_key(world.first), world.writer.set_notes(world.first.name, "quite new"))
    world.mirror.delete(".cnt/ns/empty/.namespace")
    world.writer.remove_namespace("empty")
    world.mirror.client.lag = lambda: 1000
    assert auditor.audit_datastore(world.path) == []
    world.mirror.delete(".cnt/vm/1/owner")
    assert promises(auditor.audit_datastore(world.path), ".cnt/vm/1/owner") == {"P2"}


def test_a_chunk_that_a_lagging_listing_lacks_is_no_violation_but_a_missing_one_is(world: World) -> None:
    key = world.own_chunk()
    stored = world.mirror.client.objects.pop(f"mirror/{key}")

    def bring_it_back(operation: str, called: str) -> None:
        if operation == "head":
            world.mirror.client.objects[f"mirror/{key}"] = stored

    world.mirror.client.before_call = bring_it_back
    assert Auditor(world.mirror.bucket, listings_lag=True).audit_bucket() == []
    world.mirror.client.before_call = lambda operation, called: None
    world.mirror.delete(key)
    assert Auditor(world.mirror.bucket, listings_lag=True).audit_bucket()


def test_a_second_audit_reads_only_what_has_changed(world: World) -> None:
    auditor = Auditor(world.mirror.bucket, deep=True)
    auditor.audit_datastore(world.path)
    read = auditor.counts.bytes_read
    assert auditor.audit_datastore(world.path) == []
    assert auditor.counts.bytes_read == read
    world.mirror.delete(world.own_chunk())
    assert auditor.audit_bucket()


def test_what_is_remembered_follows_the_bucket(world: World) -> None:
    auditor = Auditor(world.mirror.bucket, deep=True)
    auditor.audit_bucket()
    remembered = auditor.remembered
    for number in range(20):
        world.mirror.put(world.manifest_key(world.first), world.writer.set_notes(world.first.name, f"text {number}"))
        assert auditor.audit_bucket() == []
    assert auditor.remembered <= remembered + 1
    unpublish(world, world.first)
    auditor.audit_bucket()
    auditor.audit_bucket()
    assert auditor.remembered < remembered


def test_an_outage_of_the_store_is_counted_and_waited_out(world: World) -> None:
    outage = threading.Event()
    outage.set()

    def before(operation: str, key: str) -> None:
        if outage.is_set():
            raise ClientError({"Error": {"Code": "503", "Message": "slow down"}}, "Any")

    world.mirror.client.before_call = before
    auditor = Auditor(world.mirror.bucket)
    with pytest.raises(ClientError):
        audit_until_converged(auditor, world.path, timeout_seconds=0.05, pause_seconds=0.001)
    audit = audit_continuously(auditor, threading.Event(), pause_seconds=0.001)
    threading.Timer(0.1, outage.clear).start()
    assert audit_until_converged(auditor, world.path, timeout_seconds=30, pause_seconds=0.001) == []
    assert audit.finish() == []
    assert audit.unreadable > 0
    assert audit.samples > 0


def test_continuous_audit_collects_what_was_wrong_for_a_while(world: World) -> None:
    key = world.own_chunk()
    stored = world.mirror.client.objects[f"mirror/{key}"]
    sampled = threading.Event()
    healed = threading.Event()
    audit = audit_continuously(Auditor(world.mirror.bucket), threading.Event(), pause_seconds=0.001)

    def watch(operation: str, called: str) -> None:
        if audit.violations and not healed.is_set():
            world.mirror.client.objects[f"mirror/{key}"] = stored
            healed.set()
        if audit.samples > 2:
            sampled.set()

    world.mirror.client.before_call = watch
    assert sampled.wait(10)
    assert audit.violations == []
    world.mirror.delete(key)
    assert healed.wait(10)
    assert {violation.key for violation in audit.finish()} == {key}


def test_waiting_for_convergence_ends_when_the_mirror_has_caught_up(world: World) -> None:
    world.writer.backup("ct/9")
    seen: list[int] = []

    def catch_up(violations: list[Violation]) -> None:
        seen.append(len(violations))
        world.mirror.publish(world.path)

    auditor = Auditor(world.mirror.bucket)
    assert audit_until_converged(auditor, world.path, timeout_seconds=30, pause_seconds=0.001, on_sample=catch_up) == []
    assert len(seen) == 2
    assert seen[0] > 0
