"""What is damaged or foreign in the datastore: passed through, not published, and said in `status`; until repaired."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.end_to_end.mirrors import MirrorUnderTest
from tests.harness.backup import WrittenSnapshot
from tests.harness.content import ArchivePlan, BackupPlan, BlobPlan, ImagePlan
from tests.harness.formats import decode_manifest_document, encode_manifest
from tests.harness.names import chunk_path
from tests.harness.writer import DatastoreWriter

_PLAIN_BLOB = bytes([66, 171, 56, 7, 190, 131, 112, 161])
# Every kind of file; no chunk of zeros, which all backups would share.
PLAN = BackupPlan(
    images=(ImagePlan("disk.img", 2 * 65536, 65536),),
    archives=(ArchivePlan("root.pxar", 65536, 65536),),
    blobs=(BlobPlan("qemu-server.conf", 300),),
    zero_fraction=0.0,
)


def writer_of(mirror: MirrorUnderTest) -> DatastoreWriter:
    return DatastoreWriter(mirror.datastore, seed=8, default_plan=PLAN)


@dataclass(frozen=True, slots=True)
class Damage:
    """A way of spoiling one file of a snapshot; `change` gives its new content, or None to remove it."""

    name: str
    file: str
    change: Callable[[bytes], bytes | None]
    reason: str

    def path(self, snapshot: WrittenSnapshot) -> str:
        """The file, relative to the datastore."""
        if self.file == "chunk":
            return chunk_path(max(snapshot.chunks))
        return f"{snapshot.path}/{self.file}"


def _flip_last(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def _flip_first(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def _lose(_data: bytes) -> None:
    return None


def _no_json(_data: bytes) -> bytes:
    content = b'{"backup-type": "vm", '
    return _PLAIN_BLOB + zlib.crc32(content).to_bytes(4, "little") + content


DAMAGES = (
    Damage("manifest truncated", "index.json.blob", lambda data: data[:-5], "CRC"),
    Damage("manifest cut to its header", "index.json.blob", lambda data: data[:9], "truncated"),
    Damage("manifest with a wrong CRC", "index.json.blob", _flip_last, "CRC"),
    Damage("manifest without JSON", "index.json.blob", _no_json, "not JSON"),
    Damage("blob missing", "qemu-server.conf.blob", _lose, "missing"),
    Damage("blob with a wrong CRC", "qemu-server.conf.blob", _flip_last, "CRC"),
    Damage("index missing", "disk.img.fidx", _lose, "missing"),
    Damage("fixed index with a wrong magic", "disk.img.fidx", _flip_first, "magic"),
    Damage("fixed index with a wrong csum", "disk.img.fidx", _flip_last, "checksum"),
    Damage("fixed index with a wrong length", "disk.img.fidx", lambda data: data[:-32], "damaged"),
    Damage("dynamic index with a wrong magic", "root.pxar.didx", _flip_first, "magic"),
    Damage("dynamic index with a wrong length", "root.pxar.didx", lambda data: data + b"more", "damaged"),
    Damage("index of no bytes", "root.pxar.didx", lambda data: b"", "header"),
    Damage("chunk of no bytes", "chunk", lambda data: b"", "truncated"),
    Damage("chunk with a wrong CRC", "chunk", _flip_last, "CRC"),
    Damage("chunk missing", "chunk", _lose, "missing"),
)


def write_in_place(path: Path, data: bytes) -> None:
    """Change a file as an administrator with an editor might."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(descriptor, data, 0)
        os.ftruncate(descriptor, len(data))
    finally:
        os.close(descriptor)


def write_and_rename(path: Path, data: bytes) -> None:
    """Change a file as PBS does."""
    temporary = path.with_name(f"{path.stem}.tmp_a1B2c3")
    temporary.write_bytes(data)
    temporary.rename(path)


def spoil(path: Path, damage: Damage) -> bytes:
    """Do the damage, and give what was there."""
    data = path.read_bytes()
    changed = damage.change(data)
    if changed is None:
        path.unlink()
    else:
        write_in_place(path, changed)
    return data


def problems_of(status: dict[str, Any]) -> dict[str, str]:
    return {problem["name"]: problem["reason"] for problem in status["problems"]}


def check_named(problems: dict[str, str], damage: Damage, snapshot: WrittenSnapshot) -> None:
    """The reason says which file it is, and what is wrong with it."""
    reason = problems[snapshot.path]
    assert damage.path(snapshot).rsplit("/", 1)[1] in reason, (damage.name, reason)
    assert damage.reason in reason, (damage.name, reason)


def test_damage_is_named_and_published_when_it_is_repaired_through_the_mount(mirror: MirrorUnderTest) -> None:
    kept: list[tuple[Damage, WrittenSnapshot, bytes]] = []
    with writer_of(mirror) as writer:
        healthy = writer.backup("ct/1")
        for number, damage in enumerate(DAMAGES * 2):
            snapshot = writer.backup(f"vm/{number}")
            kept.append((damage, snapshot, spoil(mirror.datastore / damage.path(snapshot), damage)))
    mirror.mount()
    waited = mirror.run("wait", str(mirror.datastore), "--timeout", "60")
    assert waited.returncode == 1
    assert "some of it cannot be published" in waited.stderr
    assert f"more, see 'mirrorfs status {mirror.datastore}'" in waited.stderr
    problems = problems_of(mirror.status())
    for damage, snapshot, _ in kept:
        check_named(problems, damage, snapshot)
    shown = mirror.run("status", str(mirror.datastore))
    assert shown.returncode == 1
    assert all(f"{name}: {reason}" in shown.stdout for name, reason in problems.items())
    assert mirror.published() == [healthy.path]
    assert mirror.auditor().audit_bucket() == []

    for number, (damage, snapshot, data) in enumerate(kept):
        write = write_in_place if number < len(DAMAGES) else write_and_rename
        write(mirror.datastore / damage.path(snapshot), data)
    mirror.wait()
    assert problems_of(mirror.status()) == {}
    assert mirror.published() == sorted([healthy.path, *(snapshot.path for _, snapshot, _ in kept)])
    assert mirror.audit() == []


def test_one_problem_is_named_by_wait(mirror: MirrorUnderTest) -> None:
    mirror.mount()
    with writer_of(mirror) as writer:
        healthy = writer.backup("ct/1")
    mirror.wait()
    # As a copy that broke off leaves it, made through the mount.
    source = mirror.datastore / healthy.path
    target = mirror.datastore / "ct" / "1" / "2020-01-01T00:00:00Z"
    target.mkdir()
    for name in ("root.pxar.didx", "disk.img.fidx", "index.json.blob"):
        shutil.copy(source / name, target)
    done = mirror.run("wait", str(mirror.datastore), "--timeout", "60")
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert lines[0] == "Error: some of it cannot be published:"
    assert len(lines) == 2
    assert lines[1] == "  ct/1/2020-01-01T00:00:00Z: its manifest lists qemu-server.conf.blob, which is missing"
    assert mirror.published() == [healthy.path]
    shutil.copy(source / "qemu-server.conf.blob", target)
    mirror.wait()
    assert len(mirror.published()) == 2
    assert mirror.audit() == []


def test_damage_repaired_beneath_the_mount_is_found_at_the_next(mirror: MirrorUnderTest) -> None:
    kept: list[tuple[Damage, WrittenSnapshot, bytes]] = []
    mirror.mount()
    with writer_of(mirror) as writer:
        for number, damage in enumerate(DAMAGES[::3]):
            snapshot = writer.backup(f"vm/{number}")
            kept.append((damage, snapshot, (mirror.datastore / damage.path(snapshot)).read_bytes()))
    mirror.umount()
    shutil.rmtree(mirror.state)
    mirror.name += "-again"
    for damage, snapshot, _ in kept:
        spoil(mirror.datastore / damage.path(snapshot), damage)
    mirror.mount()
    assert mirror.run("wait", str(mirror.datastore)).returncode == 1
    assert set(problems_of(mirror.status())) >= {snapshot.path for _, snapshot, _ in kept}
    mirror.umount()
    for damage, snapshot, data in kept:
        write_and_rename(mirror.datastore / damage.path(snapshot), data)
    mirror.mount()
    mirror.wait()
    assert problems_of(mirror.status()) == {}
    assert mirror.published() == sorted(snapshot.path for _, snapshot, _ in kept)
    assert mirror.audit() == []


def test_a_damaged_snapshot_that_is_forgotten_is_no_problem_any_more(mirror: MirrorUnderTest) -> None:
    with writer_of(mirror) as writer:
        made = [writer.backup(f"vm/{number}") for number in range(len(DAMAGES))]
        for damage, snapshot in zip(DAMAGES, made, strict=True):
            spoil(mirror.datastore / damage.path(snapshot), damage)
    mirror.mount()
    assert mirror.run("wait", str(mirror.datastore)).returncode == 1
    with writer_of(mirror) as writer:
        for snapshot in made:
            writer.forget(snapshot.name)
        writer.collect_garbage(age_seconds=0, safety_seconds=0)
    mirror.wait()
    assert problems_of(mirror.status()) == {}
    assert mirror.audit() == []


def test_what_is_published_stays_when_it_is_damaged_here(mirror: MirrorUnderTest) -> None:
    mirror.mount()
    made: list[tuple[Damage, WrittenSnapshot]] = []
    with writer_of(mirror) as writer:
        for number, damage in enumerate(DAMAGES):
            made.append((damage, writer.backup(f"vm/{number}")))
        listing = writer.backup("ct/1")
    mirror.wait()
    objects = _objects(mirror)
    kept = [spoil(mirror.datastore / damage.path(snapshot), damage) for damage, snapshot in made]
    # A manifest in good order that lists what is not there: the old one with another checksum.
    manifest = mirror.datastore / listing.path / "index.json.blob"
    good = manifest.read_bytes()
    write_and_rename(manifest, _relisted(listing))
    mirror.run("wait", str(mirror.datastore), "--timeout", "60")
    problems = problems_of(mirror.status())
    for damage, snapshot in made:
        if damage.file == "index.json.blob":
            check_named(problems, damage, snapshot)
    assert "qemu-server.conf.blob" in problems[listing.path]
    assert _objects(mirror) == objects
    assert mirror.auditor().audit_bucket() == []
    # A new mount compares everything, and comes to the same.
    mirror.umount()
    mirror.mount()
    mirror.run("wait", str(mirror.datastore), "--timeout", "60")
    assert _objects(mirror) == objects
    for (damage, snapshot), data in zip(made, kept, strict=True):
        write_in_place(mirror.datastore / damage.path(snapshot), data)
    write_and_rename(manifest, good)
    mirror.wait()
    assert _objects(mirror) == objects
    assert problems_of(mirror.status()) == {}
    assert mirror.audit() == []


def _relisted(snapshot: WrittenSnapshot) -> bytes:
    """The snapshot's manifest with another checksum for its blob."""
    document: dict[str, Any] = decode_manifest_document(snapshot.manifest)
    for file in document["files"]:
        if file["filename"] == "qemu-server.conf.blob":
            file["csum"] = "00" * 32
    return encode_manifest(document)


def _objects(mirror: MirrorUnderTest) -> dict[str, str]:
    """Keys and ETags of chunks and content."""
    client = mirror.store.access.client()
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=mirror.bucket, Prefix=f"{mirror.name}/.c")
    return {found["Key"]: found["ETag"] for page in pages for found in page.get("Contents", [])}


def test_a_damaged_log_does_not_hold_up_its_snapshot(mirror: MirrorUnderTest) -> None:
    with writer_of(mirror) as writer:
        made = writer.backup("vm/1")
        writer.upload_log(made.name)
    path = f"{made.path}/client.log.blob"
    log = mirror.datastore / path
    data = spoil(log, replace(DAMAGES[0], file="client.log.blob", change=_flip_last))
    mirror.mount()
    assert mirror.run("wait", str(mirror.datastore)).returncode == 1
    assert "CRC" in problems_of(mirror.status())[path]
    assert mirror.published() == [made.path]
    write_in_place(log, data)
    mirror.wait()
    assert problems_of(mirror.status()) == {}
    assert mirror.audit() == []


def test_a_chunk_found_bad_stays_in_the_bucket_and_is_sent_anew(mirror: MirrorUnderTest) -> None:
    mirror.mount()
    with writer_of(mirror) as writer:
        made = writer.backup("vm/1", data="same")
        mirror.wait()
        digest = max(made.chunks)
        path = mirror.datastore / chunk_path(digest)
        key = f"{mirror.name}/{chunk_path(digest)}"
        good = path.read_bytes()
        write_in_place(path, _flip_last(good))
        assert writer.verify(made.name).bad == (digest,)
        assert mirror.store.access.keys(mirror.bucket, key) == [key]
        mirror.wait()
        assert path.with_name(f"{digest}.0.bad").exists()
        assert not path.exists()
        assert _content(mirror, key) == good
        # Not even when nothing in the bucket needs it: it may heal what is bad here.
        writer.forget(made.name)
        mirror.wait()
        assert _content(mirror, key) == good
        later = writer.backup("vm/2", data="same", compress=False)
        assert digest in later.inserted
        mirror.wait()
        assert _content(mirror, key) == path.read_bytes()
        writer.collect_garbage(age_seconds=0, safety_seconds=0)
        assert not path.with_name(f"{digest}.0.bad").exists()
        mirror.wait()
    assert mirror.published() == [later.path]
    assert mirror.audit() == []


def _content(mirror: MirrorUnderTest, key: str) -> bytes:
    return mirror.store.access.client().get_object(Bucket=mirror.bucket, Key=key)["Body"].read()


# --- names that PBS does not make

FOREIGN_FILES = (
    b"README",
    b"lost+found/#1234",
    b"vm/1/2026-13-45T99:00:00Z/index.json.blob",
    b"vm/1/2026-13-45T99:00:00Z/owner",
    b"vm/1/yesterday/index.json.blob",
    b"vm/-bad/owner",
    b"vm/a b/notes",
    b"ns/-bad/vm/1/owner",
    b"qemu/100/2026-01-01T00:00:00Z/index.json.blob",
    b"caf\xe9.blob",
    b"vm/1/owner~",
    b"%s/disk.img.fidx.orig",
    b"%s/-x.blob",
    b"%s/deeper/index.json.blob",
)
# A foreign directory counts once, whatever stands in it.
FOREIGN = sorted(
    {
        b"README",
        b"lost+found",
        b"vm/1/2026-13-45T99:00:00Z",
        b"vm/1/yesterday",
        b"vm/-bad",
        b"vm/a b",
        b"ns/-bad",
        b"qemu",
        b"caf\xe9.blob",
        b"vm/1/owner~",
        b"%s/disk.img.fidx.orig",
        b"%s/-x.blob",
        b"%s/deeper",
    }
)
# PBS's own, of no interest to anybody.
INTERNAL_FILES = (b"vm/1/owner.tmp_a1B2c3", b"%s/index.json.tmp", b".gc-status", b"vm/1/.x.lck")


def _make_files(root: Path, files: Iterable[bytes], snapshot: WrittenSnapshot) -> None:
    for file in files:
        path = os.path.join(os.fsencode(root), file.replace(b"%s", snapshot.path.encode()))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "xb") as stream:
            stream.write(file)
        with open(path, "rb") as stream:
            assert stream.read() == file


def _check_foreign(mirror: MirrorUnderTest, expected: Iterable[bytes]) -> None:
    mirror.wait()
    answer = mirror.status()
    names = sorted(map(os.fsencode, answer["foreign"]["examples"]))
    assert names == sorted(expected)
    assert answer["foreign"]["count"] == len(names)
    assert answer["problems"] == []


def test_foreign_names_are_passed_through_and_counted(mirror: MirrorUnderTest) -> None:
    with writer_of(mirror) as writer:
        made = writer.backup("vm/1")
    expected = [name.replace(b"%s", made.path.encode()) for name in FOREIGN]
    # There before the mount.
    _make_files(mirror.datastore, (*FOREIGN_FILES, *INTERNAL_FILES), made)
    mirror.mount()
    _check_foreign(mirror, expected)
    shown = mirror.succeed("status", str(mirror.datastore))
    assert f"foreign     {len(expected)} names" in shown
    assert "'lost+found'" in shown
    # Gone when they are removed, through the mount.
    for name in expected:
        path = os.path.join(os.fsencode(mirror.datastore), name)
        if os.path.isdir(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    _check_foreign(mirror, [])
    assert "foreign" not in mirror.succeed("status", str(mirror.datastore))
    # Made through the mount.
    _make_files(mirror.datastore, FOREIGN_FILES, made)
    _check_foreign(mirror, expected)
    # What was counted as it was made, and what is counted as it is found, is the same.
    mirror.umount()
    mirror.mount()
    _check_foreign(mirror, expected)
    # Renamed, alone and with what it lies in; removed while nobody looks.
    (mirror.datastore / "lost+found").rename(mirror.datastore / "found")
    (mirror.datastore / "vm" / "1").rename(mirror.datastore / "vm" / "2")
    expected = [name.replace(b"lost+found", b"found").replace(b"vm/1/", b"vm/2/") for name in expected]
    mirror.run("wait", str(mirror.datastore))
    names = sorted(map(os.fsencode, mirror.status()["foreign"]["examples"]))
    assert names == sorted(expected)
    (mirror.datastore / "vm" / "2").rename(mirror.datastore / "vm" / "1")
    mirror.umount()
    (mirror.datastore / "README").unlink()
    mirror.mount()
    expected = [name.replace(b"vm/2/", b"vm/1/") for name in expected if name != b"README"]
    _check_foreign(mirror, expected)
    # Never published.
    shutil.rmtree(mirror.datastore / "ns" / "-bad")
    _check_foreign(mirror, [name for name in expected if name != b"ns/-bad"])
    assert mirror.published() == [made.path]
    assert mirror.audit() == []
