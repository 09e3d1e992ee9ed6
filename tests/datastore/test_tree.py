"""Reading a datastore: complete, sorted, and never through a symbolic link or around the grammar."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.names import GroupId, NamespaceId, SnapshotId, chunk_path
from mirrorfs.datastore.tree import ChunkFile, ChunkFiles, Tree, WrongKindError

SNAPSHOT = "vm/100/2026-11-22T10:00:00Z"
DIGEST = bytes(range(32))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "datastore"
    for directory in (f".chunks/{DIGEST.hex()[:4]}", SNAPSHOT, "vm/100/2026-11-23T10:00:00Z", "ct/9", "ns/b"):
        (root / directory).mkdir(parents=True)
    (root / "ns/a/ns/inner/host/web").mkdir(parents=True)
    (root / chunk_path(DIGEST)).write_bytes(b"chunk")
    for filename in ("index.json.blob", "a.fidx", "client.log.blob", ".protected", "a.tmp_fidx", "readme"):
        (root / SNAPSHOT / filename).write_bytes(filename.encode())
    (root / "vm/100/owner").write_text("root@pam\n")
    (root / ".lock").touch()
    return root


@pytest.fixture
def tree(root: Path) -> Iterator[Tree]:
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    before = len(os.listdir("/proc/self/fd"))
    yield Tree(descriptor)
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor was left open"
    os.close(descriptor)


def test_walk(tree: Tree) -> None:
    assert [namespace.display for namespace in tree.namespaces()] == ["", "a", "a/inner", "b"]
    assert [group.path for group in tree.groups(NamespaceId())] == ["ct/9", "vm/100"]
    assert [group.path for group in tree.groups(NamespaceId(("a", "inner")))] == ["ns/a/ns/inner/host/web"]
    assert list(tree.groups(NamespaceId(("missing",)))) == []
    snapshots = list(tree.snapshots(GroupId.parse("vm/100")))
    assert [snapshot.path for snapshot in snapshots] == [SNAPSHOT, "vm/100/2026-11-23T10:00:00Z"]
    assert tree.snapshot_files(snapshots[0]) == (".protected", "a.fidx", "client.log.blob", "index.json.blob")
    assert tree.snapshot_files(snapshots[1]) == ()


def test_reading(tree: Tree, root: Path) -> None:
    assert tree.read("vm/100/owner") == b"root@pam\n"
    assert tree.read_chunk(DIGEST) == b"chunk"
    assert tree.chunk_size(DIGEST) == 5
    assert tree.chunk_size(bytes(32)) is None
    assert tree.exists("vm/100/owner")
    assert tree.exists("vm/100")
    assert not tree.exists("vm/101/owner")
    assert not tree.exists("vm/100/owner/x")
    with pytest.raises(FileNotFoundError):
        tree.read("vm/101/owner")
    content = os.urandom(100_000)
    (root / SNAPSHOT / "a.fidx").write_bytes(content)
    assert tree.read(f"{SNAPSHOT}/a.fidx", maximum_size=100_000) == content
    with pytest.raises(DatastoreError, match="larger than 99999 bytes"):
        tree.read(f"{SNAPSHOT}/a.fidx", maximum_size=99_999)


def test_chunk_directory_lists_well_named_files_only(tree: Tree, root: Path) -> None:
    directory = (root / chunk_path(DIGEST)).parent
    name = DIGEST.hex()
    (directory / f"{name}.tmp_abc123").touch()
    (directory / f"{name}.0.bad").touch()
    (directory / ("f" * 64)).touch()
    (directory / f"{name[:-1]}0").symlink_to(name)
    (directory / f"{name[:-1]}1").mkdir()
    assert tree.chunk_directory(0x0001) == [DIGEST]
    assert tree.chunk_directory(0xFFFF) == []
    (directory / f"{name[:-1]}2.9.bad").touch()
    (directory / f"{name[:-1]}3.1.bad").mkdir()
    other = bytes.fromhex(f"{name[:-1]}2")
    assert tree.chunk_files(0x0001) == ChunkFiles({DIGEST: 5}, {DIGEST, other})
    assert tree.chunk_files(0xFFFF) == ChunkFiles()
    assert tree.chunk(DIGEST) == ChunkFile(5, is_quarantined=True)
    assert tree.chunk(other) == ChunkFile(None, is_quarantined=True)
    assert tree.chunk(bytes.fromhex(f"{name[:-1]}0")) == ChunkFile(None, is_quarantined=False)
    assert tree.chunk(bytes(32)) == ChunkFile(None, is_quarantined=False)


def test_a_chunk_is_read_unless_a_copy_of_it_is_in_quarantine(tree: Tree, root: Path) -> None:
    path = root / chunk_path(DIGEST)
    assert tree.read_chunk_unless_quarantined(DIGEST) == path.read_bytes()
    copy = path.with_name(f"{path.name}.9.bad")
    copy.symlink_to(path)
    assert tree.read_chunk_unless_quarantined(DIGEST) == path.read_bytes()
    copy.unlink()
    copy.touch()
    assert tree.read_chunk_unless_quarantined(DIGEST) is None
    path.unlink()
    with pytest.raises(FileNotFoundError):
        tree.read_chunk_unless_quarantined(DIGEST)


@pytest.mark.parametrize("path", ["../secret", "vm/../../secret", "/etc/passwd", "vm//100", ".", "..", "", "a\0b"])
def test_malformed_paths_are_refused(tree: Tree, root: Path, path: str) -> None:
    (root.parent / "secret").write_text("secret")
    with pytest.raises(DatastoreError, match="not a path"):
        tree.read(path)
    with pytest.raises(DatastoreError, match="not a path"):
        tree.exists(path)


def test_symbolic_links_are_never_followed(tree: Tree, root: Path) -> None:
    outside = root.parent / "outside"
    (outside / "host" / "x" / "2026-11-22T10:00:00Z").mkdir(parents=True)
    (outside / "host/x/2026-11-22T10:00:00Z/index.json.blob").write_text("outside")
    (outside / "host/x/owner").write_text("outside")
    (root / "host").symlink_to(outside / "host")
    (root / "ct/link").symlink_to(outside / "host" / "x")
    (root / "ns/linked").symlink_to(outside)
    (root / "vm/100/notes").symlink_to(outside / "host/x/owner")
    (root / SNAPSHOT / "linked.blob").symlink_to(outside / "host/x/owner")
    (root / ".chunks/ffff").symlink_to(outside)

    assert [namespace.display for namespace in tree.namespaces()] == ["", "a", "a/inner", "b"]
    assert [group.path for group in tree.groups(NamespaceId())] == ["ct/9", "vm/100"]
    assert "linked.blob" not in tree.snapshot_files(SnapshotId.parse(SNAPSHOT))
    assert tree.chunk_directory(0xFFFF) == []
    assert tree.chunk_size(b"\xff" * 32) is None
    for path in ("host/x/owner", "ct/link/owner", "vm/100/notes", f"{SNAPSHOT}/linked.blob"):
        assert not tree.exists(path)
        with pytest.raises(WrongKindError, match="leads over something"):
            tree.read(path)
    assert list(tree.foreign()) == [
        b"ct/link",
        b"host",
        b"ns/linked",
        f"{SNAPSHOT}/linked.blob".encode(),
        f"{SNAPSHOT}/readme".encode(),
        b"vm/100/notes",
    ]


def test_foreign_entries_are_listed_once_and_not_entered(tree: Tree, root: Path) -> None:
    (root / "lost+found/deep").mkdir(parents=True)
    (root / "vm/101").write_text("a file where a group should be")
    (root / "vm/100/2026-02-31T10:00:00Z").mkdir()
    (root / "vm/100/2026-02-31T10:00:00Z/index.json.blob").touch()
    (root / SNAPSHOT / "x.blob").mkdir()
    Path(os.fsdecode(os.fsencode(root) + b"/ns/\xff\xfe")).mkdir()
    assert sorted(tree.foreign()) == [
        b"lost+found",
        b"ns/\xff\xfe",
        b"vm/100/2026-02-31T10:00:00Z",
        f"{SNAPSHOT}/readme".encode(),
        f"{SNAPSHOT}/x.blob".encode(),
        b"vm/101",
    ]


def test_special_files_are_not_read_and_do_not_block(tree: Tree, root: Path) -> None:
    os.mkfifo(root / SNAPSHOT / "pipe.blob")
    os.mknod(root / SNAPSHOT / "socket.blob", stat.S_IFSOCK | 0o600)
    (root / SNAPSHOT / "directory.blob").mkdir()
    for name in ("pipe.blob", "socket.blob", "directory.blob"):
        with pytest.raises(WrongKindError):
            tree.read(f"{SNAPSHOT}/{name}")


def test_descending_stops_at_seven_namespaces(tree: Tree, root: Path) -> None:
    (root / "/".join(["ns/x"] * 9)).mkdir(parents=True)
    deepest = max(len(namespace.components) for namespace in tree.namespaces())
    assert deepest == 7
    assert "/".join(["ns/x"] * 7).encode() + b"/ns" in list(tree.foreign())


def test_reading_leaves_the_access_time_alone(tmp_path: Path) -> None:
    # Garbage collection deletes by access time: a chunk that mirrorfs has read must not look used.
    (tmp_path / "host/a").mkdir(parents=True)
    owner = tmp_path / "host/a/owner"
    owner.write_bytes(b"root@pam\n")
    os.utime(owner, (1, 1_000_000_000))
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert Tree(descriptor).read("host/a/owner") == b"root@pam\n"
    finally:
        os.close(descriptor)
    assert owner.stat().st_atime == 1
