"""Whoever can write to the bucket or the datastore costs mirrorfs little memory, and ends no process.

The resident size of the real processes is measured, with every kind of input at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirrorfs.datastore.blob import encode_blob
from tests.arenas import arenas
from tests.datastore.formats import listed, manifest_blob, plain_blob
from tests.end_to_end.mirrors import PROGRAM
from tests.harness.mirror import Mirror
from tests.harness.names import chunk_path
from tests.harness.soak import MEMORY
from tests.harness.writer import DatastoreWriter
from tests.hostile_documents import GIB, MIB, blobs, index_header
from tests.recovery.mirror import objects_of
from tests.stores.hostile_store import BUCKET, Body, HostileStore, Zeros

NAME = "mirror"
TIME = "2026-11-22T10:00:00Z"
MOST_MEMORY = 300 * MIB
_PATIENCE = 350
pytestmark = pytest.mark.timeout(900)
# Larger than all that a process may have, and right in every respect. MIRRORFS_INDEX_MIB=2047 is the most there can be.
CHUNKS = int(os.environ.get("MIRRORFS_INDEX_MIB", "400")) * MIB // 32
EMPTY = hashlib.sha256(b"").digest()


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended: exit code, output, and the most memory it had, in bytes."""

    code: int
    output: str
    errors: str
    memory: int


@pytest.fixture
def base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mirrorfs-test-") as path:
        yield Path(path)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """In memory where that is possible: a restore makes 65,536 directories."""
    with tempfile.TemporaryDirectory(prefix="mirrorfs-test-", dir=MEMORY if MEMORY.is_dir() else None) as path:
        yield Path(path)


@pytest.fixture
def store() -> Iterator[HostileStore]:
    with HostileStore().running() as store:
        yield store


@dataclass(frozen=True, slots=True)
class LargeIndex:
    """An index of CHUNKS chunks that is as its header and its manifest say: of one digest, again and again."""

    digest: bytes

    @property
    def size(self) -> int:
        """Of the file, in bytes."""
        return 4096 + CHUNKS * 32

    @property
    def header(self) -> bytes:
        """The first 4,096 bytes."""
        return index_header(self.checksum, CHUNKS * 4 * MIB)

    @property
    def checksum(self) -> bytes:
        """Of the entries."""
        found = hashlib.sha256()
        for _ in range(CHUNKS // 32768):
            found.update(self.digest * 32768)
        return found.digest()

    @property
    def body(self) -> Zeros:
        """As an object."""
        return Zeros(self.size, self.header, unit=self.digest)

    def manifest(self, backup_id: str) -> bytes:
        """A manifest that lists it."""
        file = listed("a.img.fidx", CHUNKS * 4 * MIB, self.checksum)
        return manifest_blob([file], backup_type="host", backup_id=backup_id)

    def write(self, directory: Path, backup_id: str) -> None:
        """A snapshot with it."""
        directory.mkdir(parents=True)
        with (directory / "a.img.fidx").open("wb") as file:
            file.writelines(self.body.pieces())
        (directory / "index.json.blob").write_bytes(self.manifest(backup_id))


def many_digests() -> tuple[bytes, bytes]:
    """An index of two million different chunks, none of which is there, and its checksum."""
    entries = random.Random(1).randbytes(2_000_000 * 32)
    checksum = hashlib.sha256(entries).digest()
    return index_header(checksum, 2_000_000 * 4 * MIB) + entries, checksum


def put_large_indexes(store: HostileStore) -> None:
    """Two snapshots that are damaged only in that their chunks are not there."""
    large = LargeIndex(bytes(32))
    many, checksum = many_digests()
    file = listed("a.img.fidx", 2_000_000 * 4 * MIB, checksum)
    put(store, f".cnt/host/large/{TIME}/a.img.fidx", large.body)
    put(store, f".cnt/host/large/{TIME}/index.json.blob", large.manifest("large"))
    put(store, f".cnt/host/many/{TIME}/a.img.fidx", many)
    put(
        store,
        f".cnt/host/many/{TIME}/index.json.blob",
        manifest_blob([file], backup_type="host", backup_id="many"),
    )


def put(store: HostileStore, path: str, body: Body) -> None:
    store.objects[f"{NAME}/{path}"] = body


# The memory of a process is counted from before its exec on, when it still is that of whoever started it: so a small
# process starts it.
_LAUNCHER = """
import os, sys
pid = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
open(sys.argv[1], "w").write(str(usage.ru_maxrss))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def mirrorfs(base: Path, store: HostileStore, *arguments: str) -> Ended:
    """Run a command to its end."""
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(base / "memory")]
    done = subprocess.run(
        [*launcher, *PROGRAM, *arguments, "--endpoint-url", store.endpoint_url],
        env={**os.environ, **store.environment()},
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    return Ended(done.returncode, done.stdout, done.stderr, int((base / "memory").read_text()) * 1024)


def fill(store: HostileStore, base: Path) -> str:
    """One sound snapshot, whose path is returned, and beside it one of each hostile kind."""
    source = base / "source"
    with DatastoreWriter(source, seed=5) as writer:
        writer.create(chunk_directories="when needed")
        good = writer.backup("host/good").path
    for path, body in objects_of(source).items():
        put(store, path, body)
    for number, blob in enumerate(blobs().values()):
        # More than are read at the same time.
        for hour in range(4):
            put(store, f".cnt/vm/{number}/2026-01-01T{hour:02}:00:00Z/index.json.blob", blob)
        put(store, f".cnt/vm/{number}/owner", Zeros(3 * GIB // 2))
    for number, manifest in enumerate((Zeros(GIB), Zeros(GIB, is_announced=False), Zeros(GIB, blobs()["a bomb"]))):
        put(store, f".cnt/ct/{number}/{TIME}/index.json.blob", manifest)
    fill_with_indexes(store)
    return good


def fill_with_indexes(store: HostileStore) -> None:
    """Snapshots whose manifests are sound, and whose indexes and chunks are not."""
    digest = hashlib.sha256(b"a chunk").digest()
    entries_checksum = hashlib.sha256(digest).digest()
    one_chunk = index_header(entries_checksum, 4 * MIB) + digest
    huge, huge_size = index_header(EMPTY, 2**48), 2 * GIB - 4096
    indexes: dict[str, tuple[Body, int, bytes]] = {
        "chunk": (one_chunk, 4 * MIB, entries_checksum),
        "zeros": (Zeros(2 * GIB), 2**48, EMPTY),
        "header": (Zeros(huge_size, huge), 2**48, EMPTY),
        "small": (Zeros(2 * GIB, one_chunk), 4 * MIB, entries_checksum),
        "unannounced": (Zeros(2 * GIB, one_chunk, is_announced=False), 4 * MIB, entries_checksum),
    }
    put(store, chunk_path(digest.hex()), Zeros(GIB))
    for name, (index, size, checksum) in indexes.items():
        directory = f".cnt/host/{name}"
        put(store, f"{directory}/owner", b"root@pam\n")
        put(store, f"{directory}/{TIME}/a.img.fidx", index)
        put(store, f"{directory}/{TIME}/client.log.blob", Zeros(GIB))
        manifest = manifest_blob([listed("a.img.fidx", size, checksum)], backup_type="host", backup_id=name)
        put(store, f"{directory}/{TIME}/index.json.blob", manifest)


def test_listing_what_a_bucket_holds(base: Path, store: HostileStore) -> None:
    good = fill(store, base)
    put_large_indexes(store)
    ended = mirrorfs(base, store, "snapshots", f"s3://{BUCKET}/{NAME}", "--json")
    assert ended.code == 0, ended.errors
    found = {snapshot["path"]: snapshot for snapshot in json.loads(ended.output)["snapshots"]}
    assert found[good]["problem"] is None
    sound = {
        good,
        *(f"host/{name}/{TIME}" for name in ("chunk", "zeros", "header", "small", "unannounced", "large", "many")),
    }
    assert {path for path, snapshot in found.items() if snapshot["problem"] is None} == sound
    assert all(len(snapshot["problem"]) < 400 for path, snapshot in found.items() if path not in sound)
    assert ended.memory < MOST_MEMORY
    table = mirrorfs(base, store, "snapshots", f"s3://{BUCKET}/{NAME}")
    assert (table.code, max(map(len, table.output.splitlines())) < 300) == (0, True)


def test_restoring_a_bucket(base: Path, scratch: Path, store: HostileStore) -> None:
    good = fill(store, base)
    put_large_indexes(store)
    target = scratch / "target"
    ended = mirrorfs(base, store, "restore", f"s3://{BUCKET}/{NAME}", str(target), "--owner", "0:0")
    assert ended.code == 1
    assert "Traceback" not in ended.errors
    assert max(map(len, ended.errors.splitlines())) < 600
    assert [str(path.parent.relative_to(target)) for path in target.rglob("index.json.blob")] == [good]
    assert ended.memory < MOST_MEMORY


def test_verifying_a_bucket(base: Path, store: HostileStore) -> None:
    good = fill(store, base)
    put_large_indexes(store)
    ended = mirrorfs(base, store, "verify", f"s3://{BUCKET}/{NAME}", "--deep")
    assert ended.code == 1
    assert "Traceback" not in ended.errors
    assert f"{good}:" not in ended.output + ended.errors
    assert ended.memory < MOST_MEMORY


def test_listing_the_deleted_ones(base: Path, store: HostileStore) -> None:
    manifest = manifest_blob([listed("a.blob", 12, EMPTY)])
    records: list[Body] = [Zeros(GIB), *blobs().values(), Zeros(GIB, is_announced=False)]
    for number, record in enumerate(records):
        directory = f".mirrorfs/deleted/vm/{number}/{TIME}"
        put(store, f"{directory}/index.json.blob", manifest)
        put(store, f"{directory}/deleted.json", record)
        put(store, f".cnt/vm/{number}/owner", Zeros(GIB))
    ended = mirrorfs(base, store, "snapshots", f"s3://{BUCKET}/{NAME}", "--deleted", "--json")
    assert ended.code == 0, ended.errors
    assert all(snapshot["problem"] for snapshot in json.loads(ended.output)["snapshots"])
    assert ended.memory < MOST_MEMORY


# --- the uploader


class HostileMirror(Mirror):
    """A mirror of `base`/datastore to the hostile store."""

    def __init__(self, base: Path, store: HostileStore) -> None:
        (base / "datastore").mkdir()
        super().__init__(
            base / "datastore", base / "state", f"s3://{BUCKET}/{NAME}", store.endpoint_url, store.environment()
        )

    def peak(self) -> int:
        """The most memory that the uploader had, in bytes."""
        pid = self.uploader_pid()
        assert pid is not None
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024


@pytest.fixture
def mirror(base: Path, store: HostileStore) -> Iterator[HostileMirror]:
    mirror = HostileMirror(base, store)
    yield mirror
    subprocess.run(["umount", "--lazy", str(mirror.datastore)], capture_output=True, check=False, timeout=20)
    mirror.kill_all()


def sparse(path: Path, size: int, beginning: bytes = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(beginning)
    os.truncate(path, size)


def test_a_hostile_datastore(mirror: HostileMirror, store: HostileStore) -> None:
    datastore = mirror.datastore
    with DatastoreWriter(datastore, seed=5) as writer:
        writer.create(chunk_directories="when needed")
        good = writer.backup("host/good").path
        owned = writer.backup("host/owned").path
    sparse(datastore / "host/owned/owner", 3 * GIB // 2)
    sparse(datastore / "host/owned/notes", 3 * GIB // 2)
    sparse(datastore / owned / "client.log.blob", GIB)
    for number, blob in enumerate(blobs().values()):
        for hour in range(4):
            directory = datastore / f"vm/{number}/2026-01-01T{hour:02}:00:00Z"
            sparse(directory / "index.json.blob", len(blob), blob)
    digest = hashlib.sha256(b"a chunk").digest()
    checksum = hashlib.sha256(digest).digest()
    sparse(datastore / chunk_path(digest.hex()), GIB)
    for name, index_size, beginning, size in (
        ("chunk", 4096 + 32, index_header(checksum, 4 * MIB) + digest, 4 * MIB),
        ("zeros", 2 * GIB, b"", 2**48),
        ("header", 2 * GIB - 4096, index_header(EMPTY, 2**48), 2**48),
    ):
        directory = datastore / f"ct/{name}/{TIME}"
        sparse(directory / "a.img.fidx", index_size, beginning)
        manifest = manifest_blob([listed("a.img.fidx", size, checksum)], backup_type="ct", backup_id=name)
        (directory / "index.json.blob").write_bytes(manifest)
    many, checksum = many_digests()
    directory = datastore / f"ct/many/{TIME}"
    sparse(directory / "a.img.fidx", len(many), many)
    file = listed("a.img.fidx", 2_000_000 * 4 * MIB, checksum)
    manifest = manifest_blob([file], backup_type="ct", backup_id="many")
    (directory / "index.json.blob").write_bytes(manifest)
    mirror.mount()
    before = mirror.uploader_pid()
    mirror.run("wait", str(datastore), timeout=_PATIENCE)
    published = {key for key in store.objects if key.startswith(f"{NAME}/.cnt/") and key.endswith("index.json.blob")}
    assert published == {f"{NAME}/.cnt/{path}/index.json.blob" for path in (good, owned)}
    problems = {problem["name"] for problem in mirror.status()["problems"]}
    assert {"host/owned", f"{owned}/client.log.blob", chunk_path(digest.hex())} <= problems
    assert len(problems) == 3 + 4 * len(blobs()) + 4
    assert mirror.peak() < MOST_MEMORY
    assert mirror.uploader_pid() == before
    assert max(map(len, mirror.log.splitlines())) < 1500


def test_a_new_state_reads_a_hostile_bucket(mirror: HostileMirror, store: HostileStore, base: Path) -> None:
    sound = fill(store, base)
    records: list[Body] = [Zeros(GIB), *blobs().values()]
    for number, record in enumerate(records):
        directory = f".mirrorfs/deleted/vm/{number}/{TIME}"
        put(store, f"{directory}/index.json.blob", record)
        put(store, f"{directory}/deleted.json", record)
    put(store, ".in-use", Zeros(GIB))
    with DatastoreWriter(mirror.datastore, seed=6) as writer:
        writer.create(chunk_directories="when needed")
        good = writer.backup("host/new").path
    mirror.mount("--take-over", "--allow-removals")
    before = mirror.uploader_pid()
    mirror.run("wait", str(mirror.datastore), timeout=_PATIENCE)
    mirror.run("reconcile", str(mirror.datastore), "--deep", timeout=_PATIENCE)
    # Of the mirror's own layout, and nothing that the datastore has: it goes, without having been read. Two are whole:
    # these were backups once, and are held.
    contents = {key.removeprefix(f"{NAME}/.cnt/") for key in store.objects if key.startswith(f"{NAME}/.cnt/")}
    left = {path.removesuffix("/index.json.blob") for path in contents if path.endswith("index.json.blob")}
    assert left - {sound, f"host/chunk/{TIME}"} == {good}
    assert not any(key.startswith(f"{NAME}/.mirrorfs/deleted/") for key in store.objects)
    assert mirror.peak() < MOST_MEMORY
    assert mirror.uploader_pid() == before


FIELDS = ("mirror_id", "hostname", "machine", "datastore", "epoch")
CLAIMS: dict[str, Body] = {
    "too large": Zeros(GIB),
    "too large and unannounced": Zeros(GIB, is_announced=False),
    "deeply nested": b"[" * 60_000,
    "an integer of many digits": b'{"mirror_id":' + b"9" * 60_000 + b"}",
    "other fields": b'{"' + b"x" * 60_000 + b'": 1}',
    "no text": json.dumps({field: {} for field in FIELDS}).encode(),
    "long names": json.dumps(
        dict.fromkeys(("mirror_id", "hostname", "machine", "datastore", "epoch"), "\n" * 4000)
    ).encode(),
    "UTF-16": json.dumps({}).encode("utf-16"),
}


@pytest.mark.parametrize("kind", CLAIMS)
def test_a_hostile_claim(mirror: HostileMirror, store: HostileStore, kind: str) -> None:
    with DatastoreWriter(mirror.datastore, seed=6) as writer:
        writer.create(chunk_directories="when needed")
    put(store, ".mirrorfs/claim.json", CLAIMS[kind])
    done = mirror.run(*mirror.mount_arguments())
    message = done.stdout + done.stderr + mirror.log
    assert "claim" in message or "is the mirror of" in message, message
    assert "Traceback" not in message
    assert max(map(len, message.splitlines())) < 1000
    assert "times in a row" not in message


def test_a_snapshot_with_a_blob_of_anything(mirror: HostileMirror, store: HostileStore) -> None:
    """A listed blob is as long as its manifest says, or it is not read."""
    with DatastoreWriter(mirror.datastore, seed=6) as writer:
        writer.create(chunk_directories="when needed")
    directory = mirror.datastore / f"vm/1/{TIME}"
    sparse(directory / "a.conf.blob", GIB, plain_blob(b""))
    manifest = manifest_blob([listed("a.conf.blob", 12, EMPTY)], backup_id="1")
    (directory / "index.json.blob").write_bytes(manifest)
    mirror.mount()
    mirror.run("wait", str(mirror.datastore), timeout=_PATIENCE)
    assert [problem["name"] for problem in mirror.status()["problems"]] == [f"vm/1/{TIME}"]
    assert mirror.peak() < MOST_MEMORY
    # Each would keep what its threads have let go of.
    uploader = mirror.uploader_pid()
    assert uploader is not None
    assert arenas(uploader) == 0


def test_the_index_of_a_large_disk_is_mirrored_and_restored(
    mirror: HostileMirror, store: HostileStore, base: Path, scratch: Path
) -> None:
    """An index that is larger than all memory that may be used is no reason not to serve its backup."""
    with DatastoreWriter(mirror.datastore, seed=5) as writer:
        writer.create(chunk_directories="when needed")
        zeros = bytes(4 * MIB)
        digest = hashlib.sha256(zeros).digest()
        writer.insert_chunk(digest.hex(), encode_blob(zeros, compress=True))
    path = f"host/large/{TIME}"
    LargeIndex(digest).write(mirror.datastore / path, "large")
    (mirror.datastore / "host/large/owner").write_text("root@pam\n")
    mirror.mount()
    mirror.run("wait", str(mirror.datastore), timeout=_PATIENCE)
    assert f"{NAME}/.cnt/{path}/index.json.blob" in store.objects
    assert mirror.peak() < MOST_MEMORY
    mirror.run("reconcile", str(mirror.datastore), "--deep", timeout=_PATIENCE)
    verified = mirrorfs(base, store, "verify", f"s3://{BUCKET}/{NAME}", "--deep")
    assert verified.code == 0, verified.errors
    assert verified.memory < MOST_MEMORY
    target = scratch / "target"
    restored = mirrorfs(base, store, "restore", f"s3://{BUCKET}/{NAME}", str(target), "--owner", "0:0")
    assert restored.code == 0, restored.errors
    assert restored.memory < MOST_MEMORY
    assert (target / path / "a.img.fidx").stat().st_size == LargeIndex(digest).size
    # A new state reads it from the bucket; so does whoever gives its references back.
    mirror.umount()
    shutil.rmtree(base / "state")
    mirror.mount()
    mirror.run("wait", str(mirror.datastore), timeout=_PATIENCE)
    shutil.rmtree(mirror.datastore / path)
    mirror.run("wait", str(mirror.datastore), timeout=_PATIENCE)
    assert not any(key.startswith(f"{NAME}/.cnt/{path}/") for key in store.objects)
    assert mirror.peak() < MOST_MEMORY
