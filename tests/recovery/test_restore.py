"""Restoring: byte for byte what was mirrored, nothing that is damaged, and no path that a bucket could forge."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mirrorfs.datastore.names import NamespaceId, SnapshotId
from mirrorfs.objectstore.errors import StoreUnavailable
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.recovery.marker import MARKER_NAME
from mirrorfs.recovery.ownership import Owner, default_owner
from mirrorfs.recovery.restore import RestoreReport
from mirrorfs.recovery.selection import Selection
from tests.harness.formats import encode_blob
from tests.recovery.mirror import Mirror, Objects, Tampering, breaks_off_after, entries_of

FIRST, SECOND, THIRD = (f"vm/100/2026-01-01T0{hour}:00:00Z" for hour in range(3))
WEB = "host/web/2026-01-01T02:00:00Z"
ENCRYPTED = "ns/a/ns/b/ct/200/2026-01-01T00:00:00Z"
ALL = [WEB, FIRST, SECOND, THIRD, ENCRYPTED, "ns/a/ns/b/ct/200/2026-01-01T01:00:00Z"]


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def chunks_of(snapshot: str, objects: Objects) -> set[str]:
    """The digests that a snapshot references, in hex, read straight from the indexes."""
    digests = set()
    for key, data in objects.items():
        if key.startswith(f".cnt/{snapshot}/") and key.endswith((".fidx", ".didx")):
            width, skip = (32, 0) if key.endswith(".fidx") else (40, 8)
            digests |= {data[at + skip : at + width].hex() for at in range(4096, len(data), width)}
    return digests


def chunk_key(digest: str) -> str:
    return f".chunks/{digest[:4]}/{digest}"


def some_chunk(objects: Objects, of: str, *, but_not_of: str) -> str:
    """The key of a chunk that the one snapshot references and the other does not."""
    return chunk_key(min(chunks_of(of, objects) - chunks_of(but_not_of, objects)))


def snapshots_with_chunk(key: str, objects: Objects) -> list[str]:
    return [snapshot for snapshot in ALL if key.rpartition("/")[2] in chunks_of(snapshot, objects)]


def delete(mirror: Mirror, key: str) -> None:
    mirror.access.client().delete_object(Bucket=mirror.bucket, Key=f"{mirror.prefix}/{key}")


def assert_snapshots(target: Path, expected: list[str]) -> None:
    """Exactly these snapshots are there, each with manifest, and no directory of any other."""
    assert sorted(str(path.parent.relative_to(target)) for path in target.rglob("index.json.blob")) == sorted(expected)
    assert sorted(str(path.relative_to(target)) for path in target.rglob("2026-*")) == sorted(expected)


def assert_left_out(report: RestoreReport, target: Path, left_out: list[str]) -> None:
    assert [snapshot.path for snapshot in report.incomplete] == [path for path in ALL if path in left_out]
    assert {problem.path for problem in report.problems} == set(left_out)
    assert not report.is_complete
    assert_snapshots(target, [snapshot for snapshot in ALL if snapshot not in left_out])


def test_everything_comes_back_byte_for_byte(
    shared_mirror: Mirror, datastore: Path, objects: Objects, base: Path
) -> None:
    target = base / "new"
    with umask(0o077):
        tampering = Tampering()
        report = shared_mirror.restore(target, tampering=tampering)
    assert report.is_complete
    assert [snapshot.path for snapshot in report.restored] == ALL
    assert entries_of(target) == entries_of(datastore)
    assert (target / ".lock").read_bytes() == b""

    directories = sorted(os.listdir(target / ".chunks"))
    assert directories == [f"{number:04x}" for number in range(65536)]
    owner = default_owner()
    for path in (target / ".chunks", target / ".chunks/0000", target / ".chunks/ffff"):
        status = path.stat()
        assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o750, owner.user, owner.group)
    status = target.stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o755, owner.user, owner.group)

    assert len(tampering.gets) == len(set(tampering.gets)), "an object was downloaded twice"
    assert report.chunks_downloaded == sum(key.startswith(".chunks/") for key in objects)


def test_a_selection_brings_no_more_than_it_needs(
    shared_mirror: Mirror, datastore: Path, objects: Objects, base: Path, few_directories: None
) -> None:
    base.joinpath("lost+found").mkdir()
    selection = Selection(namespaces=(NamespaceId(("a",)),), snapshots=(SnapshotId.parse(FIRST),), latest=1)
    report = shared_mirror.restore(base, selection)
    chosen = [FIRST, ALL[-1]]
    assert report.is_complete
    assert_snapshots(base, chosen)
    needed = set.union(*(chunks_of(snapshot, objects) for snapshot in chosen))
    assert {path.name for path in base.glob(".chunks/*/*")} == needed
    expected, found = entries_of(datastore), entries_of(base)
    del found["lost+found"]
    assert all(found[path] == expected[path] for path in found)
    assert "ns/a/ns/b/ct/200/owner" in found
    assert "host" not in found


def test_owner_is_given_to_everything(shared_mirror: Mirror, base: Path, few_directories: None) -> None:
    shared_mirror.restore(base, Selection(latest=1), owner=Owner(12345, 54321))
    entries = entries_of(base)
    assert len(entries) > 50
    assert {(entry.user, entry.group) for entry in entries.values()} == {(12345, 54321)}
    assert (base.stat().st_uid, base.stat().st_gid) == (12345, 54321)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "other content", "empty"])
def test_a_damaged_chunk_costs_exactly_the_snapshots_that_need_it(
    shared_mirror: Mirror, objects: Objects, base: Path, few_directories: None, damage: str
) -> None:
    key = some_chunk(objects, of=FIRST, but_not_of=THIRD)
    good = objects[key]
    spoiled = {
        "flipped": good[:100] + bytes([good[100] ^ 1]) + good[101:],
        "truncated": good[: len(good) // 2],
        "other content": encode_blob(b"intact, but not what the name says", compress=False),
        "empty": b"",
    }[damage]
    report = shared_mirror.restore(base, tampering=Tampering(spoiled={key: spoiled}))
    affected = snapshots_with_chunk(key, objects)
    assert FIRST in affected
    assert THIRD not in affected
    assert_left_out(report, base, affected)
    assert all(key.rpartition("/")[2] in problem.reason for problem in report.problems)
    assert not (base / key).exists()


def test_an_encrypted_chunk_is_checked_by_its_crc(
    shared_mirror: Mirror, objects: Objects, base: Path, few_directories: None
) -> None:
    key = some_chunk(objects, of=ENCRYPTED, but_not_of=FIRST)
    spoiled = objects[key][:-1] + bytes([objects[key][-1] ^ 1])
    report = shared_mirror.restore(base, tampering=Tampering(spoiled={key: spoiled}))
    assert_left_out(report, base, snapshots_with_chunk(key, objects))


@pytest.mark.parametrize(
    ("filename", "damage"),
    [
        ("index.json.blob", "truncated"),
        ("drive-scsi0.img.fidx", "flipped"),
        ("root.pxar.didx", "of another snapshot"),
        ("qemu-server.conf.blob", "truncated"),
    ],
)
def test_a_damaged_file_costs_its_snapshot(
    shared_mirror: Mirror, objects: Objects, base: Path, few_directories: None, filename: str, damage: str
) -> None:
    good = objects[f".cnt/{SECOND}/{filename}"]
    spoiled = {
        "truncated": good[:-1],
        "flipped": good[:-1] + bytes([good[-1] ^ 1]),
        "of another snapshot": objects[f".cnt/{FIRST}/{filename}"],
    }[damage]
    assert spoiled != good
    report = shared_mirror.restore(base, tampering=Tampering(spoiled={f"/{SECOND}/{filename}": spoiled}))
    assert_left_out(report, base, [SECOND])


def test_what_is_missing_costs_its_snapshots(
    own_mirror: Mirror, objects: Objects, base: Path, few_directories: None
) -> None:
    chunk = some_chunk(objects, of=ENCRYPTED, but_not_of=FIRST)
    for key in (chunk, f".cnt/{FIRST}/drive-scsi0.img.fidx", f".cnt/{WEB}/qemu-server.conf.blob"):
        delete(own_mirror, key)
    report = own_mirror.restore(base)
    assert_left_out(report, base, [WEB, FIRST, *snapshots_with_chunk(chunk, objects)])
    assert all("no such object" in problem.reason for problem in report.problems)


def test_a_manifest_cannot_name_files_elsewhere(shared_mirror: Mirror, base: Path, few_directories: None) -> None:
    manifest = {
        "backup-type": "vm",
        "backup-id": "100",
        "backup-time": 1767225600 + 3600,
        "files": [{"filename": "../../../../escaped.blob", "size": 1, "csum": "00" * 32, "crypt-mode": "none"}],
    }
    spoiled = encode_blob(json.dumps(manifest).encode(), compress=False)
    target = base / "target"
    report = shared_mirror.restore(target, tampering=Tampering(spoiled={f"/{SECOND}/index.json.blob": spoiled}))
    assert_left_out(report, target, [SECOND])
    assert "forbidden name" in report.problems[0].reason
    assert not list(base.rglob("escaped*"))


def test_hostile_keys_are_not_even_asked_for(
    shared_mirror: Mirror, datastore: Path, base: Path, few_directories: None
) -> None:
    hostile = [
        "../escaped/owner",
        "/escaped/owner",
        "vm/../../escaped/owner",
        "vm/escaped/../../owner",
        "ns/../escaped/.namespace",
        "vm/100/../../../escaped/2026-01-01T00:00:00Z/index.json.blob",
        "vm/100/2026-01-01T00:00:00Z/../../escaped.blob",
        ".chunks/0000/" + "0" * 64,
        "escaped",
    ]
    keys = tuple(f"{shared_mirror.prefix}/.cnt/{path}" for path in hostile)
    tampering = Tampering(extra_keys=keys)
    report = shared_mirror.restore(base / "target", tampering=tampering)
    assert report.is_complete
    assert not set(keys) & set(tampering.gets)
    assert entries_of(base / "target") == entries_of(datastore)
    assert not list(base.rglob("*escaped*"))


def test_damage_on_the_way_is_repaired_by_asking_again(
    shared_mirror: Mirror, datastore: Path, base: Path, few_directories: None
) -> None:
    damaged: set[str] = set()

    def damage_once(key: str, body: bytes) -> bytes:
        if key in damaged or key.endswith(("owner", "notes", "index.json.blob")):
            return body
        damaged.add(key)
        return body[:-1] + bytes([body[-1] ^ 1])

    assert shared_mirror.restore(base, tampering=Tampering(on_get=damage_once)).is_complete
    assert len(damaged) > 50
    assert entries_of(base) == entries_of(datastore)


def test_a_damaged_log_does_not_cost_the_backup(shared_mirror: Mirror, base: Path, few_directories: None) -> None:
    tampering = Tampering(spoiled={f"/{FIRST}/client.log.blob": b"no blob"})
    report = shared_mirror.restore(base, tampering=tampering)
    assert [problem.path for problem in report.problems] == [f"{FIRST}/client.log.blob"]
    assert report.incomplete == ()
    assert_snapshots(base, ALL)
    assert not (base / FIRST / "client.log.blob").exists()


def test_a_missing_owner_is_reported(own_mirror: Mirror, base: Path, few_directories: None) -> None:
    delete(own_mirror, ".cnt/host/web/owner")
    report = own_mirror.restore(base)
    assert [problem.path for problem in report.problems] == ["host/web/owner"]
    assert_snapshots(base, ALL)


class TestResuming:
    """What an interrupted restore left is used, once it has been checked."""

    def interrupt(self, mirror: Mirror, target: Path, after: int) -> None:
        with pytest.raises(StoreUnavailable, match="unplugged"):
            mirror.restore(target, tampering=Tampering(on_get=breaks_off_after(after)))
        assert (target / MARKER_NAME).exists()

    def test_resumes(self, shared_mirror: Mirror, datastore: Path, objects: Objects, base: Path) -> None:
        self.interrupt(shared_mirror, base, after=40)
        chunks = sorted(base.glob(".chunks/*/*"))
        # What was on its way when the store was gone is given up.
        assert 40 - 8 <= len(chunks) <= 40
        self.leave_what_a_power_cut_leaves(base, chunks)

        tampering = Tampering()
        report = shared_mirror.restore(base, tampering=tampering)
        assert report.is_complete
        assert report.chunks_kept == len(chunks) - 2
        kept = {f"{shared_mirror.prefix}/{path.relative_to(base)}" for path in chunks[2:]}
        assert not kept & set(tampering.gets), "a good chunk was downloaded again"
        assert entries_of(base) == entries_of(datastore)
        assert not (base / MARKER_NAME).exists()
        with pytest.raises(RestoreError, match="not empty"):
            shared_mirror.restore(base)

    @staticmethod
    def leave_what_a_power_cut_leaves(target: Path, chunks: list[Path]) -> None:
        chunks[0].write_bytes(b"")
        chunks[1].write_bytes(bytes(len(chunks[1].read_bytes())))
        chunks[2].with_name(".mirrorfs-0123456789abcdef.tmp").write_bytes(b"half a chunk")
        (target / FIRST).mkdir(parents=True, exist_ok=True)
        (target / FIRST / ".mirrorfs-0123456789abcdef.tmp").write_bytes(b"half a file")
        (target / FIRST / "index.json.blob").write_bytes(b"half a manifest")
        (target / FIRST / "drive-scsi0.img.fidx").write_bytes(b"half an index")
        (target / FIRST / "no-longer-listed.blob").write_bytes(b"")
        (target / SECOND).mkdir(exist_ok=True)
        (target / SECOND / ".protected").touch()
        (target / "vm/100/owner").write_bytes(b"")
        (target / ".chunks/0123").rmdir() if not any((target / ".chunks/0123").iterdir()) else None
        (target / "vm/100").chmod(0o700)

    def test_goes_on_with_another_selection(
        self, shared_mirror: Mirror, objects: Objects, base: Path, few_directories: None
    ) -> None:
        self.interrupt(shared_mirror, base, after=len([key for key in objects if key.startswith(".chunks/")]) - 3)
        assert list(base.rglob("2026-*"))
        report = shared_mirror.restore(base, Selection(snapshots=(SnapshotId.parse(WEB),)))
        assert report.is_complete
        assert_snapshots(base, [WEB])

    def test_planted_links_lead_nowhere(
        self, shared_mirror: Mirror, objects: Objects, base: Path, few_directories: None
    ) -> None:
        outside, target = base / "outside", base / "target"
        outside.mkdir()
        (outside / "secret").write_text("secret")
        self.interrupt(shared_mirror, target, after=5)
        chunk = max(key for key in objects if key.startswith(".chunks/") and not (target / key).exists())
        (target / chunk).parent.mkdir(exist_ok=True)
        (target / chunk).symlink_to(outside / "secret")
        (target / "vm/100").mkdir(parents=True, exist_ok=True)
        (target / "vm/100/owner").unlink(missing_ok=True)
        (target / "vm/100/owner").symlink_to(outside / "secret")
        assert shared_mirror.restore(target).is_complete
        assert (target / chunk).read_bytes() == objects[chunk]
        assert not (target / "vm/100/owner").is_symlink()
        assert (outside / "secret").read_text() == "secret"
        assert os.listdir(outside) == ["secret"]

    @pytest.mark.parametrize("planted", [".chunks/0003", ".chunks", "vm", "ns/a"])
    def test_a_link_in_the_place_of_a_directory_stops_the_restore(
        self, shared_mirror: Mirror, base: Path, few_directories: None, planted: str
    ) -> None:
        outside, target = base / "outside", base / "target"
        outside.mkdir()
        target.mkdir()
        marker = {"format": 1, "url": str(shared_mirror.address), "snapshots": []}
        (target / MARKER_NAME).write_text(json.dumps(marker))
        (target / planted).parent.mkdir(exist_ok=True)
        (target / planted).symlink_to(outside)
        with pytest.raises(RestoreError, match="symbolic link"):
            shared_mirror.restore(target)
        assert list(outside.iterdir()) == []


class TestUnfitTargets:
    """Refused before anything is written, with a sentence that says why."""

    def test_not_empty(self, shared_mirror: Mirror, base: Path) -> None:
        (base / "precious").touch()
        with pytest.raises(RestoreError, match="is not empty"):
            shared_mirror.restore(base)
        assert os.listdir(base) == ["precious"]

    @pytest.mark.parametrize(
        ("marker", "reason"),
        [
            ('{"format": 1, "url": "s3://other/one", "snapshots": []}', "s3://other/one"),
            ("{", "cannot be understood"),
            ('{"format": 2, "url": "x", "snapshots": []}', "cannot be understood"),
            ('{"format": 1, "url": "x", "snapshots": ["../.."]}', "cannot be understood"),
        ],
    )
    def test_not_an_interrupted_restore_of_this(
        self, shared_mirror: Mirror, base: Path, marker: str, reason: str
    ) -> None:
        (base / MARKER_NAME).write_text(marker)
        with pytest.raises(RestoreError, match=reason):
            shared_mirror.restore(base)
        assert os.listdir(base) == [MARKER_NAME]

    def test_not_a_directory(self, shared_mirror: Mirror, base: Path) -> None:
        (base / "file").touch()
        with pytest.raises(RestoreError, match="Not a directory"):
            shared_mirror.restore(base / "file")
        with pytest.raises(RestoreError, match="No such file"):
            shared_mirror.restore(base / "no/such/parent")

    def test_another_restore_is_running(self, shared_mirror: Mirror, base: Path) -> None:
        descriptor = os.open(base, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with pytest.raises(RestoreError, match="Another process"):
                shared_mirror.restore(base)
        finally:
            os.close(descriptor)

    def test_nothing_to_restore(self, shared_mirror: Mirror, base: Path) -> None:
        nothing = Mirror(shared_mirror.access, shared_mirror.bucket, "nothing")
        with pytest.raises(RestoreError, match="no datastore"):
            nothing.restore(base / "target")
        assert not (base / "target").exists()
