"""The commands `restore` and `snapshots`: output, exit codes, one-line errors."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from mirrorfs.cli import bucket_reading, restore, restore_progress, snapshots
from mirrorfs.objectstore.retry import AT_ONCE
from tests.recovery.mirror import Mirror, entries_of, upload

SECOND = "vm/100/2026-01-01T01:00:00Z"
PRECISELY_ONE_LINE = re.compile(r"Error: [^\n]+\n")


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_reading, "_LISTING_PATIENCE", AT_ONCE)
    monkeypatch.setattr(snapshots, "_PATIENCE", AT_ONCE)


def run(command: click.Command, mirror: Mirror, *arguments: str) -> Result:
    endpoint = ("--endpoint-url", mirror.access.endpoint_url)
    result = CliRunner().invoke(command, [str(mirror.address), *arguments, *endpoint])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_restore(shared_mirror: Mirror, datastore: Path, base: Path, few_directories: None) -> None:
    target = base / "target"
    result = run(restore.command, shared_mirror, str(target), "--parallel", "3")
    assert result.exit_code == 0
    assert "Restoring 6 snapshots of 3 groups." in result.stderr
    assert f"{SECOND} restored" in result.stderr
    assert "[6/6]" in result.stderr
    lines = result.stdout.splitlines()
    assert re.fullmatch(r"Restored 6 snapshots into .*\d+ chunks downloaded.* All of it is on disk\.", lines[0])
    attached = (
        f"To attach it to a PBS 4: proxmox-backup-manager datastore create recovery {target} --reuse-datastore true"
    )
    assert lines[1] == attached
    assert lines[2] == "To a PBS 3, add this to /etc/proxmox-backup/datastore.cfg:"
    assert lines[3:] == ["datastore: recovery", f"    path {target}"]
    assert entries_of(target) == entries_of(datastore)


def test_restore_of_a_part_into_the_hands_of_somebody(shared_mirror: Mirror, base: Path, few_directories: None) -> None:
    options = ("--namespace", "a/b", "--group", "h*t/w?b", "--snapshot", SECOND, "--latest", "1", "--owner", "1:2")
    result = run(restore.command, shared_mirror, str(base), *options)
    assert result.exit_code == 0
    assert "Restored 3 snapshots" in result.stdout
    assert {(entry.user, entry.group) for entry in entries_of(base).values()} == {(1, 2)}


def test_an_incomplete_restore_says_so(own_mirror: Mirror, base: Path, few_directories: None) -> None:
    upload(own_mirror.access, own_mirror.bucket, own_mirror.prefix, {f".cnt/{SECOND}/index.json.blob": b"?"})
    result = run(restore.command, own_mirror, str(base))
    assert result.exit_code == 1
    assert "Restored 5 snapshots" in result.stdout
    assert f"Not restored: {SECOND}: the manifest is damaged" in result.stderr
    assert "1 snapshot left out" in result.stderr


def test_restore_tells_programs(own_mirror: Mirror, base: Path, few_directories: None) -> None:
    upload(own_mirror.access, own_mirror.bucket, own_mirror.prefix, {f".cnt/{SECOND}/index.json.blob": b"?"})
    told = json.loads(run(restore.command, own_mirror, str(base / "a"), "--dry-run", "--json").stdout)
    assert told["dry_run"] is True
    assert told["chunks"] > 20
    assert [problem["path"] for problem in told["problems"]] == [SECOND]
    assert not (base / "a").exists()
    result = run(restore.command, own_mirror, str(base / "a"), "--json")
    assert result.exit_code == 1
    done = json.loads(result.stdout)
    assert (done["complete"], len(done["restored"]), done["incomplete"]) == (False, 5, [SECOND])
    assert done["target"] == str(base / "a")
    assert done["attach"]["command"].startswith("proxmox-backup-manager datastore create ")
    again = run(restore.command, own_mirror, "--into", str(base / "a"), "--json", "--snapshot", "vm/100/*T00*")
    assert again.exit_code == 0
    assert json.loads(again.stdout)["already_there"] == ["vm/100/2026-01-01T00:00:00Z"]


def test_a_dry_run(shared_mirror: Mirror, base: Path) -> None:
    target = base / "target"
    result = run(restore.command, shared_mirror, str(target), "--dry-run", "--latest", "1", "--bandwidth-limit", "100k")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) == 4
    assert "vm/100/2026-01-01T02:00:00Z" in lines
    assert re.fullmatch(
        r"Would restore 3 snapshots into .*: \d+ chunks to fetch, [\d.]+ MB, about \d+ s\. Nothing was changed\.",
        lines[-1],
    )
    assert not target.exists()


def test_restore_into(shared_mirror: Mirror, datastore: Path, base: Path) -> None:
    shutil.copytree(datastore, base / "living")
    shutil.rmtree(base / "living" / SECOND)
    result = run(restore.command, shared_mirror, "--into", str(base / "living"))
    assert result.exit_code == 0
    assert re.fullmatch(
        r"Restored 1 snapshot into .*, 5 were there: 0 chunks downloaded, \d+ were there, .*\n", result.stdout
    )
    assert entries_of(base / "living").keys() == entries_of(datastore).keys()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "give either TARGET, an empty directory, or --into DATASTORE"),
        (("TARGET", "--into", "TARGET"), "give either TARGET"),
        (("--into", "TARGET", "--owner", "1:2"), "leave --owner out"),
        (("--into", "TARGET", "--keep-damaged"), "--into adds whole snapshots only"),
        (("TARGET", "--bandwidth-limit", "fast"), "'fast' is not a rate"),
        (("TARGET", "--bandwidth-limit", "0"), "is not a rate"),
        (("TARGET", "--bandwidth-limit", "-1M"), "is not a rate"),
    ],
)
def test_what_does_not_go_together(shared_mirror: Mirror, base: Path, options: tuple[str, ...], said: str) -> None:
    target = str(base / "target")
    arguments = [target if option == "TARGET" else option for option in options]
    result = run(restore.command, shared_mirror, *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert list(base.iterdir()) == []


@pytest.mark.parametrize(
    "option",
    [
        ("--snapshot", "vm/100/../../x"),
        ("--group", "vm"),
        ("--namespace", "a/../b"),
        ("--owner", "nobody-knows-them:root"),
        ("--latest", "0"),
        ("--group", "vm/[1"),
        ("--snapshot", "/vm/*"),
        ("--since", "yesterday"),
        ("--until", "2999-01-01T00:00:00Z"),
        ("--since", "1h", "--until", "2h"),
        ("--endpoint-url", "ftp://x"),
    ],
)
def test_wrong_usage_of_restore(shared_mirror: Mirror, base: Path, option: tuple[str, ...]) -> None:
    result = CliRunner().invoke(restore.command, [str(shared_mirror.address), str(base), *option])
    assert result.exit_code == 2
    assert "Error: " in result.stderr
    assert list(base.iterdir()) == []


@pytest.mark.parametrize("command", [restore.command, snapshots.command])
def test_malformed_urls(command: click.Command, base: Path) -> None:
    target = [str(base)] if command is restore.command else []
    for url in ("http://x/y", "s3://bucket", "s3://bucket/../x", ""):
        result = CliRunner().invoke(command, [url, *target])
        assert result.exit_code == 2
        assert "s3://BUCKET/NAME" in result.stderr or "cannot be" in result.stderr


def test_failures_are_one_line(shared_mirror: Mirror, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = base / "target"
    results = [
        run(restore.command, shared_mirror, str(target), "--group", "vm/999"),
        run(restore.command, shared_mirror, str(target), "--group", "host/*", "--group", "ct/*"),
        run(restore.command, shared_mirror, str(target), "--since", "2026-02-01T00:00:00Z"),
        run(restore.command, Mirror(shared_mirror.access, "no-such-bucket-at-all", "x"), str(target)),
        run(snapshots.command, Mirror(shared_mirror.access, "no-such-bucket-at-all", "x")),
    ]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "quite-wrong")
    results += [run(restore.command, shared_mirror, str(target)), run(snapshots.command, shared_mirror)]
    for result in results:
        assert result.exit_code == 1
        assert result.stdout == ""
        assert PRECISELY_ONE_LINE.fullmatch(result.stderr), result.stderr
        assert "quite-wrong" not in result.output
    assert not target.exists()


def test_an_interrupted_restore_says_how_to_go_on(
    shared_mirror: Mirror, base: Path, few_directories: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press_control_c(self: object, snapshot: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(restore_progress.ProgressLines, "snapshot_started", press_control_c)
    result = run(restore.command, shared_mirror, str(base))
    assert result.exit_code == 1
    assert "Interrupted. Give the same command again to go on." in result.stderr


def test_snapshots_as_lines(shared_mirror: Mirror) -> None:
    result = run(snapshots.command, shared_mirror)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["Snapshot", "Size", "Protected", "Verified", "Encrypted", "Notes"]
    assert len(lines) == 10
    assert lines[7:9] == ["", "Group   Notes"]
    assert lines[9] == "vm/100  the web shop"
    assert re.fullmatch(r"vm/100/2026-01-01T02:00:00Z +1\.\d MB +no +ok +no +last one", lines[4])
    assert re.fullmatch(r"ns/a/ns/b/ct/200/2026-01-01T00:00:00Z +1\.\d MB +no +- +yes", lines[5])


def test_snapshots_as_json(own_mirror: Mirror) -> None:
    upload(own_mirror.access, own_mirror.bucket, own_mirror.prefix, {f".cnt/{SECOND}/index.json.blob": b"?"})
    result = run(snapshots.command, own_mirror, "--json")
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert answer["url"] == str(own_mirror.address)
    by_path = {entry["path"]: entry for entry in answer["snapshots"]}
    assert len(by_path) == 6
    sound = by_path["vm/100/2026-01-01T02:00:00Z"]
    assert 1_000_000 < sound.pop("size") < 2_000_000
    assert sound == {
        "path": "vm/100/2026-01-01T02:00:00Z",
        "namespace": "",
        "type": "vm",
        "id": "100",
        "time": "2026-01-01T02:00:00Z",
        "protected": False,
        "verified": "ok",
        "encrypted": False,
        "encryption": "none",
        "notes": "last one",
        "problem": None,
    }
    assert answer["groups"] == [{"path": "vm/100", "namespace": "", "type": "vm", "id": "100", "notes": "the web shop"}]
    damaged = by_path[SECOND]
    assert damaged["size"] is None
    assert "damaged" in damaged["problem"]
    assert by_path["ns/a/ns/b/ct/200/2026-01-01T00:00:00Z"]["namespace"] == "a/b"


def test_no_snapshots(shared_mirror: Mirror) -> None:
    nothing = Mirror(shared_mirror.access, shared_mirror.bucket, "nothing")
    assert run(snapshots.command, nothing).stdout == f"No snapshots at {nothing.address}.\n"
    assert json.loads(run(snapshots.command, nothing, "--json").stdout)["snapshots"] == []


@pytest.mark.parametrize("command", [restore.command, snapshots.command])
def test_help_documents_examples_and_exit_codes(command: click.Command) -> None:
    result = CliRunner().invoke(command, ["--help"])
    assert "Examples:" in result.output
    assert "Exit codes: 0" in result.output
