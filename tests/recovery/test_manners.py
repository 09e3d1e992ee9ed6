"""Ways to restore: in which order, without chunks, with what is damaged left out, and told beforehand."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import trio

from mirrorfs.datastore.names import SnapshotId
from mirrorfs.objectstore.errors import StoreReason, StoreUnavailable
from mirrorfs.objectstore.retry import AT_ONCE, FOR_EVER
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.objectstore.url import StoreOptions
from mirrorfs.recovery import progress, restore
from mirrorfs.recovery.attaching import attachment_of
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.recovery.estimate import Estimate, estimate_restore
from mirrorfs.recovery.restore import Manner, restore_datastore
from mirrorfs.recovery.selection import Plan, Selection
from mirrorfs.recovery.source import View
from mirrorfs.recovery.verification import verify_bucket
from tests.recovery.mirror import Mirror, Objects, TamperedClient, Tampering, breaks_off_after, entries_of
from tests.recovery.test_restore import (
    ALL,
    ENCRYPTED,
    FIRST,
    SECOND,
    THIRD,
    WEB,
    chunk_key,
    chunks_of,
    delete,
    snapshots_with_chunk,
    some_chunk,
)


def estimate(
    mirror: Mirror,
    target: Path,
    selection: Selection = Selection(),  # noqa: B008 - immutable
    manner: Manner = Manner(),  # noqa: B008 - immutable
    view: View = View(),  # noqa: B008 - immutable
) -> Estimate:
    async def run() -> Estimate:
        return await estimate_restore(
            mirror.store(), mirror.address, target, selection=selection, manner=manner, view=view
        )

    return trio.run(run)


def test_the_newest_of_each_group_comes_first(
    shared_mirror: Mirror, base: Path, few_directories: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "_SNAPSHOTS_AT_ONCE", 1)
    tampering = Tampering()
    assert shared_mirror.restore(base, tampering=tampering, parallelism=1).is_complete
    manifests = [key for key in tampering.gets if key.endswith("index.json.blob")]
    order = [key.partition("/.cnt/")[2].removesuffix("/index.json.blob") for key in manifests]
    assert set(order[:3]) == {WEB, THIRD, ALL[-1]}
    assert set(order[3:5]) == {SECOND, ENCRYPTED}
    assert order[5:] == [FIRST]


def test_something_whole_is_there_when_it_is_interrupted(
    shared_mirror: Mirror, objects: Objects, base: Path, few_directories: None
) -> None:
    needed = len(chunks_of(WEB, objects) | chunks_of(THIRD, objects) | chunks_of(ALL[-1], objects))
    with pytest.raises(Exception, match="unplugged"):
        shared_mirror.restore(base, parallelism=1, tampering=Tampering(on_get=breaks_off_after(needed - 1)))
    whole = {str(path.parent.relative_to(base)) for path in base.rglob("index.json.blob")}
    # Four are worked on at a time, but what each needs first goes to the newest ones.
    assert whole & {WEB, THIRD, ALL[-1]}
    assert FIRST not in whole


def test_the_references_that_are_told_are_all_there_are(
    shared_mirror: Mirror, base: Path, few_directories: None
) -> None:
    told = {"planned": 0, "referenced": 0}

    class Observer(restore.RestoreObserver):
        def planned(self, plan: Plan, *, is_resumed: bool, references: int) -> None:
            told["planned"] = references

        def referenced(self, snapshot: SnapshotId, count: int) -> None:
            told["referenced"] += count

    shared_mirror.restore(base, observer=Observer())
    assert told["referenced"] > 50
    # A header is as long as 128 entries, and the entries of archives are a quarter longer.
    files = len(list(base.rglob("*idx")))
    assert told["referenced"] <= told["planned"] <= 1.25 * told["referenced"] + 128 * files


def test_everything_but_chunks(shared_mirror: Mirror, datastore: Path, base: Path, few_directories: None) -> None:
    tampering = Tampering()
    report = shared_mirror.restore(base, manner=Manner(metadata_only=True), tampering=tampering)
    assert report.is_complete
    assert not [key for key in tampering.gets if "/.chunks/" in key]
    expected = {path: entry for path, entry in entries_of(datastore).items() if not path.startswith(".chunks/")}
    assert entries_of(base) == expected


@pytest.mark.parametrize("what", ["restore", "estimate", "verify"])
def test_a_key_that_may_not_read_is_told_at_once(shared_mirror: Mirror, base: Path, what: str) -> None:
    def refuse(key: str, body: bytes) -> bytes:
        raise StoreUnavailable(f"read {key}", "access is denied", StoreReason.ACCESS_DENIED)

    async def run() -> None:
        options = StoreOptions(endpoint_url=shared_mirror.access.endpoint_url)
        client = TamperedClient(shared_mirror.bucket, options, Tampering(on_get=refuse))
        patient, hasty = ObjectStore(client, patience=FOR_EVER), ObjectStore(client, patience=AT_ONCE)
        if what == "restore":
            await restore_datastore(patient, shared_mirror.address, base / "target", listing_store=hasty)
        elif what == "estimate":
            await estimate_restore(patient, shared_mirror.address, base / "target", listing_store=hasty)
        else:
            await verify_bucket(patient, shared_mirror.address, listing_store=hasty)

    with pytest.raises(StoreUnavailable, match="access is denied"):
        trio.run(run)
    assert not (base / "target").exists()


class TestKeepDamaged:
    """What is asked for in spite of its damage: all of it that is good, and a report of what is not."""

    def test_a_chunk(self, own_mirror: Mirror, objects: Objects, base: Path, few_directories: None) -> None:
        missing = some_chunk(objects, of=FIRST, but_not_of=THIRD)
        flipped = some_chunk(objects, of=ENCRYPTED, but_not_of=FIRST)
        delete(own_mirror, missing)
        tampering = Tampering(spoiled={flipped: objects[flipped][:-1] + b"?"})
        report = own_mirror.restore(base, manner=Manner(keep_damaged=True), tampering=tampering)
        damaged = {*snapshots_with_chunk(missing, objects), *snapshots_with_chunk(flipped, objects)}
        assert {snapshot.path for snapshot in report.damaged} == damaged
        assert report.incomplete == ()
        assert not report.is_complete
        assert {missing, flipped} <= {problem.path for problem in report.problems}
        assert {path.name for path in base.glob(".chunks/*/*")} == {
            key.rpartition("/")[2] for key in objects if key.startswith(".chunks/") and key not in (missing, flipped)
        }
        assert len(list(base.rglob("index.json.blob"))) == len(ALL)

    def test_a_file(self, own_mirror: Mirror, base: Path, few_directories: None) -> None:
        delete(own_mirror, f".cnt/{FIRST}/drive-scsi0.img.fidx")
        report = own_mirror.restore(base, manner=Manner(keep_damaged=True))
        assert [snapshot.path for snapshot in report.damaged] == [FIRST]
        assert (base / FIRST / "index.json.blob").exists()
        assert not (base / FIRST / "drive-scsi0.img.fidx").exists()

    def test_a_manifest_is_needed(self, own_mirror: Mirror, base: Path, few_directories: None) -> None:
        tampering = Tampering(spoiled={f"{FIRST}/index.json.blob": b"no manifest"})
        report = own_mirror.restore(base, manner=Manner(keep_damaged=True), tampering=tampering)
        assert [snapshot.path for snapshot in report.incomplete] == [FIRST]
        assert not (base / FIRST).exists()

    def test_not_all_of_very_much_damage_is_listed(
        self,
        shared_mirror: Mirror,
        objects: Objects,
        base: Path,
        few_directories: None,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(progress, "_MOST_PROBLEMS_OF_ONE", 5)
        spoiled = {chunk_key(digest): b"?" for digest in chunks_of(FIRST, objects)}
        selection = Selection(snapshots=(SnapshotId.parse(FIRST),))
        tampering = Tampering(spoiled=spoiled)
        report = shared_mirror.restore(base, selection, manner=Manner(keep_damaged=True), tampering=tampering)
        own = next(problem for problem in report.problems if problem.path == FIRST)
        assert f"{len(spoiled)} of its parts are damaged or missing, {len(spoiled) - 5} not listed" in own.reason
        assert len(report.problems) == 6


class TestEstimate:
    """A dry run says what a restore does, and does nothing."""

    def test_of_everything(self, shared_mirror: Mirror, objects: Objects, base: Path, few_directories: None) -> None:
        told = estimate(shared_mirror, base / "target")
        assert [snapshot.path for snapshot in told.snapshots] == ALL
        assert not (base / "target").exists()
        report = shared_mirror.restore(base / "target")
        assert told.chunks == report.chunks_downloaded
        # Owners, notes and logs are not counted, and manifests are not downloads of theirs.
        assert told.chunk_bytes < report.bytes_downloaded < told.bytes + 4096
        assert told.bytes_per_second
        assert told.seconds
        assert not told.problems
        assert not told.already_there
        assert told.chunks_there == 0

    def test_of_a_part(self, shared_mirror: Mirror, objects: Objects, base: Path) -> None:
        told = estimate(shared_mirror, base, Selection(snapshots=(SnapshotId.parse(SECOND),)))
        needed = chunks_of(SECOND, objects)
        assert told.chunks == len(needed)
        assert told.chunk_bytes == sum(len(objects[chunk_key(digest)]) for digest in needed)
        assert list(base.iterdir()) == []

    def test_within_a_rate(self, shared_mirror: Mirror, base: Path) -> None:
        told = estimate(shared_mirror, base, manner=Manner(bytes_per_second=1000.0))
        assert told.bytes_per_second == 1000.0
        assert told.seconds == told.bytes / 1000.0

    def test_without_chunks(self, shared_mirror: Mirror, base: Path) -> None:
        told = estimate(shared_mirror, base, manner=Manner(metadata_only=True))
        assert (told.chunks, told.chunk_bytes, told.seconds) == (0, 0, None)
        assert told.bytes > 20_000

    def test_into_a_datastore(self, shared_mirror: Mirror, datastore: Path, objects: Objects, base: Path) -> None:
        living = base / "living"
        shutil.copytree(datastore, living)
        shutil.rmtree(living / SECOND)
        gone = min(chunks_of(SECOND, objects))
        (living / chunk_key(gone)).unlink()
        told = estimate(shared_mirror, living, manner=Manner(into=True))
        assert [snapshot.path for snapshot in told.snapshots] == [SECOND]
        assert [snapshot.path for snapshot in told.already_there] == [path for path in ALL if path != SECOND]
        assert (told.chunks, told.chunks_there) == (1, len(chunks_of(SECOND, objects)) - 1)
        assert sorted(os.listdir(living)) == sorted(os.listdir(datastore))

    def test_what_is_missing(self, own_mirror: Mirror, objects: Objects, base: Path) -> None:
        key = some_chunk(objects, of=FIRST, but_not_of=THIRD)
        delete(own_mirror, key)
        delete(own_mirror, f".cnt/{WEB}/drive-scsi0.img.fidx")
        told = estimate(own_mirror, base)
        assert WEB in {problem.path for problem in told.problems}
        assert any(key.rpartition("/")[2] in problem.path for problem in told.problems)

    def test_what_a_restore_would_refuse(self, shared_mirror: Mirror, base: Path) -> None:
        (base / "precious").touch()
        with pytest.raises(RestoreError, match="is not empty"):
            estimate(shared_mirror, base)

    def test_of_what_an_interrupted_restore_has_left_to_do(
        self, shared_mirror: Mirror, base: Path, few_directories: None
    ) -> None:
        with pytest.raises(StoreUnavailable):
            shared_mirror.restore(base, tampering=Tampering(on_get=breaks_off_after(10)))
        there = len(list(base.glob(".chunks/*/*")))
        told = estimate(shared_mirror, base)
        assert told.chunks_there == there > 0
        assert told.chunks == shared_mirror.restore(base).chunks_downloaded

    def test_into_what_is_no_datastore(self, shared_mirror: Mirror, base: Path) -> None:
        with pytest.raises(RestoreError, match="There is no datastore to restore into"):
            estimate(shared_mirror, base, manner=Manner(into=True))


@pytest.mark.parametrize(
    ("path", "name", "command", "entry"),
    [
        ("/srv/a", "main", "create main /srv/a --reuse-datastore true", "datastore: main\n    path /srv/a\n"),
        (
            "/srv/a b",
            "site/main",
            "create main '/srv/a b' --reuse-datastore true",
            "datastore: main\n    path /srv/a b\n",
        ),
        ("/srv/a", "x", "create NAME /srv/a --reuse-datastore true", "datastore: NAME\n    path /srv/a\n"),
        ("/srv/a", "n" * 33, "create NAME /srv/a --reuse-datastore true", "datastore: NAME\n    path /srv/a\n"),
    ],
)
def test_how_a_pbs_is_told(path: str, name: str, command: str, entry: str) -> None:
    found = attachment_of(path, name)
    assert found.command == f"proxmox-backup-manager datastore {command}"
    assert found.entry == entry
    assert found.is_named == ("NAME" not in command)
