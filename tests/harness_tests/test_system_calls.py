"""The writer under strace: per file, the same calls in the same order as recorded from a real server. A recording's
statx and newfstatat are both a stat here; what goes before the ENOENT, O_EXCL and so on is part of the shape."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

_CALLS = (
    "open,openat,close,write,read,lseek,rename,unlink,unlinkat,rmdir,mkdir,fchmod,fchown,stat,lstat,newfstatat,fstat,"
    "statx,utimensat,ftruncate,mmap,munmap,flock,fcntl,syncfs,getdents64,fsync"
)
_LINE = re.compile(r"^(?:\[pid +)?\d*\]? *(?P<call>\w+)\((?P<arguments>.*)\) += (?P<result>.*)$")
_PATH = re.compile(r'<(?P<descriptor>/[^>]*)>|"(?P<name>[^"]*)"')

_SCRIPT = """
import sys
from tests.harness.content import ArchivePlan, BackupPlan, BlobPlan, ImagePlan
from tests.harness.writer import DatastoreWriter
plan = BackupPlan(
    (ImagePlan("disk.img", 262144, 65536),),
    (ArchivePlan("root.pxar", 262144, 65536), ArchivePlan("catalog.pcat1", 64)),
    (BlobPlan("fw.conf", 100),),
)
with DatastoreWriter(sys.argv[1], 3, default_plan=plan) as writer:
    first = writer.backup("vm/1")
    writer.backup("vm/1")
    writer.backup("vm/2", data="vm/1", generation=0)
    writer.abort_backup("vm/3")
    writer.forget(first.name)
"""


@dataclass(frozen=True, slots=True)
class Call:
    """One recorded call: name (stat for all its forms), the paths in its arguments, arguments, result."""

    name: str
    paths: tuple[str, ...]
    arguments: str
    result: str

    @property
    def shape(self) -> str:
        """The call with what tells it from others of its name."""
        failed = " ENOENT" if "ENOENT" in self.result else ""
        flags = [flag for flag in ("O_EXCL", "O_TRUNC", "LOCK_EX", "LOCK_SH", "MAP_SHARED") if flag in self.arguments]
        return " ".join([self.name, *flags]) + failed


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    from tests.harness.writer import DatastoreWriter

    directory = tmp_path_factory.mktemp("strace")
    store, log = directory / "store", directory / "log"
    with DatastoreWriter(store) as writer:
        writer.create("when needed")
    root = Path(__file__).resolve().parents[2]
    program = (sys.executable, "-c", _SCRIPT, str(store))
    done = subprocess.run(
        [*("strace", "-f", "-y", "-s", "512", "-o", str(log), "-e", f"trace={_CALLS}"), *program],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(_parse(log.read_text().splitlines(), str(store)))


def _parse(lines: list[str], store: str) -> list[Call]:
    """Put unfinished and resumed lines together, keep what touches the store, name munmap by its mapping's file."""
    calls: list[Call] = []
    unfinished: dict[str, str] = {}
    mapped: dict[str, str] = {}
    for line in lines:
        thread, _, rest = line.partition(" ")
        rest = rest.strip()
        if rest.endswith("<unfinished ...>"):
            unfinished[thread] = rest.removesuffix("<unfinished ...>")
            continue
        if rest.startswith("<..."):
            rest = unfinished.pop(thread) + rest.partition("resumed>")[2]
        match = _LINE.match(f"{thread} {rest}")
        if match is None:
            continue
        name, arguments, result = match["call"], match["arguments"], match["result"]
        if name == "munmap" and arguments.split(",")[0] in mapped:
            arguments += f" <{mapped.pop(arguments.split(',')[0])}>"
        paths = tuple(
            (found["descriptor"] or found["name"]).removesuffix("(deleted)").removeprefix(store + "/")
            for found in _PATH.finditer(arguments)
            if store in (found["descriptor"] or found["name"])
        )
        if not paths:
            continue
        if name == "mmap":
            mapped[result.split()[0]] = f"{store}/{paths[0]}"
        names = {"newfstatat": "stat", "statx": "stat", "fstat": "stat", "lstat": "stat", "openat": "open"}
        calls.append(Call(names.get(name, name), paths, arguments, result))
    return calls


def shapes(calls: list[Call], belongs: re.Pattern[str]) -> list[str]:
    """The calls on one file under all its names. The owner's chown does not happen here, F_GETFD is Python's."""
    return [call.shape for call in calls if any(belongs.search(path) for path in call.paths)]


FIRST, SECOND, OTHER = (
    "vm/1/2026-01-01T00:00:00Z",
    "vm/1/2026-01-01T01:00:00Z",
    "vm/2/2026-01-01T00:00:00Z",
)
# From the recordings of a server (PBS 3.2.4, ext4): a chunk insert, and the life of each kind of file.
NEW_CHUNK = ["stat ENOENT", "open O_EXCL", "fchmod", "write", "rename", "close"]
FOUND_CHUNK = ["stat", "utimensat"]
TEMPORARY_FILE = ["open O_EXCL", "fchmod", "write", "rename", "close"]
READ_BACK = ["open", "read", "read", "close"]
FIXED_INDEX = [
    "open O_TRUNC",
    "write",
    "ftruncate",
    "mmap MAP_SHARED",
    "munmap",
    "lseek",
    "write",
    "rename",
    "unlink ENOENT",
    "close",
]
DYNAMIC_INDEX = ["open O_TRUNC", "write", "lseek", "write", "rename", "unlink ENOENT", "close"]


def during(calls: list[Call], snapshot: str) -> list[Call]:
    """The calls from a snapshot's mkdir to the close of its folder."""
    start = next(at for at, call in enumerate(calls) if call.name == "mkdir" and call.paths == (snapshot,))
    end = next(at for at, call in enumerate(calls) if at > start and call.name == "syncfs")
    return calls[start : end + 1]


def test_chunk_inserts(recorded: list[Call]) -> None:
    digests = {path[13:77] for call in during(recorded, FIRST) for path in call.paths if path.startswith(".chunks/")}
    new = [shapes(during(recorded, FIRST), re.compile(digest)) for digest in sorted(digests) if digest]
    assert len(new) > 3
    # Without the 65,536 directories the writer makes the one that it needs; that is no part of the recording.
    new = [[shape for shape in found if not shape.startswith("mkdir")] for found in new]
    assert all(found == NEW_CHUNK for found in new), new
    again = [shapes(during(recorded, OTHER), re.compile(digest)) for digest in sorted(digests) if digest]
    assert all(found == FOUND_CHUNK for found in again), again


def test_known_chunks_are_not_even_looked_at(recorded: list[Call]) -> None:
    digests = {path[13:77] for call in during(recorded, FIRST) for path in call.paths if path.startswith(".chunks/")}
    later = {path[13:77] for call in during(recorded, SECOND) for path in call.paths if path.startswith(".chunks/")}
    assert len(digests) > 3
    assert not (digests - {""}) & later


def test_indexes_and_blobs(recorded: list[Call]) -> None:
    calls = during(recorded, FIRST)
    assert shapes(calls, re.compile(r"disk\.img\.")) == FIXED_INDEX
    assert shapes(calls, re.compile(r"root\.pxar\.")) == DYNAMIC_INDEX
    assert shapes(calls, re.compile(r"catalog\.pcat1\.")) == DYNAMIC_INDEX
    assert shapes(calls, re.compile(r"fw\.conf\.")) == TEMPORARY_FILE


def test_the_mapped_area_and_the_header_are_where_they_belong(recorded: list[Call]) -> None:
    calls = [call for call in during(recorded, FIRST) if any("disk.img." in path for path in call.paths)]
    arguments = {call.name: call.arguments for call in calls}
    assert arguments["ftruncate"].endswith(str(4096 + 4 * 32))
    assert re.search(r"NULL, 128, PROT_READ\|PROT_WRITE, MAP_SHARED, .*, 0x1000", arguments["mmap"])
    assert arguments["lseek"].endswith("32, SEEK_SET")
    assert [call.result.strip() for call in calls if call.name == "write"] == ["4096", "32"]


def test_manifest_is_renamed_twice_and_then_the_file_system_synced(recorded: list[Call]) -> None:
    calls = during(recorded, FIRST)
    assert shapes(calls, re.compile(r"index\.json\.")) == [*TEMPORARY_FILE, *READ_BACK, *TEMPORARY_FILE]
    assert [call.name for call in calls[-2:]] == ["open", "syncfs"]
    renames = [call.paths[1] for call in calls if call.name == "rename" and not call.paths[1].startswith(".chunks")]
    assert renames == [
        f"{FIRST}/{name}"
        for name in (
            "fw.conf.blob",
            "root.pxar.didx",
            "disk.img.fidx",
            "catalog.pcat1.didx",
            "index.json.blob",
            "index.json.blob",
        )
    ]


def test_owner_is_made_under_its_final_name_and_read_back(recorded: list[Call]) -> None:
    found = shapes(recorded, re.compile(r"vm/2/owner$"))
    assert found == ["open O_EXCL", "write", "write", "close", *READ_BACK]


def test_locks(recorded: list[Call]) -> None:
    locks = [(call.shape, call.paths[0]) for call in recorded if call.name == "flock"]
    assert locks[:5] == [
        ("flock LOCK_EX", "vm/1"),
        ("flock LOCK_EX", FIRST),
        ("flock LOCK_EX", "vm/1"),
        ("flock LOCK_SH", FIRST),
        ("flock LOCK_EX", SECOND),
    ]
    record_locks = [call.arguments for call in recorded if call.name == "fcntl" and call.paths[0] == ".lock"]
    assert "F_SETLK, {l_type=F_RDLCK" in record_locks[0]
    assert "F_SETLKW, {l_type=F_UNLCK" in record_locks[1]


def test_aborted_backup_unlinks_and_removes_while_its_index_is_open_and_mapped(recorded: list[Call]) -> None:
    aborted = "vm/3/2026-01-01T00:00:00Z"
    calls = [call for call in recorded if any(aborted in path for path in call.paths)]
    names = [call.shape for call in calls if any("disk.img" in text for text in (call.arguments,))]
    assert names == [
        "open O_TRUNC",
        "write",
        "ftruncate",
        "mmap MAP_SHARED",
        "unlinkat",
        "unlink ENOENT",
        "munmap",
        "close",
    ]
    removed = next(
        at for at, call in enumerate(calls) if call.name in ("rmdir", "unlinkat") and call.paths[0] == aborted
    )
    assert removed < next(at for at, call in enumerate(calls) if call.name == "munmap")
    locked = next(at for at, call in enumerate(calls) if call.name == "flock")
    closes = [at for at, call in enumerate(calls) if call.name == "close" and call.paths[0] == aborted]
    assert locked < removed < closes[-1]


def test_forget_unlinks_between_two_readings_of_the_directory(recorded: list[Call]) -> None:
    end = next(at for at, call in enumerate(recorded) if call.name == "rmdir" and call.paths == (FIRST,))
    start = max(at for at, call in enumerate(recorded[:end]) if call.name == "flock" and call.paths[0] == FIRST)
    names = [call.name for call in recorded[start : end + 1] if FIRST in call.paths[0]]
    names = [name for name in names if name != "fcntl"]
    assert names[:3] == ["flock", "stat", "stat"]
    assert names[3:6] == ["open", "stat", "getdents64"]
    assert names[6:] == ["unlinkat"] * 5 + ["getdents64", "close", "rmdir"]
