"""Bringing chunks back into a datastore that has lost them: each kind of damage, and nothing else changed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result

from mirrorfs.cli import bucket_reading, heal, settings_file
from mirrorfs.database.directory import escaped_name
from mirrorfs.datastore.names import GroupId, SnapshotId
from mirrorfs.datastore.patterns import PathPattern
from mirrorfs.datastore.tree import Tree
from mirrorfs.objectstore.errors import StoreUnavailable
from mirrorfs.objectstore.retry import AT_ONCE
from mirrorfs.objectstore.url import StoreAddress
from mirrorfs.recovery.chunk_insertion import ChunkInsertion, open_datastore_root
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.recovery.heal_report import HealReport
from mirrorfs.recovery.healing import heal_datastore
from mirrorfs.recovery.selection import Selection
from tests.datastore.formats import encrypted_blob, plain_blob
from tests.recovery.mirror import LONG_AGO, Mirror, Objects, Tampering, breaks_off_after, entries_of
from tests.recovery.test_restore import ALL, ENCRYPTED, FIRST, SECOND, THIRD, WEB, chunk_key, chunks_of


def place(root: Path, digest: str) -> Path:
    return root / chunk_key(digest)


def quarantine(path: Path, number: int = 0) -> None:
    path.rename(path.with_name(f"{path.name}.{number}.bad"))


def spoil(path: Path) -> None:
    """Change one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def spoil_and_quarantine(path: Path) -> None:
    spoil(path)
    quarantine(path)


def damaged_beside_quarantine(path: Path) -> None:
    """A verification found it corrupt, a backup brought it back, and it is damaged again: twice."""
    data = path.read_bytes()
    for number in range(2):
        spoil(path)
        quarantine(path, number)
        path.write_bytes(data)
    spoil(path)


def a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "it is missing"),
    "empty": (lambda path: path.write_bytes(b""), "it is empty"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "CRC"),
    "a bit flipped": (spoil, "CRC"),
    "other content": (lambda path: path.write_bytes(plain_blob(b"something else")), "damaged"),
    "zeros": (lambda path: path.write_bytes(bytes(path.stat().st_size)), "magic"),
    "longer than any": (lambda path: os.truncate(path, 32 * 1024 * 1024), "larger than"),
    "a link": (a_link, "no directory or regular file"),
    "its directory": (lambda path: shutil.rmtree(path.parent), "it is missing"),
    "in quarantine": (spoil_and_quarantine, "it is in quarantine"),
    "damaged again": (damaged_beside_quarantine, "CRC"),
}


@pytest.fixture
def chunk(objects: Objects) -> str:
    """The digest of a chunk that two snapshots need, and is not encrypted."""
    return min((chunks_of(SECOND, objects) & chunks_of(THIRD, objects)) - chunks_of(FIRST, objects))


def run_heal(
    mirror: Mirror,
    root: Path,
    *,
    selection: Selection | None = None,
    dry_run: bool = False,
    tampering: Tampering | None = None,
    address: StoreAddress | None = None,
) -> HealReport:
    async def run() -> HealReport:
        return await heal_datastore(
            mirror.store(tampering),
            address or mirror.address,
            root,
            selection=selection or Selection(),
            dry_run=dry_run,
        )

    return trio.run(run)


def without(mirror: Mirror, digest: str) -> None:
    """Take a chunk out of the bucket."""
    mirror.access.client().delete_object(Bucket=mirror.bucket, Key=f"{mirror.prefix}/{chunk_key(digest)}")


def fetched(tampering: Tampering) -> set[str]:
    return {key.rpartition("/")[2] for key in tampering.gets}


def assert_as_it_was(root: Path, datastore: Path) -> None:
    assert entries_of(root) == entries_of(datastore)


def test_nothing_is_changed_nor_fetched_where_all_is_good(
    shared_mirror: Mirror, objects: Objects, living: Path
) -> None:
    before = {path: path.stat() for path in living.rglob("*") if path.is_file()}
    tampering = Tampering()
    report = run_heal(shared_mirror, living, tampering=tampering)
    assert report.is_good
    assert (report.snapshots, report.healed_count) == (len(ALL), 0)
    assert report.chunks == len(set().union(*(chunks_of(snapshot, objects) for snapshot in ALL)))
    assert tampering.gets == []
    for path, status in before.items():
        after = path.stat()
        assert (after.st_ino, after.st_mtime_ns, after.st_atime_ns) == (status.st_ino, LONG_AGO, LONG_AGO), path


@pytest.mark.parametrize("kind", DAMAGES)
def test_each_kind_of_damage(shared_mirror: Mirror, datastore: Path, living: Path, chunk: str, kind: str) -> None:
    damage, reason = DAMAGES[kind]
    damage(place(living, chunk))
    tampering = Tampering()
    report = run_heal(shared_mirror, living, tampering=tampering)
    assert report.is_good
    assert chunk_key(chunk) in [healed.path for healed in report.healed]
    assert reason in next(healed.reason for healed in report.healed if healed.path == chunk_key(chunk))
    assert chunk in fetched(tampering)
    assert len(fetched(tampering)) == report.healed_count
    assert place(living, chunk).stat().st_atime_ns > LONG_AGO
    assert_as_it_was(living, datastore)
    again = Tampering()
    assert run_heal(shared_mirror, living, tampering=again).healed_count == 0
    assert again.gets == []


def test_an_encrypted_chunk(shared_mirror: Mirror, datastore: Path, living: Path, objects: Objects) -> None:
    digest = min(chunks_of(ENCRYPTED, objects))
    spoil_and_quarantine(place(living, digest))
    report = run_heal(shared_mirror, living)
    assert [healed.path for healed in report.healed] == [chunk_key(digest)]
    assert report.quarantine_ended == 1
    assert_as_it_was(living, datastore)


def test_everything_is_lost(shared_mirror: Mirror, datastore: Path, living: Path) -> None:
    shutil.rmtree(living / ".chunks")
    (living / ".chunks").mkdir(mode=0o750)
    for path in (living, living / ".chunks"):
        os.chown(path, 12345, 54321)
    report = run_heal(shared_mirror, living)
    assert report.is_good
    assert report.healed_count == report.chunks
    for path in (living / ".chunks").rglob("*"):
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321)
        assert path.stat().st_mode & 0o7777 == (0o750 if path.is_dir() else 0o644)
    there = {path: entry.content for path, entry in entries_of(living).items()}
    assert there == {path: entry.content for path, entry in entries_of(datastore).items()}


def test_a_disk_that_does_not_give_it(
    shared_mirror: Mirror, datastore: Path, living: Path, chunk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_chunk = Tree.read_chunk

    def fails(tree: Tree, digest: bytes) -> bytes:
        if digest.hex() == chunk:
            raise OSError(errno.EIO, "Input/output error")
        return read_chunk(tree, digest)

    monkeypatch.setattr(Tree, "read_chunk", fails)
    before = place(living, chunk).stat().st_ino
    report = run_heal(shared_mirror, living)
    assert [healed.reason for healed in report.healed] == ["it cannot be read: Input/output error"]
    assert place(living, chunk).stat().st_ino != before
    assert_as_it_was(living, datastore)


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_dry_run_changes_nothing(shared_mirror: Mirror, living: Path, chunk: str, kind: str) -> None:
    DAMAGES[kind][0](place(living, chunk))
    before = entries_of(living)
    report = run_heal(shared_mirror, living, dry_run=True)
    assert report.is_good
    assert chunk_key(chunk) in [healed.path for healed in report.healed]
    assert report.quarantine_ended == 0
    assert entries_of(living) == before


@pytest.mark.parametrize("kind", [kind for kind in DAMAGES if kind != "its directory"])
def test_what_neither_side_has_is_listed_with_what_it_costs(
    own_mirror: Mirror, living: Path, objects: Objects, chunk: str, kind: str
) -> None:
    DAMAGES[kind][0](place(living, chunk))
    before = entries_of(living)
    without(own_mirror, chunk)
    other = min(chunks_of(ENCRYPTED, objects))
    place(living, other).unlink()
    report = run_heal(own_mirror, living)
    assert not report.is_good
    assert [healed.path for healed in report.healed] == [chunk_key(other)]
    (lost,) = report.lost
    needing = [snapshot for snapshot in ALL if chunk in chunks_of(snapshot, objects)]
    assert len(needing) > 1
    assert [snapshot.path for snapshot in lost.snapshots] == needing
    assert [snapshot.path for snapshot in report.lost_snapshots] == needing
    assert (lost.path, report.lost_count) == (chunk_key(chunk), 1)
    assert DAMAGES[kind][1] in lost.reason
    assert lost.obstacle == "the bucket does not have it either"
    assert entries_of(living) == before


def test_what_is_damaged_in_the_bucket_is_not_brought(
    shared_mirror: Mirror, living: Path, objects: Objects, chunk: str
) -> None:
    quarantine(place(living, chunk))
    good = objects[chunk_key(chunk)]
    for spoiled in (b"", good[:-1], plain_blob(b"something else"), encrypted_blob(b"of nobody")):
        report = run_heal(shared_mirror, living, tampering=Tampering(spoiled={chunk: spoiled}))
        assert [lost.path for lost in report.lost] == [chunk_key(chunk)]
        assert "the bucket has no good copy either" in report.lost[0].obstacle
        assert not place(living, chunk).exists()
        assert (place(living, chunk).parent / f"{chunk}.0.bad").read_bytes() == good


def test_a_good_chunk_of_the_other_kind_is_left(shared_mirror: Mirror, living: Path, chunk: str) -> None:
    other = encrypted_blob(b"of nobody")
    place(living, chunk).write_bytes(other)
    report = run_heal(shared_mirror, living)
    (lost,) = report.lost
    assert "encrypted" in lost.reason
    assert "a verify job of PBS puts it in quarantine" in lost.obstacle
    assert place(living, chunk).read_bytes() == other


def test_the_quarantine_of_what_is_good_again_ends(
    own_mirror: Mirror, datastore: Path, living: Path, chunk: str
) -> None:
    shutil.copy2(place(living, chunk), place(living, chunk).with_name(f"{chunk}.0.bad"))
    report = run_heal(own_mirror, living)
    assert (report.healed_count, report.quarantine_ended) == (0, 1)
    assert_as_it_was(living, datastore)


def test_a_directory_in_its_place(shared_mirror: Mirror, living: Path, chunk: str) -> None:
    place(living, chunk).unlink()
    (place(living, chunk) / "somebody").mkdir(parents=True)
    report = run_heal(shared_mirror, living)
    assert [lost.path for lost in report.lost] == [chunk_key(chunk)]
    assert "remove what stands there" in report.lost[0].obstacle
    assert list(place(living, chunk).parent.glob("*.tmp*")) == []


def test_a_link_in_the_place_of_its_directory_leads_nowhere(
    shared_mirror: Mirror, living: Path, base: Path, chunk: str
) -> None:
    (base / "elsewhere").mkdir()
    shutil.rmtree(place(living, chunk).parent)
    place(living, chunk).parent.symlink_to(base / "elsewhere")
    report = run_heal(shared_mirror, living)
    assert chunk_key(chunk) in [lost.path for lost in report.lost]
    assert list((base / "elsewhere").iterdir()) == []


def test_a_selection(shared_mirror: Mirror, living: Path, objects: Objects) -> None:
    of_ct = min(chunks_of(ENCRYPTED, objects))
    of_third = min(chunks_of(THIRD, objects) - chunks_of(FIRST, objects) - chunks_of(SECOND, objects))
    of_first = min(chunks_of(FIRST, objects) - chunks_of(THIRD, objects))
    for digest in (of_ct, of_third, of_first):
        place(living, digest).unlink()
    report = run_heal(shared_mirror, living, selection=Selection(group_patterns=(PathPattern("vm/1*"),), latest=1))
    assert report.snapshots == 1
    assert [healed.path for healed in report.healed] == [chunk_key(of_third)]
    report = run_heal(shared_mirror, living, selection=Selection(snapshots=(SnapshotId.parse(ENCRYPTED),)))
    assert [healed.path for healed in report.healed] == [chunk_key(of_ct)]
    assert not place(living, of_first).exists()
    report = run_heal(shared_mirror, living, selection=Selection(groups=(GroupId.parse("vm/100"),)))
    assert [healed.path for healed in report.healed] == [chunk_key(of_first)]


def test_files_of_a_snapshot_are_told_and_left(shared_mirror: Mirror, living: Path, objects: Objects) -> None:
    """What is intact of the same and of other snapshots is healed nevertheless."""
    index = next(path for path in sorted((living / THIRD).iterdir()) if path.suffix == ".fidx")
    index.write_bytes(index.read_bytes()[:-32] + bytes(32))
    blob = next(path for path in sorted((living / SECOND).iterdir()) if path.name.endswith(".conf.blob"))
    blob.unlink()
    spoil(living / WEB / "index.json.blob")
    before = {path: path.read_bytes() for path in living.rglob("*") if path.is_file() and ".chunks" not in path.parts}
    digest = min(chunks_of(SECOND, objects) & chunks_of(FIRST, objects))
    place(living, digest).unlink()
    report = run_heal(shared_mirror, living)
    assert not report.is_good
    assert report.lost == ()
    assert [healed.path for healed in report.healed] == [chunk_key(digest)]
    found = {file.path: file.reason for file in report.damaged_files}
    assert found.keys() == {str(path.relative_to(living)) for path in (index, blob, living / WEB / "index.json.blob")}
    assert found[str(blob.relative_to(living))] == "it is missing"
    assert {path: path.read_bytes() for path in before} == before


def test_what_is_forgotten_meanwhile_costs_nobody_anything(
    shared_mirror: Mirror, living: Path, objects: Objects
) -> None:
    forgotten = ALL[-1]
    digest = min(chunks_of(forgotten, objects) - chunks_of(ENCRYPTED, objects))
    place(living, digest).unlink()

    def forget(key: str, body: bytes) -> bytes:
        if key.endswith(digest):
            shutil.rmtree(living / forgotten, ignore_errors=True)
            return b""
        return body

    report = run_heal(shared_mirror, living, tampering=Tampering(on_get=forget))
    assert report.is_good
    assert (report.lost, report.lost_snapshots, report.damaged_files) == ((), (), ())


def test_an_unfinished_backup_is_not_looked_at(shared_mirror: Mirror, living: Path) -> None:
    (living / THIRD / "index.json.blob").unlink()
    (living / THIRD / "half.fidx").write_bytes(b"")
    report = run_heal(shared_mirror, living)
    assert report.is_good
    assert report.snapshots == len(ALL) - 1


def test_interrupted_and_given_again(shared_mirror: Mirror, datastore: Path, living: Path) -> None:
    for path in sorted((living / ".chunks").glob("*/*")):
        spoil_and_quarantine(path)
    with pytest.raises(StoreUnavailable):
        run_heal(shared_mirror, living, tampering=Tampering(on_get=breaks_off_after(20)))
    brought = [path for path in (living / ".chunks").glob("*/*") if path.suffix != ".bad"]
    # Of those that were on their way, eight at a time, none need have come.
    assert 20 - 8 <= len(brought) <= 20
    report = run_heal(shared_mirror, living)
    assert report.is_good
    assert report.healed_count == report.chunks - len(brought)
    assert_as_it_was(living, datastore)


def test_a_full_disk(shared_mirror: Mirror, living: Path, chunk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    quarantine(place(living, chunk))
    monkeypatch.setattr(ChunkInsertion, "insert", full)
    with pytest.raises(RestoreError, match=r"No space left on device\. What was put back stays"):
        run_heal(shared_mirror, living)
    assert place(living, chunk).with_name(f"{chunk}.0.bad").exists()


def test_what_cannot_be_healed_at_all(shared_mirror: Mirror, living: Path, base: Path) -> None:
    with pytest.raises(RestoreError, match=r"is no datastore: there is no directory \.chunks in it"):
        run_heal(shared_mirror, base)
    with pytest.raises(RestoreError, match="there is no such directory"):
        run_heal(shared_mirror, base / "absent")
    assert not (base / "absent").exists()
    with pytest.raises(RestoreError, match=r"There is no datastore at s3://.*/nothing"):
        run_heal(shared_mirror, living, address=StoreAddress(shared_mirror.bucket, "nothing"))
    with pytest.raises(RestoreError, match=r"The datastore holds no group like vm/9\*\.$"):
        run_heal(shared_mirror, living, selection=Selection(group_patterns=(PathPattern("vm/9*"),)))
    with (
        open_datastore_root(living),
        pytest.raises(RestoreError, match="Another mirrorfs is bringing chunks back into"),
    ):
        run_heal(shared_mirror, living)
    living.chmod(0o777)
    with pytest.raises(RestoreError, match="Cannot heal"):
        run_heal(shared_mirror, living)


class TestCommand:
    @pytest.fixture(autouse=True)
    def _settings(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bucket_reading, "_LISTING_PATIENCE", AT_ONCE)
        monkeypatch.setattr(settings_file, "SETTINGS_BASE", str(base / "settings"))
        (base / "settings").mkdir()

    def run(self, *arguments: str) -> Result:
        result = CliRunner().invoke(heal.command, list(arguments))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    def options(self, mirror: Mirror) -> tuple[str, ...]:
        return "--from", str(mirror.address), "--endpoint-url", mirror.access.endpoint_url

    def test_it_tells_what_it_did(self, shared_mirror: Mirror, living: Path, chunk: str) -> None:
        spoil_and_quarantine(place(living, chunk))
        dry = self.run(str(living), "--dry-run", *self.options(shared_mirror))
        assert dry.exit_code == 0
        assert f"could be healed: {chunk_key(chunk)}: it is in quarantine" in dry.stderr
        assert "Looking at 6 snapshots" in dry.stderr
        done = self.run(str(living), *self.options(shared_mirror))
        assert done.exit_code == 0
        assert f"healed: {chunk_key(chunk)}" in done.stderr
        assert ". 1 healed, 1 .bad file removed, 0 lost, 0 other files damaged.\n" in done.stdout

    def test_it_tells_what_is_lost(self, own_mirror: Mirror, living: Path, chunk: str) -> None:
        place(living, chunk).unlink()
        without(own_mirror, chunk)
        spoil(living / WEB / "index.json.blob")
        done = self.run(str(living), *self.options(own_mirror))
        assert done.exit_code == 1
        assert f"LOST: {chunk_key(chunk)}: it is missing; the bucket does not have it either; it costs " in done.stderr
        assert f"Damaged, and not healed: {WEB}/index.json.blob: " in done.stderr
        assert "1 lost (they cost " in done.stdout
        told = json.loads(self.run(str(living), "--json", *self.options(own_mirror)).stdout)
        assert (told["good"], told["dry_run"], told["lost_count"]) == (False, False, 1)
        assert told["lost"][0]["path"] == chunk_key(chunk)
        assert SECOND in told["lost_snapshots"]
        assert [file["path"] for file in told["damaged_files"]] == [f"{WEB}/index.json.blob"]

    def test_where_it_is_mirrored_to_stands_in_the_settings_file(
        self, shared_mirror: Mirror, living: Path, base: Path, chunk: str
    ) -> None:
        place(living, chunk).unlink()
        (base / "settings" / f"{escaped_name(str(living))}.toml").write_text(
            f'to = "{shared_mirror.address}"\nendpoint-url = "{shared_mirror.access.endpoint_url}"\n'
            'parallel = 3\n[retention]\ndelete_after = "30d"\n'
        )
        assert self.run(str(living)).exit_code == 0
        assert place(living, chunk).exists()
        wrong = self.run(str(living), "--endpoint-url", "http://127.0.0.1:9")
        assert wrong.exit_code == 1

    def test_it_is_not_known_where_it_is_mirrored_to(self, living: Path) -> None:
        done = self.run(str(living))
        assert done.exit_code == 2
        assert "it is not known where" in done.stderr
        assert "Give --from s3://BUCKET/NAME" in done.stderr

    @pytest.mark.parametrize(
        "arguments", [("--from", "file:///x"), ("--group", "vm/[1"), ("--parallel", "0"), ("--renamed",)]
    )
    def test_wrong_usage(self, shared_mirror: Mirror, living: Path, arguments: tuple[str, ...]) -> None:
        assert self.run(str(living), *self.options(shared_mirror), *arguments).exit_code == 2

    def test_a_store_that_does_not_answer(self, living: Path) -> None:
        done = self.run(str(living), "--from", "s3://nobody/there", "--endpoint-url", "http://127.0.0.1:9")
        assert done.exit_code == 1
        assert len(done.stderr.splitlines()) == 1
