"""The auditor against a true mirror, against every kind of damage, and against buckets that change while it reads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import formats
from tests.harness.auditor import Auditor, Violation, audit_continuously, audit_until_converged
from tests.harness.backup import WrittenSnapshot
from tests.harness.content import plan_of_size
from tests.harness.names import chunk_path
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


@damages("P1", deep=True)
def corrupt_chunk(world: World) -> str:
    data = bytearray(world.mirror.data(world.own_chunk()))
    data[-1] ^= 1
    return _changed(world, world.own_chunk(), bytes(data))


@damages("P1", deep=True)
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


def test_a_chunk_that_is_bad_locally_keeps_its_good_object(world: World) -> None:
    digest = min(world.first.chunks)
    path = world.path / chunk_path(digest)
    path.write_bytes(b"rotten")
    world.writer.verify(world.first.name)
    assert not path.exists()
    world.mirror.put(world.manifest_key(world.first), (world.path / world.first.path / "index.json.blob").read_bytes())
    assert world.audit() == []
    world.mirror.delete(chunk_path(digest))
    assert {found.promise for found in world.audit()} == {"P1"}


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
