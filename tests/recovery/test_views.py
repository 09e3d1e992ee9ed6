"""What was deleted and is still kept, and the bucket as it was: listed, restored, and never mixed with what is now."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from mirrorfs.cli import bucket_reading, restore, restore_progress, snapshots
from mirrorfs.datastore.names import GroupId, SnapshotId
from mirrorfs.objectstore.errors import StoreUnavailable
from mirrorfs.objectstore.retry import AT_ONCE
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.recovery.marker import MARKER_NAME
from mirrorfs.recovery.moment import format_moment
from mirrorfs.recovery.selection import Selection
from mirrorfs.recovery.source import View
from tests.recovery.mirror import Mirror, Objects, Tampering, breaks_off_after, entries_of, upload
from tests.recovery.test_restore import (
    ALL,
    ENCRYPTED,
    FIRST,
    SECOND,
    THIRD,
    WEB,
    assert_snapshots,
    chunk_key,
    chunks_of,
)
from tests.stores.fault_proxy import FaultProxy
from tests.stores.seaweedfs import StoreServer
from tests.stores.server import StoreAccess

DELETED_AT, UNTIL = 1795348800, 1797940800
RECORD = {"deleted": DELETED_AT, "until": UNTIL, "owner": "gone@pbs\n", "notes": "was here"}


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_reading, "_LISTING_PATIENCE", AT_ONCE)
    monkeypatch.setattr(bucket_reading, "_READING_PATIENCE", AT_ONCE)
    monkeypatch.setattr(snapshots, "_PATIENCE", AT_ONCE)


def run(command: click.Command, mirror: Mirror, *arguments: str) -> Result:
    endpoint = ("--endpoint-url", mirror.access.endpoint_url)
    result = CliRunner().invoke(command, [str(mirror.address), *arguments, *endpoint])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def listed(mirror: Mirror, *options: str) -> dict[str, dict[str, object]]:
    result = run(snapshots.command, mirror, "--json", *options)
    assert result.exit_code == 0, result.stderr
    return {entry["path"]: entry for entry in json.loads(result.stdout)["snapshots"]}


def with_deleted(objects: Objects, records: Mapping[str, bytes | None]) -> Objects:
    """The mirror after these snapshots were deleted, each with that content of its deleted.json; None: without any."""
    changed: Objects = {}
    for key, data in objects.items():
        path = key.removeprefix(".cnt/")
        moved = key.startswith(".cnt/") and path.rpartition("/")[0] in records
        changed[f".mirrorfs/deleted/{path}" if moved else key] = data
    for path, record in records.items():
        if record is not None:
            changed[f".mirrorfs/deleted/{path}/deleted.json"] = record
    return changed


class TestDeleted:
    """Deleted snapshots that are still kept."""

    @pytest.fixture
    def mirror(self, store: StoreServer, shared_bucket: str, prefix: str, objects: Objects) -> Mirror:
        """One with two deleted snapshots of a group that lives, all of another, and one that is on its way out."""
        record = json.dumps(RECORD).encode()
        older = json.dumps({**RECORD, "owner": "older@pbs", "notes": None}).encode()
        changed = with_deleted(objects, {FIRST: record, SECOND: record, ENCRYPTED: older, ALL[-1]: record, WEB: record})
        for gone in (
            ".cnt/ns/a/ns/b/ct/200/owner",
            ".cnt/ns/a/.namespace",
            ".cnt/ns/a/ns/b/.namespace",
            f".mirrorfs/deleted/{WEB}/index.json.blob",
        ):
            del changed[gone]
        upload(store.access, shared_bucket, prefix, changed)
        return Mirror(store.access, shared_bucket, prefix)

    def test_are_listed_apart(self, mirror: Mirror) -> None:
        assert list(listed(mirror)) == [THIRD]
        found = listed(mirror, "--deleted")
        assert list(found) == [FIRST, SECOND, ENCRYPTED, ALL[-1]]
        assert {(entry["deleted"], entry["until"]) for entry in found.values()} == {(DELETED_AT, UNTIL)}
        assert found[FIRST]["protected"] is True
        assert found[ENCRYPTED]["namespace"] == "a/b"
        assert found[SECOND]["problem"] is None

    def test_are_listed_as_lines(self, mirror: Mirror) -> None:
        lines = run(snapshots.command, mirror, "--deleted").stdout.splitlines()
        assert re.split(r"  +", lines[0]) == ["Snapshot", "Size", "Deleted", "Kept until", "Notes"]
        assert re.fullmatch(rf"{FIRST} +1\.\d MB +2026-11-22T12:00:00Z +2026-12-22T12:00:00Z", lines[1])
        assert len(lines) == 5

    def test_come_back_byte_for_byte(self, mirror: Mirror, datastore: Path, base: Path, few_directories: None) -> None:
        result = run(restore.command, mirror, str(base), "--deleted")
        assert result.exit_code == 0, result.stderr
        assert "Restored 4 snapshots" in result.stdout
        assert_snapshots(base, [FIRST, SECOND, ENCRYPTED, ALL[-1]])
        expected, found = entries_of(datastore), entries_of(base)
        # The group that lives on has its owner and notes of now; of the other, its last snapshot tells them.
        assert (base / "ns/a/ns/b/ct/200/owner").read_bytes() == b"gone@pbs\n"
        assert (base / "ns/a/ns/b/ct/200/notes").read_bytes() == b"was here"
        for path in ("ns/a/ns/b/ct/200/owner", "ns/a/ns/b/ct/200/notes"):
            del found[path]
        assert {path: entry for path, entry in expected.items() if path in found} == found
        assert {"vm/100/owner", "vm/100/notes", f"{FIRST}/client.log.blob", f"{FIRST}/.protected"} <= found.keys()
        assert not list(base.rglob("deleted.json"))

    def test_are_selected_among(self, mirror: Mirror, objects: Objects, base: Path, few_directories: None) -> None:
        one, two = base / "one", base / "two"
        options = ("--deleted", "--group", "vm/100", "--latest", "1")
        assert run(restore.command, mirror, str(one), *options).exit_code == 0
        assert_snapshots(one, [SECOND])
        assert {path.name for path in one.glob(".chunks/*/*")} == chunks_of(SECOND, objects)
        options = ("--deleted", "--namespace", "a", "--snapshot", FIRST)
        assert run(restore.command, mirror, str(two), *options).exit_code == 0
        assert_snapshots(two, [FIRST, ENCRYPTED, ALL[-1]])

    def test_published_ones_are_not_among_them(self, mirror: Mirror, base: Path) -> None:
        for path, view in ((THIRD, View(deleted=True)), (FIRST, View()), (WEB, View(deleted=True))):
            kind = "deleted snapshot" if view.deleted else "snapshot"
            with pytest.raises(RestoreError, match=f"no {kind} {path}.*mirrorfs snapshots URL{view.options}$"):
                mirror.restore(base / "target", Selection(snapshots=(SnapshotId.parse(path),)), view=view)
        assert not (base / "target").exists()

    def test_hostile_records_cost_no_more_than_what_they_tell(
        self, store: StoreServer, shared_bucket: str, prefix: str, objects: Objects, base: Path, few_directories: None
    ) -> None:
        records: dict[str, bytes | None] = {
            FIRST: b"no JSON",
            SECOND: b'{"deleted": 1, "until": 2, "notes": "' + b"x" * 1024 * 1024 + b'"}',
            THIRD: None,
            WEB: b'{"deleted": [], "until": 1e999}',
            ENCRYPTED: b'{"deleted": 1, "until": 2}',
            ALL[-1]: b"[" * 100_000,
        }
        changed = with_deleted(objects, records)
        del changed[".cnt/host/web/owner"]
        upload(store.access, shared_bucket, prefix, changed)
        mirror = Mirror(store.access, shared_bucket, prefix)

        found = listed(mirror, "--deleted")
        assert list(found) == [*ALL]
        assert [path for path in ALL if found[path]["deleted"] is not None] == [ENCRYPTED]
        for path in set(ALL) - {ENCRYPTED}:
            assert "deleted.json" in str(found[path]["problem"])
            assert found[path]["size"] is not None
        assert " ?  " in run(snapshots.command, mirror, "--deleted").stdout

        tampering = Tampering()
        report = mirror.restore(base, view=View(deleted=True), tampering=tampering)
        assert [problem.path for problem in report.problems] == ["host/web/owner"]
        assert_snapshots(base, ALL)
        assert f"{prefix}/.mirrorfs/deleted/{SECOND}/deleted.json" not in tampering.gets, "it is too large to be read"

    def test_hostile_keys_are_not_even_asked_for(self, mirror: Mirror, base: Path, few_directories: None) -> None:
        hostile = (
            "../escaped/index.json.blob",
            "/escaped/2026-01-01T00:00:00Z/index.json.blob",
            "vm/../../2026-01-01T00:00:00Z/escaped.blob",
            f"{FIRST}/../../escaped.blob",
            f"{FIRST}/escaped",
            "vm/escaped/owner",
            "vm/escaped/deleted.json",
            "escaped/deleted.json",
        )
        tampering = Tampering(extra_keys=tuple(f"{mirror.prefix}/.mirrorfs/deleted/{path}" for path in hostile))
        report = mirror.restore(base / "target", view=View(deleted=True), tampering=tampering)
        assert report.is_complete
        assert not set(tampering.extra_keys) & set(tampering.gets)
        assert not list(base.rglob("*escaped*"))

    def test_there_are_none(self, shared_mirror: Mirror, base: Path) -> None:
        assert run(snapshots.command, shared_mirror, "--deleted").stdout == (
            f"No deleted snapshots at {shared_mirror.address}.\n"
        )
        result = run(restore.command, shared_mirror, str(base / "target"), "--deleted")
        assert result.exit_code == 1
        assert "retention.delete_after" in result.stderr
        assert not (base / "target").exists()

    def test_what_is_on_its_way_out_is_none(
        self, store: StoreServer, shared_bucket: str, prefix: str, objects: Objects, base: Path
    ) -> None:
        changed = with_deleted(objects, {WEB: json.dumps(RECORD).encode()})
        del changed[f".mirrorfs/deleted/{WEB}/index.json.blob"]
        upload(store.access, shared_bucket, prefix, changed)
        with pytest.raises(RestoreError, match="no deleted snapshots"):
            Mirror(store.access, shared_bucket, prefix).restore(base / "target", view=View(deleted=True))


@dataclass(frozen=True, slots=True)
class History:
    """A versioned bucket, and a time at which it held the mirror of the datastore, with WEB kept as deleted beside it.

    Since then the first backup and the encrypted group were removed with their chunks, a chunk was overwritten with
    rubbish, a new backup came, the notes of another were changed, and the deleted copy went.
    """

    mirror: Mirror
    moment: float
    removed_chunks: frozenset[str]
    spoiled_chunk: str

    @property
    def view(self) -> View:
        return View(as_of=self.moment)

    @property
    def options(self) -> tuple[str, str]:
        return "--as-of", format_moment(self.moment)


NEW = "vm/100/2026-01-09T00:00:00Z"


@pytest.fixture(scope="session")
def history(store: StoreServer, objects: Objects) -> History:
    """Only to be read."""
    bucket = store.create_bucket()
    client = store.access.client()
    # Something from before the bucket kept versions.
    early = {key: data for key, data in objects.items() if key.startswith((".cnt/host/", ".cnt/vm/100/owner"))}
    upload(store.access, bucket, "past", early)
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    upload(store.access, bucket, "past", {key: data for key, data in objects.items() if key not in early})
    deleted = with_deleted(objects, {WEB: json.dumps(RECORD).encode()})
    deleted = {key: data for key, data in deleted.items() if key.startswith(".mirrorfs/")}
    upload(store.access, bucket, "past", deleted)
    moment = float(int(time.time()))
    while time.time() < moment + 1.1:
        # The store notes whole seconds, so what is changed now must be so in another one.
        time.sleep(0.05)

    left = {SECOND, THIRD, WEB}
    needed = set.union(*(chunks_of(path, objects) for path in left))
    removed = {key for key in objects if key.startswith(".chunks/") and key.rpartition("/")[2] not in needed}
    removed |= {key for key in objects if key.startswith((f".cnt/{FIRST}/", ".cnt/ns/a/"))} | deleted.keys()
    for key in sorted(removed):
        client.delete_object(Bucket=bucket, Key=f"past/{key}")
    spoiled = chunk_key(min(chunks_of(THIRD, objects) & chunks_of(FIRST, objects)))
    changes = {
        spoiled: b"rubbish",
        ".cnt/vm/100/notes": b"bought by somebody else",
        f".cnt/{NEW}/index.json.blob": objects[f".cnt/{THIRD}/index.json.blob"],
    }
    upload(store.access, bucket, "past", changes)
    upload(store.access, bucket, "past", {".cnt/vm/100/notes": b"and again"})
    removed_chunks = frozenset(key for key in removed if key.startswith(".chunks/"))
    return History(Mirror(store.access, bucket, "past"), moment, removed_chunks, spoiled)


class TestAsOf:
    """A versioned bucket as it was."""

    def test_lists_what_was(self, history: History) -> None:
        assert set(listed(history.mirror)) == {WEB, SECOND, THIRD, NEW}
        assert list(listed(history.mirror, *history.options)) == ALL
        result = run(snapshots.command, history.mirror, *history.options, "--json")
        assert json.loads(result.stdout)["as_of"] == history.moment

    def test_everything_comes_back_byte_for_byte(
        self, history: History, datastore: Path, base: Path, few_directories: None
    ) -> None:
        tampering = Tampering()
        report = history.mirror.restore(base, view=history.view, tampering=tampering)
        assert report.is_complete, report.problems
        assert entries_of(base) == entries_of(datastore)
        versions = [key.partition("?")[0] for key in tampering.gets if "?versionId=" in key]
        chunks = {key.removeprefix("past/") for key in versions if "/.chunks/" in key}
        assert chunks == history.removed_chunks | {history.spoiled_chunk}
        assert len(history.removed_chunks) > 10

    def test_by_the_command(self, history: History, objects: Objects, base: Path, few_directories: None) -> None:
        result = run(restore.command, history.mirror, str(base), *history.options, "--snapshot", FIRST)
        assert result.exit_code == 0, result.stderr
        assert f"as of {format_moment(history.moment)}" in result.stderr
        assert_snapshots(base, [FIRST])
        assert (base / "vm/100/notes").read_bytes() == objects[".cnt/vm/100/notes"]
        result = run(restore.command, history.mirror, str(base / "x"), *history.options, "--snapshot", NEW)
        assert result.exit_code == 1
        assert (
            f"See what it holds with: mirrorfs snapshots URL --as-of {format_moment(history.moment)}" in result.stderr
        )

    def test_what_was_kept_as_deleted_then(self, history: History, base: Path, few_directories: None) -> None:
        assert listed(history.mirror, "--deleted") == {}
        found = listed(history.mirror, "--deleted", *history.options)
        assert {path: entry["until"] for path, entry in found.items()} == {WEB: UNTIL}
        report = history.mirror.restore(base, view=View(history.moment, deleted=True))
        assert [snapshot.path for snapshot in report.restored] == [WEB]
        assert report.is_complete
        assert (base / "host/web/owner").exists()

    def test_before_there_was_anything(self, history: History, base: Path) -> None:
        then = "2001-01-01T00:00:00Z"
        assert run(snapshots.command, history.mirror, "--as-of", then).stdout == (
            f"No snapshots at {history.mirror.address} as of {then}.\n"
        )
        result = run(restore.command, history.mirror, str(base / "target"), "--as-of", then)
        assert result.exit_code == 1
        assert f"There was no datastore at {history.mirror.address} as of {then}" in result.stderr
        assert not (base / "target").exists()

    def test_a_chunk_without_any_version_costs_what_needs_it(
        self, history: History, objects: Objects, base: Path, few_directories: None
    ) -> None:
        lost = min(history.removed_chunks)
        client, mirror = history.mirror.access.client(), history.mirror
        bodies = objects[lost]
        versions = client.list_object_versions(Bucket=mirror.bucket, Prefix=f"past/{lost}")
        for version in versions["Versions"]:
            client.delete_object(Bucket=mirror.bucket, Key=f"past/{lost}", VersionId=version["VersionId"])
        try:
            report = mirror.restore(base / "one", view=history.view)
            needing = [path for path in ALL if lost.rpartition("/")[2] in chunks_of(path, objects)]
            assert [snapshot.path for snapshot in report.incomplete] == needing
            assert all("no version of it" in problem.reason for problem in report.problems)
        finally:
            client.put_object(Bucket=mirror.bucket, Key=f"past/{lost}", Body=bodies)
            client.delete_object(Bucket=mirror.bucket, Key=f"past/{lost}")
        # The only version is of after that time now; a chunk is what its name says, whenever it came.
        assert mirror.restore(base / "two", view=history.view).is_complete

    def test_a_bucket_without_versions_says_what_is_possible(self, shared_mirror: Mirror, base: Path) -> None:
        for command, target in ((snapshots.command, ()), (restore.command, (str(base / "target"),))):
            result = run(command, shared_mirror, *target, "--as-of", "2h")
            assert result.exit_code == 1
            assert result.stdout == ""
            assert re.search(r"Error: bucket .* keeps no versions.*Without --as-of.*--deleted[^\n]*\n\Z", result.stderr)
        assert not (base / "target").exists()

    @pytest.mark.parametrize(
        ("status", "code", "told"),
        [(501, "NotImplemented", "cannot be told without its versions"), (403, "AccessDenied", "ListBucketVersions")],
    )
    def test_a_store_that_tells_no_versions(
        self, history: History, fault_proxy: FaultProxy, base: Path, status: int, code: str, told: str
    ) -> None:
        fault_proxy.answer(status, code)
        access = history.mirror.access
        proxied = StoreAccess(fault_proxy.endpoint_url, access.access_key, access.secret_key)
        mirror = Mirror(proxied, history.mirror.bucket, "past")
        result = run(restore.command, mirror, str(base / "target"), *history.options)
        assert result.exit_code == 1
        assert code in result.stderr
        assert told in result.stderr
        assert not (base / "target").exists()

    @pytest.mark.parametrize("text", ["yesterday", "9999-01-01T00:00:00Z", "2026-02-30 10:00", ""])
    @pytest.mark.parametrize("command", [restore.command, snapshots.command])
    def test_wrong_usage(self, shared_mirror: Mirror, base: Path, command: click.Command, text: str) -> None:
        target = [str(base)] if command is restore.command else []
        result = CliRunner().invoke(command, [str(shared_mirror.address), *target, "--as-of", text])
        assert result.exit_code == 2
        assert "--as-of" in result.stderr
        assert list(base.iterdir()) == []


class TestResuming:
    """A restore goes on only with the view that it began with."""

    def test_views_are_not_mixed(
        self, history: History, datastore: Path, objects: Objects, base: Path, few_directories: None
    ) -> None:
        with pytest.raises(StoreUnavailable):
            history.mirror.restore(base, view=history.view, tampering=Tampering(on_get=breaks_off_after(20)))
        before, there = (base / MARKER_NAME).read_bytes(), len(list(base.glob(".chunks/*/*")))
        assert there > 10
        others = (View(), View(history.moment + 1.0), View(history.moment, deleted=True))
        for other in others:
            with pytest.raises(RestoreError, match=f"interrupted restore: .*--as-of {format_moment(history.moment)}. "):
                history.mirror.restore(base, Selection(groups=(GroupId.parse("host/web"),)), view=other)
            assert (base / MARKER_NAME).read_bytes() == before
        report = history.mirror.restore(base, view=history.view)
        assert report.is_complete
        assert report.chunks_downloaded == sum(key.startswith(".chunks/") for key in objects) - there
        assert entries_of(base) == entries_of(datastore)

    def test_a_present_one_is_not_gone_on_with_as_a_past_one(
        self, history: History, base: Path, few_directories: None
    ) -> None:
        selection = Selection(snapshots=(SnapshotId.parse(SECOND),))
        with pytest.raises(StoreUnavailable):
            history.mirror.restore(base, selection, tampering=Tampering(on_get=breaks_off_after(3)))
        with pytest.raises(RestoreError, match="interrupted restore"):
            history.mirror.restore(base, selection, view=history.view)

    def test_the_marker_of_an_earlier_version_is_of_the_present(
        self, history: History, base: Path, few_directories: None
    ) -> None:
        marker = {"format": 1, "url": str(history.mirror.address), "snapshots": [FIRST]}
        (base / MARKER_NAME).write_text(json.dumps(marker))
        with pytest.raises(RestoreError, match="interrupted restore"):
            history.mirror.restore(base, view=history.view)
        history.mirror.restore(base)
        assert not (base / MARKER_NAME).exists()
        assert (base / "vm/100/notes").read_bytes() == b"and again"

    def test_how_to_go_on_names_the_time(
        self, history: History, base: Path, few_directories: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def press_control_c(self: object, snapshot: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(restore_progress.ProgressLines, "snapshot_started", press_control_c)
            result = run(restore.command, history.mirror, str(base), "--as-of", "0s")
        assert result.exit_code == 1
        told = re.search(r"with --as-of (\S+), to go on\.", result.stderr)
        assert told is not None
        assert (base / MARKER_NAME).exists()
        result = run(restore.command, history.mirror, str(base), "--as-of", told[1])
        assert "Going on with" in result.stderr
        assert not (base / MARKER_NAME).exists()
