"""The auditor against deleted snapshots that a bucket keeps for a while: what is right, and each kind of damage."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import formats
from tests.harness.auditor import Auditor, Violation, audit_until_converged
from tests.harness.backup import WrittenSnapshot
from tests.harness.content import plan_of_size
from tests.harness.deleted import DELETED, STAGING, Grace
from tests.harness.departures import Departures
from tests.harness.names import chunk_path
from tests.harness.writer import DatastoreWriter
from tests.harness_tests.fake_s3 import FakeMirror

TINY = plan_of_size(512 * 1024, chunk_size=64 * 1024)
HOUR = 3600.0


class World:
    """A datastore from which a published snapshot, `gone`, was forgotten, its mirror, which keeps it, and an auditor
    that has seen it all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer = DatastoreWriter(path, default_plan=TINY)
        self.writer.create("when needed")
        self.gone = self.writer.backup("vm/1")
        self.left = self.writer.backup("vm/1")
        self.writer.upload_log(self.gone.name)
        self.mirror = FakeMirror(path)
        self.departures = Departures()
        self.auditor = Auditor(self.mirror.bucket, deep=True, threads=1)
        assert self.auditor.audit_datastore(path, self.grace()) == []
        self.forget()
        self.keep(self.gone.path)
        self.unpublish(self.gone.path)

    def grace(self, delete_after: float = HOUR, *, is_over: bool = False) -> Grace:
        return Grace(delete_after, self.departures, is_over)

    def forget(self) -> None:
        self.writer.forget(self.gone.name)
        self.departures.left(self.gone.path)

    def keep(self, path: str, *, deleted: float | None = None, delete_after: float = HOUR) -> None:
        """As it should be done: the files, the record, the manifest last."""
        moment = time.time() if deleted is None else deleted
        prefix = f".cnt/{path}/"
        names = [key.removeprefix(prefix) for key in self.mirror.all_keys() if key.startswith(prefix)]
        for name in sorted(names, key=lambda name: name == formats.MANIFEST_NAME):
            if name == formats.MANIFEST_NAME:
                self.record(path, {"deleted": moment, "until": moment + delete_after, "owner": "x\n", "notes": None})
            self.mirror.put(f"{DELETED}{path}/{name}", self.mirror.data(prefix + name))

    def record(self, path: str, value: object) -> None:
        self.mirror.put(f"{DELETED}{path}/deleted.json", json.dumps(value).encode())

    def unpublish(self, path: str) -> None:
        self._delete_below(f".cnt/{path}/")

    def end(self, path: str) -> None:
        """What is kept of a snapshot is over; its chunks go if nobody needs them."""
        self._delete_below(f"{DELETED}{path}/")

    def _delete_below(self, prefix: str) -> None:
        keys = [key for key in self.mirror.all_keys() if key.startswith(prefix)]
        for key in sorted(keys, key=lambda key: not key.endswith(f"/{formats.MANIFEST_NAME}")):
            self.mirror.delete(key)

    def collect_garbage(self) -> list[str]:
        """In the datastore alone; gives the keys of the chunks that it has no more."""
        return [chunk_path(digest) for digest in self.writer.collect_garbage(age_seconds=0, safety_seconds=0).removed]

    @property
    def kept(self) -> str:
        """The prefix of the kept snapshot."""
        return f"{DELETED}{self.gone.path}/"

    def own_chunk(self) -> str:
        return chunk_path(min(self.gone.chunks - self.left.chunks))

    def audit(self, grace: Grace | None = None) -> list[Violation]:
        return self.auditor.audit_datastore(self.path, grace or self.grace())


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "store")
    yield made
    made.writer.close()


def found(violations: list[Violation]) -> set[tuple[str, str]]:
    return {(violation.promise, violation.key) for violation in violations}


def test_a_snapshot_that_is_kept_as_it_should_be_is_no_violation(world: World) -> None:
    before = world.auditor.counts.manifests
    assert world.audit() == []
    assert world.auditor.counts.manifests == before + 2
    assert world.auditor.deleted_snapshots() == {world.gone.path}


def test_its_chunks_stay_although_the_datastore_has_them_no_more_and_go_with_it(world: World) -> None:
    chunks = world.collect_garbage()
    assert world.own_chunk() in chunks
    assert world.audit() == []
    world.end(world.gone.path)
    missing = (f"{world.kept}index.json.blob",)
    assert found(world.audit()) == {("P2", key) for key in (*missing, *chunks)}
    for key in chunks:
        world.mirror.delete(key)
    assert world.audit(world.grace(0)) == []


Damage = Callable[[World], str]
DAMAGES: dict[str, tuple[str, Damage]] = {}


def damages(promise: str) -> Callable[[Damage], Damage]:
    """Registers a way to damage what is kept; it gives the key that must be reported for the promise."""

    def register(damage: Damage) -> Damage:
        DAMAGES[damage.__name__] = (promise, damage)
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
    world.collect_garbage()
    return _deleted(world, world.own_chunk())


@damages("P5")
def chunk_that_was_deleted(world: World) -> str:
    world.collect_garbage()
    assert world.audit() == []
    return _deleted(world, world.own_chunk())


@damages("P6")
def corrupt_chunk(world: World) -> str:
    world.collect_garbage()
    return _changed(world, world.own_chunk(), world.mirror.data(world.own_chunk())[:-1])


@damages("P1")
def missing_index(world: World) -> str:
    return _deleted(world, f"{world.kept}root.pxar.didx")


@damages("P1")
def index_of_another_snapshot(world: World) -> str:
    other = world.mirror.data(f".cnt/{world.left.path}/drive-scsi0.img.fidx")
    return _changed(world, f"{world.kept}drive-scsi0.img.fidx", other)


@damages("P6")
def corrupt_blob(world: World) -> str:
    key = f"{world.kept}qemu-server.conf.blob"
    return _changed(world, key, world.mirror.data(key)[:-1])


@damages("P6")
def corrupt_client_log(world: World) -> str:
    key = f"{world.kept}client.log.blob"
    return _changed(world, key, world.mirror.data(key)[:-1])


@damages("P1")
def corrupt_manifest(world: World) -> str:
    key = f"{world.kept}index.json.blob"
    return _changed(world, key, world.mirror.data(key)[:-1])


@damages("P1")
def missing_record(world: World) -> str:
    return _deleted(world, f"{world.kept}deleted.json")


@damages("P1")
def record_without_a_time(world: World) -> str:
    world.record(world.gone.path, {"deleted": 1.0, "owner": None, "notes": None})
    return f"{world.kept}deleted.json"


@damages("P6")
def record_that_is_no_json(world: World) -> str:
    return _changed(world, f"{world.kept}deleted.json", b"{")


@damages("P2")
def not_kept_at_all(world: World) -> str:
    world.end(world.gone.path)
    return f"{world.kept}index.json.blob"


@damages("P2")
def parts_without_a_manifest(world: World) -> str:
    for key in world.mirror.all_keys():
        if key.startswith(world.kept) and not key.endswith("qemu-server.conf.blob"):
            world.mirror.delete(key)
    return f"{world.kept}qemu-server.conf.blob"


@damages("P2")
def something_that_is_no_part_of_it(world: World) -> str:
    return _changed(world, f"{world.kept}root.pxar.tmp_didx", b"x")


@damages("P2")
def something_that_is_no_snapshot(world: World) -> str:
    return _changed(world, f"{DELETED}notes", b"x")


@damages("P2")
def kept_for_longer_than_asked_for(world: World) -> str:
    now = time.time()
    world.record(world.gone.path, {"deleted": now, "until": now + 2 * HOUR, "owner": None, "notes": None})
    return f"{world.kept}index.json.blob"


@damages("P2")
def kept_although_its_time_is_over(world: World) -> str:
    now = time.time()
    world.record(world.gone.path, {"deleted": now - HOUR - 60, "until": now - 60, "owner": None, "notes": None})
    return f"{world.kept}index.json.blob"


@damages("P2")
def a_snapshot_that_never_was(world: World) -> str:
    path = world.gone.path.replace("vm/1", "vm/2")
    for key in world.mirror.all_keys():
        if key.startswith(world.kept):
            world.mirror.put(key.replace(world.gone.path, path), world.mirror.data(key))
    return f"{DELETED}{path}/index.json.blob"


@damages("P2")
def one_that_is_in_the_datastore(world: World) -> str:
    world.keep(world.left.path)
    return f"{DELETED}{world.left.path}/index.json.blob"


@damages("P2")
def leftover_of_a_replacement(world: World) -> str:
    return _changed(world, f"{STAGING}{'ab' * 32}", b"x")


@pytest.mark.parametrize("name", sorted(DAMAGES))
def test_damage_is_reported(world: World, name: str) -> None:
    promise, damage = DAMAGES[name]
    key = damage(world)
    violations = world.audit()
    assert (promise, key) in found(violations), violations


def test_nothing_may_be_kept_where_nothing_is_to_be_kept(world: World) -> None:
    assert found(world.audit(world.grace(0))) == {("P2", f"{world.kept}index.json.blob")}
    world.end(world.gone.path)
    assert world.audit(world.grace(0)) == []


def test_without_knowing_what_is_to_be_kept_only_its_wholeness_is_judged(world: World) -> None:
    assert world.auditor.audit_datastore(world.path) == []
    world.end(world.gone.path)
    assert world.auditor.audit_datastore(world.path) == []


def test_what_ends_soon_is_waited_for(world: World) -> None:
    seen: list[set[tuple[str, str]]] = []

    def end(violations: list[Violation]) -> None:
        seen.append(found(violations))
        world.end(world.gone.path)

    # The hour is up, as far as `departures` knows.
    world.departures.left(world.gone.path, at=0.0)
    grace = world.grace(is_over=True)
    assert audit_until_converged(world.auditor, world.path, timeout_seconds=30, grace=grace, on_sample=end) == []
    assert seen == [{("P2", f"{world.kept}index.json.blob")}, set()]


def test_one_whose_time_is_over_need_not_be_there(world: World) -> None:
    world.end(world.gone.path)
    world.departures.left(world.gone.path, at=time.time() - HOUR)
    assert world.audit() == []


def test_one_that_was_never_seen_published_need_not_be_kept(world: World) -> None:
    world.end(world.gone.path)
    assert Auditor(world.mirror.bucket).audit_datastore(world.path, world.grace()) == []


def test_one_that_came_again_since_it_was_published_need_not_be_kept(world: World) -> None:
    world.end(world.gone.path)
    world.departures.came(world.gone.path)
    world.departures.left(world.gone.path)
    assert world.audit() == []


def test_one_that_went_when_nobody_knows_when_must_be_kept_as_long_as_if_it_went_first_of_all(world: World) -> None:
    departures = Departures(began=time.time() - HOUR / 2)
    departures.left_some_time(world.gone.path)
    world.end(world.gone.path)
    assert found(world.audit(Grace(HOUR, departures))) == {("P2", f"{world.kept}index.json.blob")}
    assert world.audit(Grace(HOUR / 3, departures)) == []


@pytest.mark.parametrize("clock_was_wrong", [False, True])
def test_one_removed_while_the_clock_was_ahead_may_be_kept_for_longer(world: World, clock_was_wrong: bool) -> None:
    ahead = time.time() + HOUR
    world.record(world.gone.path, {"deleted": ahead, "until": ahead + 10, "owner": None, "notes": None})
    grace = Grace(10, world.departures, is_over=True, clock_was_wrong=clock_was_wrong)
    expected = set() if clock_was_wrong else {("P2", f"{world.kept}index.json.blob")}
    assert found(world.audit(grace)) == expected


# -- changes while the auditor reads -----------------------------------------------------------------------


def changes(world: World, snapshot: WrittenSnapshot) -> list[Callable[[], None]]:
    """The way of a snapshot out of the datastore and out of the bucket, in the steps in which the bucket sees it."""
    content = (f".cnt/{snapshot.path}/", f"{DELETED}{snapshot.path}/")
    names = [key.removeprefix(content[0]) for key in world.mirror.all_keys() if key.startswith(content[0])]
    names.sort(key=lambda name: name == formats.MANIFEST_NAME)
    data = {name: world.mirror.data(content[0] + name) for name in names}
    now = time.time()
    record = json.dumps({"deleted": now, "until": now + HOUR, "owner": None, "notes": None}).encode()
    copies = [*names[:-1], "deleted.json", formats.MANIFEST_NAME]
    data["deleted.json"] = record
    own = sorted(snapshot.chunks - world.gone.chunks)
    return [
        *(lambda name=name: world.mirror.put(content[1] + name, data[name]) for name in copies),
        *(lambda name=name: world.mirror.delete(content[0] + name) for name in reversed(names)),
        *(lambda name=name: world.mirror.delete(content[1] + name) for name in reversed(copies)),
        *(lambda digest=digest: world.mirror.delete(chunk_path(digest)) for digest in own),
    ]


@pytest.mark.parametrize("pace", range(1, 12))
def test_a_snapshot_on_its_way_into_its_grace_and_out_of_it_is_no_violation(world: World, pace: int) -> None:
    todo = iter(changes(world, world.left))
    calls = 0

    def before(operation: str, key: str) -> None:
        nonlocal calls
        calls += 1
        if calls % pace == 0:
            next(todo, lambda: None)()

    world.mirror.client.before_call = before
    while calls < 60 * pace:
        assert world.auditor.audit_bucket() == []
    world.mirror.client.before_call = lambda operation, key: None
    assert world.auditor.deleted_snapshots() == {world.gone.path}
