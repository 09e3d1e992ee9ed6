"""`mirrorfs replay list`, `export` and `import`: what they print, and how they end."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mirrorfs.cli.main import main
from mirrorfs.database.directory import DirectoryLock, StateDirectory
from mirrorfs.journal.journal import JournalWriter, Position
from mirrorfs.replay.names import KINDS
from mirrorfs.state.identity import Identity
from mirrorfs.state.problems import Problem
from mirrorfs.state.snapshots import SnapshotPhase, SnapshotState
from mirrorfs.state.state import State, StateTransaction
from tests.harness.mirror import PROGRAM

DIGEST = bytes(range(32))
CHUNK = f".chunks/0001/{DIGEST.hex()}"
SNAPSHOT = "vm/100/2026-11-22T10:00:00Z"
HOSTILE = b"ns/\x1b]0;owned\x07\n\xff"
NAMES = {
    b"": "structure",
    CHUNK.encode(): "chunk",
    f"{CHUNK}.0.bad".encode(): "quarantined-chunk",
    f"{SNAPSHOT}/drive.img.fidx".encode(): "index",
    f"{SNAPSHOT}/client.log.blob".encode(): "blob",
    f"{SNAPSHOT}/.protected".encode(): "protection",
    SNAPSHOT.encode(): "snapshot",
    f"{SNAPSHOT}/index.json.blob".encode(): "manifest",
    b"vm/100/owner": "owner",
    b"vm/100/notes": "notes",
    b"vm/100": "group",
    b"vm": "type",
    b"ns/a": "namespace",
    b".lock": "internal",
    HOSTILE: "foreign",
}
_DOCS = Path(__file__).parents[2] / "docs" / "replay.md"


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """A state directory whose journal has each kind of name, the first five dealt with."""
    directory = tmp_path / "state-dir"
    directory.mkdir(0o700)
    journal = JournalWriter(str(directory / "journal"))
    for name in NAMES:
        journal.append(name)
    position = Position(journal.generation, 5)
    journal.close()
    state = State(str(directory / "state"))
    state.update(lambda transaction: fill(transaction, position))
    state.close()
    return directory


def fill(transaction: StateTransaction, position: Position) -> None:
    transaction.identity.set(Identity("/mnt/datastore/store1", "backups", "store1"))
    transaction.progress.set_position(position)
    transaction.chunks.confirm(DIGEST, 4096, 0x1234)
    transaction.quarantine.set_since(DIGEST, 1000.0)
    transaction.contents.intend([f"{SNAPSHOT}/drive.img.fidx"])
    transaction.contents.confirm(f"{SNAPSHOT}/index.json.blob", 300, 0xABCD)
    transaction.contents.confirm("ns/a/.namespace", 0, 0)
    transaction.snapshots.set(SNAPSHOT, SnapshotState(SnapshotPhase.PUBLISHED, {}, 2000.0))
    transaction.problems.set(Problem("vm/100", "its owner cannot be read", 3000.0))


def run(*arguments: str | Path, stdin: bytes | None = None) -> Result:
    result = CliRunner().invoke(main, ["replay", *map(str, arguments)], input=stdin, catch_exceptions=False)
    assert "Traceback" not in result.output
    return result


def objects(*arguments: str | Path, code: int = 0) -> list[dict[str, Any]]:
    result = run("list", *arguments, "--json")
    assert result.exit_code == code, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def listed(*arguments: str | Path) -> list[str]:
    return [found["path"] for found in objects(*arguments) if found["type"] in ("record", "name")]


def test_all_records_are_listed_in_order(state_dir: Path) -> None:
    head, *records, summary = objects(state_dir)
    assert [record["sequence"] for record in records] == list(range(1, len(NAMES) + 1))
    assert [record["kind"] for record in records] == list(NAMES.values())
    assert [record["dealt_with"] for record in records] == [number < 5 for number in range(len(NAMES))]
    assert (head["bucket"], head["prefix"], head["datastore"]) == ("backups", "store1", "/mnt/datastore/store1")
    assert head["position"]["sequence"] == 5
    assert head["closed_cleanly"] is True
    assert (summary["records"], summary["dealt_with"], summary["pending"]) == (len(NAMES), 5, len(NAMES) - 5)
    assert summary["kinds"] == dict(sorted((kind, 1) for kind in NAMES.values()))
    assert set(NAMES.values()) == set(KINDS)


def test_a_name_that_is_no_text_is_told_exactly(state_dir: Path) -> None:
    *_, record, _ = objects(state_dir)
    assert record["path_base64"] == "bnMvG10wO293bmVkBwr/"


def test_the_filters(state_dir: Path) -> None:
    everything = listed(state_dir)
    assert listed(state_dir, "--path", "vm/*", "--kind", "manifest", "--kind", "owner") == [
        f"{SNAPSHOT}/index.json.blob",
        "vm/100/owner",
    ]
    assert listed(state_dir, "--path", "vm", "--path", "ns/?") == ["vm", "ns/a"]
    assert listed(state_dir, "--pending") == everything[5:]
    assert listed(state_dir, "--since", "1h") == everything
    summary = objects(state_dir, "--since", "1h", "--kind", "chunk")[-1]
    assert (summary["listed"], summary["records"], summary["kinds"]) == (1, len(NAMES), {"chunk": 1})


def test_a_filter_that_nothing_passes_says_so(state_dir: Path) -> None:
    result = run("list", state_dir, "--until", "1h")
    assert result.exit_code == 1
    assert f"none of the {len(NAMES)} records passes" in result.stderr


@pytest.mark.parametrize("pattern", ["/vm/100", "vm/[0-9", "vm/[", "vm/[]", "[!a]["])
def test_a_malformed_pattern_is_wrong_usage(state_dir: Path, pattern: str) -> None:
    result = run("list", state_dir, "--path", pattern)
    assert result.exit_code == 2
    assert "Invalid value for --path" in result.stderr


def test_what_the_state_knows(state_dir: Path) -> None:
    known = {found["path"]: found["state"] for found in objects(state_dir, "--state") if found["type"] == "record"}
    assert known[CHUNK] == {
        "object": {"confirmed": True, "size": 4096, "crc32c": "00001234"},
        "references": 0,
        "quarantined_since": 1000.0,
        "problem": None,
    }
    assert known[f"{SNAPSHOT}/drive.img.fidx"]["object"] == {"confirmed": False, "size": None, "crc32c": None}
    assert known[f"{SNAPSHOT}/index.json.blob"]["snapshot"] == {"phase": "published", "since": 2000.0}
    assert known["vm/100/owner"] == {
        "object": None,
        "problem": {"reason": "its owner cannot be read", "since": 3000.0},
    }
    assert known["ns/a"]["object"]["confirmed"]
    lines = run("list", state_dir, "--state").stdout
    assert re.search(rf"{CHUNK}  \(object of 4096 bytes, in quarantine\)", lines)


def test_the_table_is_one_line_a_record_whatever_the_names(state_dir: Path) -> None:
    result = run("list", state_dir)
    assert result.exit_code == 0
    title, *rows, kinds, counts = result.stdout.splitlines()
    assert title.split() == ["SEQUENCE", "TIME", "KIND", "DEALT", "WITH", "PATH"]
    assert len(rows) == len(NAMES)
    assert rows[-1].endswith(r"ns/\x1b]0;owned\x07\n\udcff")
    assert kinds.startswith(f"{len(NAMES)} listed: 1 blob, 1 chunk, ")
    assert counts == f"{len(NAMES)} records: 5 dealt with, {len(NAMES) - 5} pending"


def test_only_the_journal(state_dir: Path, tmp_path: Path) -> None:
    (state_dir / "state").rename(tmp_path / "elsewhere")
    journal = state_dir / "journal"
    for place in (state_dir, journal, journal / "data.mdb"):
        head, *records, summary = objects(place, "--state")
        assert head["state"] is None
        assert {record["dealt_with"] for record in records} == {None}
        assert "state" not in records[0]
        assert (summary["records"], summary["pending"]) == (len(NAMES), None)
    assert "how many are dealt with is not known" in run("list", journal).stdout


def test_only_the_state(state_dir: Path, tmp_path: Path) -> None:
    (state_dir / "journal").rename(tmp_path / "elsewhere")
    for place in (state_dir, state_dir / "state"):
        result = run("list", place)
        assert result.exit_code == 1
        assert "holds a state, but no journal" in result.stderr
        head, *names, _ = objects(place, "--state")
        assert head["journal"] is None
        assert {found["type"] for found in names} == {"name"}
        assert [found["path"] for found in names] == [
            "ns/a",
            f"{SNAPSHOT}/drive.img.fidx",
            f"{SNAPSHOT}/index.json.blob",
            CHUNK,
        ]
        assert names[-1]["state"]["object"]["size"] == 4096


def test_nothing_there(tmp_path: Path) -> None:
    for place, why in ((tmp_path / "no", "there is no"), (tmp_path, "neither a journal nor a state")):
        result = run("list", place)
        assert result.exit_code == 1
        assert why in result.stderr


def contents(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in directory.rglob("*") if path.is_file()}


def test_nothing_is_changed_by_looking(state_dir: Path, tmp_path: Path) -> None:
    before = contents(state_dir)
    objects(state_dir, "--state")
    run("export", state_dir, tmp_path / "exported")
    run("list", state_dir)
    assert contents(state_dir) == before


def test_the_owner_of_a_copy_needs_no_more_than_to_read_it(state_dir: Path) -> None:
    """In a process of its own, because it gives up its rights; the files may be read and nothing else."""
    nobody = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory(prefix="mirrorfs-copy-") as base:
        os.chmod(base, 0o755)
        copy = Path(base, "copy")
        shutil.copytree(state_dir, copy)
        for path in [*copy.rglob("*"), copy]:
            path.chmod(0o500 if path.is_dir() else 0o400)
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
        program = (
            f"import os; os.setgid({nobody.pw_gid}); os.setuid({nobody.pw_uid})\n"
            f"from mirrorfs.cli.main import main\nmain(['replay', 'list', {str(copy)!r}, '--state', '--json'])"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(NAMES) + 2


def damage(directory: Path) -> int:
    """Make every page unreadable that a journal of these few records has its records on; returns one of them."""
    file = directory / "data.mdb"
    content = bytearray(file.read_bytes())
    pages = [page for page in range(2, len(content) // 4096) if CHUNK.encode() in content[page * 4096 :][:4096]]
    for page in pages:
        content[page * 4096 : page * 4096 + 16] = b"\xee" * 16
    file.write_bytes(content)
    return pages[-1]


def test_a_damaged_journal_says_where_and_what_it_means(state_dir: Path) -> None:
    damage(state_dir / "journal")
    result = run("list", state_dir)
    assert result.exit_code == 1
    assert re.search(
        r"before the first record: page \d+ says of itself that it is page \d+ \(it begins at byte \d+, the file has "
        rf"{os.path.getsize(state_dir / 'journal' / 'data.mdb')}\)",
        result.stderr,
    )
    assert "What that means: names that changed may be missing" in result.stderr
    summary = objects(state_dir, code=1)[-1]
    assert summary["damage"]["count"] >= 1
    assert set(summary["damage"]["places"][0]) == {"after", "page", "offset", "file_length", "what"}


def test_a_damaged_state_leaves_the_journal_readable(state_dir: Path) -> None:
    (state_dir / "state" / "data.mdb").write_bytes(b"\x55" * 50_000)
    result = run("list", state_dir)
    assert result.exit_code == 1
    assert "not a database of LMDB" in result.stderr
    assert "it is not known what is dealt with" in result.stderr
    assert f"{len(NAMES)} records; how many are dealt with is not known" in result.stdout


def test_a_damaged_journal_is_exported_as_far_as_it_goes_and_imported(state_dir: Path, tmp_path: Path) -> None:
    damage(state_dir / "journal")
    exported = tmp_path / "exported"
    assert run("export", state_dir, exported).exit_code == 1
    assert json.loads(exported.read_text().splitlines()[-1])["complete"] is False
    result = run("import", tmp_path / "new", exported)
    assert result.exit_code == 0, result.stderr
    assert "is not complete here either" in result.stderr


def test_what_was_exported_is_imported_exactly(state_dir: Path, tmp_path: Path) -> None:
    first, second, imported = tmp_path / "first", tmp_path / "second", tmp_path / "imported"
    result = run("export", state_dir, first)
    assert (result.exit_code, result.output) == (0, f"{len(NAMES)} records written to {first}\n")
    assert first.stat().st_mode & 0o777 == 0o600
    result = run("import", imported, first)
    assert result.exit_code == 0, result.output
    assert imported.stat().st_mode & 0o777 == 0o700
    run("export", imported, second)
    assert second.read_bytes() == first.read_bytes()
    assert run("export", imported, "-").stdout_bytes == first.read_bytes()
    assert run("import", tmp_path / "third", "-", stdin=first.read_bytes()).exit_code == 0


def test_what_is_there_is_not_overwritten(state_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    result = run("export", state_dir, file)
    assert (result.exit_code, file.read_text()) == (1, "mine")
    run("export", state_dir, tmp_path / "exported")
    result = run("import", state_dir, tmp_path / "exported")
    assert result.exit_code == 1
    assert "there is a journal in" in result.stderr
    assert len(objects(state_dir)) == len(NAMES) + 2


def test_an_import_refuses_while_a_mount_uses_the_state_directory(state_dir: Path, tmp_path: Path) -> None:
    run("export", state_dir, tmp_path / "exported")
    new = StateDirectory(str(tmp_path / "new"))
    new.create()
    lock = DirectoryLock(new, "mount")
    lock.acquire()
    result = run("import", new.path, tmp_path / "exported")
    lock.release()
    assert result.exit_code == 1
    assert "in use by another mirrorfs" in result.stderr
    assert not os.path.exists(new.journal)


@pytest.mark.parametrize(
    "arguments", [("export", "no", "file"), ("import", "new", "no"), ("export", "{state}", "no/file")]
)
def test_files_that_are_not_there(state_dir: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    places = [str(state_dir) if part == "{state}" else str(tmp_path / part) for part in arguments[1:]]
    result = run(arguments[0], *places)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) <= 2


def plan(state_dir: Path, datastore: Path) -> list[dict[str, Any]]:
    result = run("plan", state_dir, "--datastore", datastore, "--json", "--all")
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_plan_has_a_step_for_each_name(state_dir: Path, tmp_path: Path) -> None:
    datastore = tmp_path / "datastore"
    (datastore / ".chunks").mkdir(parents=True)
    before = contents(state_dir)
    *steps, summary = plan(state_dir, datastore)
    planned = {step["sequence"]: (step["action"], step["name"]) for step in steps}
    kinds = dict(enumerate(NAMES.values(), 1))
    assert {kinds[sequence] for sequence, (action, _) in planned.items() if action == "leave"} == {"foreign"}
    assert planned[1] == ("compare", "")
    # The chunk is gone, nobody references it, and no bad copy of it is there any more.
    assert planned[2] == ("delete", CHUNK)
    assert planned[8] == ("delete", f"{SNAPSHOT}/")
    assert set(planned) == set(range(1, len(NAMES) + 1))
    assert sum(summary["actions"].values()) == len(steps)
    # The journal has seen the snapshot go.
    assert summary["notes"] == []
    assert contents(state_dir) == before


def test_a_plan_without_a_datastore_is_refused(state_dir: Path, tmp_path: Path) -> None:
    result = run("plan", state_dir, "--datastore", tmp_path / "no")
    assert result.exit_code == 1
    assert "Is its disk mounted?" in result.stderr


def _documented_keys(heading: str) -> Iterator[str]:
    text = _DOCS.read_text()
    section = text.split(f"### {heading}\n", 1)[1].split("\n#", 1)[0]
    return iter(re.findall(r"^\| `([a-z_0-9]+)`", section, re.MULTILINE))


def test_each_key_is_documented_and_each_documented_key_is_there(state_dir: Path) -> None:
    head, *records, summary = objects(state_dir, "--state")
    assert set(_documented_keys("The first object: `journal`")) == set(head)
    assert set(_documented_keys("Each record: `record`")) == set().union(*records)
    known = set().union(*(record["state"] for record in records))
    assert set(_documented_keys("What the state knows: `state`")) == known
    assert set(_documented_keys("The last object: `summary`")) == set(summary)
    (state_dir / "datastore" / ".chunks").mkdir(parents=True)
    *steps, last = plan(state_dir, state_dir / "datastore")
    assert set(_documented_keys("Each step: `step`")) == set().union(*steps)
    assert set(last) == {"type", "actions", "notes", "damage"}
    exported = [json.loads(line) for line in run("export", state_dir, "-").stdout.splitlines()]
    keys = set().union(*exported)
    assert set(_documented_keys("The format of an exported journal")) == keys


def test_an_export_follows_no_link_that_somebody_has_put_there(tmp_path: Path) -> None:
    source = tmp_path / "state"
    StateDirectory(str(source)).create()
    writer = JournalWriter(str(source / "journal"))
    writer.append(b"vm/100")
    writer.close()
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    (tmp_path / "out.jsonl.part").symlink_to(precious)
    result = CliRunner().invoke(main, ["replay", "export", str(source), str(tmp_path / "out.jsonl")])
    assert result.exit_code == 0, result.output
    assert precious.read_bytes() == b"precious"
    assert (tmp_path / "out.jsonl").read_bytes().count(b"\n") >= 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_plan_that_is_interrupted_leaves_nothing(state_dir: Path, tmp_path: Path, number: signal.Signals) -> None:
    journal = JournalWriter(str(state_dir / "journal"))
    journal.append_all([b".chunks/%04x/%064x" % (0, chunk) for chunk in range(50_000)])
    journal.close()
    shutil.rmtree(state_dir / "state")
    (tmp_path / "datastore" / ".chunks").mkdir(parents=True)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = subprocess.Popen(
        [*PROGRAM, "replay", "plan", state_dir, "--datastore", tmp_path / "datastore"],
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert told.decode().splitlines() == ["Error: the plan is not complete: Interrupted"]
    assert os.listdir(scratch) == []
