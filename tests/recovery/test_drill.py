"""`mirrorfs drill`: what it proves, what it reports, and that nothing of it is left, however it ends."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result

from mirrorfs.cli import drill as cli_drill
from mirrorfs.objectstore.retry import AT_ONCE
from mirrorfs.recovery import drill as drilling
from mirrorfs.recovery.drill import DrillObserver, DrillReport, drill
from mirrorfs.recovery.drill_report import LISTING_COMMAND, as_markdown
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.recovery.progress import Problem, RestoreReport
from mirrorfs.recovery.restore import restore_datastore
from mirrorfs.recovery.scratch import scratch_directory
from mirrorfs.recovery.selection import Selection
from mirrorfs.steps import STEPS
from tests.harness.mirror import PROGRAM
from tests.harness.steps import StepFile
from tests.recovery.mirror import Mirror, Tampering, breaks_off_after, upload

NEWEST = "vm/100/2026-01-01T02:00:00Z"
ONE_LINE = re.compile(r"Error: [^\n]+\n")


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_drill, "_LISTING_PATIENCE", AT_ONCE)


@pytest.fixture
def small_disk(base: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    disk = base / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=755", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def run(mirror: Mirror, base: Path, *arguments: str) -> Result:
    scratch = base / "scratch"
    scratch.mkdir(exist_ok=True)
    options = ("--scratch", str(scratch), "--endpoint-url", mirror.access.endpoint_url)
    result = CliRunner().invoke(cli_drill.command, [str(mirror.address), *options, *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert list(scratch.iterdir()) == []
    return result


def run_drill(
    mirror: Mirror, base: Path, *, tampering: Tampering | None = None, observer: DrillObserver | None = None
) -> DrillReport:
    """Drill everything, past the command."""

    async def work() -> DrillReport:
        return await drill(mirror.store(tampering), mirror.address, base, selection=Selection(), observer=observer)

    return trio.run(work)


def _fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))


def reports(directory: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in sorted(directory.glob("drill-*.json"))]


def test_all_comes_back_and_the_report_says_so(shared_mirror: Mirror, base: Path, few_directories: None) -> None:
    result = run(shared_mirror, base, "--keep-report", str(base / "reports"))
    assert result.exit_code == 0, result.output
    assert "3 of 3 snapshots came back" in result.stdout
    [report] = reports(base / "reports")
    assert report["good"] is True
    assert report["failure"] is None
    assert report["url"] == str(shared_mirror.address)
    assert shared_mirror.access.endpoint_url in str(report["store"])
    assert isinstance(report["selection"], dict)
    assert report["selection"]["latest"] == 1
    snapshots = report["snapshots"]
    assert isinstance(snapshots, list)
    assert [one["path"].rpartition("/")[0] for one in snapshots] == ["host/web", "vm/100", "ns/a/ns/b/ct/200"]
    assert NEWEST in [one["path"] for one in snapshots]
    assert int(str(report["bytes_downloaded"])) > 1_000_000
    [page] = (base / "reports").glob("drill-*.md")
    assert page.read_text().startswith(f"# Restore drill of {shared_mirror.address}: Passed\n")
    assert str(report["listing_sha256"]) in page.read_text()


def test_anybody_can_make_the_sum_again(shared_mirror: Mirror, base: Path, few_directories: None) -> None:
    report = run_drill(shared_mirror, base)
    assert report.read is not None
    shared_mirror.restore(base / "again")
    told = subprocess.run(
        ["bash", "-c", f"{LISTING_COMMAND} | sha256sum"], cwd=base / "again", capture_output=True, text=True, check=True
    )
    assert told.stdout.split()[0] == report.read.listing_sha256
    found = [path for path in (base / "again").rglob("*") if path.is_file() and path.name != ".lock"]
    assert report.read.files + report.read.chunks == len(found)
    assert report.read.bytes == sum(path.stat().st_size for path in found)


def test_what_is_damaged_in_the_bucket_fails_it(
    own_mirror: Mirror, objects: dict[str, bytes], base: Path, few_directories: None
) -> None:
    upload(own_mirror.access, own_mirror.bucket, own_mirror.prefix, {f".cnt/{NEWEST}/index.json.blob": b"?"})
    result = run(own_mirror, base, "--keep-report", str(base / "reports"))
    assert result.exit_code == 1
    assert f"Not as it should be: {NEWEST}: the manifest is damaged" in result.stderr
    assert "2 of 3 snapshots came back" in result.stdout
    [report] = reports(base / "reports")
    assert report["good"] is False
    assert "FAILED" in next((base / "reports").glob("*.md")).read_text().splitlines()[0]
    chunk = next(key for key in objects if key.startswith(".chunks/"))
    upload(own_mirror.access, own_mirror.bucket, own_mirror.prefix, {chunk: objects[chunk][:-1] + b"?"})
    result = run(own_mirror, base, "--latest", "9", "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert any(Path(chunk).name in problem["reason"] for problem in told["problems"]), told["problems"]


def test_what_the_disk_has_spoilt_is_found_when_it_is_read_back(
    shared_mirror: Mirror, base: Path, few_directories: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = restore_datastore

    async def spoil(store: object, address: object, target: Path, **others: object) -> RestoreReport:
        report = await real(store, address, target, **others)  # type: ignore[arg-type]
        first, second = sorted(path for path in (target / ".chunks").rglob("*") if path.is_file())[:2]
        first.write_bytes(first.read_bytes()[:-1] + b"?")
        second.unlink()
        (target / NEWEST / "qemu-server.conf.blob").write_bytes(b"")
        return report

    monkeypatch.setattr(drilling, "restore_datastore", spoil)
    report = run_drill(shared_mirror, base)
    assert not report.is_good
    reasons = {problem.path: problem.reason for problem in report.problems}
    assert f"{NEWEST}/qemu-server.conf.blob" in reasons
    assert "it is not there any more" in reasons.values()
    assert sum(path.startswith(".chunks/") for path in reasons) == 2


def test_a_store_that_goes_away_ends_in_a_report(shared_mirror: Mirror, base: Path, few_directories: None) -> None:
    report = run_drill(shared_mirror, base, tampering=Tampering(on_get=breaks_off_after(5)))
    assert report.failure is not None
    assert "unplugged" in report.failure
    assert not report.is_good
    assert all(one.problem is not None for one in report.snapshots)
    assert "did not come to its end" in as_markdown(report)
    assert list(base.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_disk_that_fills_up_leaves_nothing(shared_mirror: Mirror, small_disk: Path, few_directories: None) -> None:
    class Filling(DrillObserver):
        """Somebody else needs the disk when some of it has come."""

        objects = 0

        def downloaded(self, size: int) -> None:
            self.objects += 1
            if self.objects == 20:
                with pytest.raises(OSError, match="No space"):
                    _fill(small_disk / "filler")

    report = run_drill(shared_mirror, small_disk, observer=Filling())
    assert str(report.failure).startswith("Could not restore ")
    assert str(report.failure).endswith("No space left on device")
    assert [path.name for path in small_disk.iterdir()] == ["filler"]
    with pytest.raises(RestoreError, match=r"Cannot drill|There is no room in .*MB are needed.*--scratch DIR"):
        run_drill(shared_mirror, small_disk)
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_the_room_is_estimated_before_anything_is_fetched(
    shared_mirror: Mirror, base: Path, small_disk: Path, few_directories: None
) -> None:
    # The sizes before compression are more than there is; what the chunks take is not.
    assert run_drill(shared_mirror, small_disk).is_good
    (small_disk / "filler").write_bytes(bytes(7 << 20))
    gets = Tampering()
    with pytest.raises(RestoreError, match="There is no room"):
        run_drill(shared_mirror, small_disk, tampering=gets)
    # A few are read to tell how fast the store is; nothing is written.
    assert sum("/.chunks/" in key for key in gets.gets) <= 32
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM"])
def test_interrupted_it_leaves_nothing(
    shared_mirror: Mirror, base: Path, few_directories: None, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def interrupt(self: object, snapshot: object) -> None:
        assert len(list((base / "scratch").iterdir())) == 1
        os.kill(os.getpid(), signal.Signals[how])

    monkeypatch.setattr(cli_drill._ProgressLines, "snapshot_started", interrupt)
    result = run(shared_mirror, base, "--keep-report", str(base / "reports"))
    assert result.exit_code == 1
    assert "Error: Interrupted. The scratch directory is removed." in result.stderr


def test_killed_at_each_step_the_next_one_tidies_up(shared_mirror: Mirror, base: Path) -> None:
    scratch, file = base / "scratch", StepFile(base / "step")
    scratch.mkdir()
    command = [
        *PROGRAM, "drill", str(shared_mirror.address), "--scratch", str(scratch), "--full", "--turns", "1",
        "--keep-report", str(base / "reports"), "--endpoint-url", shared_mirror.access.endpoint_url,
    ]  # fmt: skip
    environment = {**os.environ, **file.environment}
    for step in [step for step in STEPS if step.startswith("drill.")]:
        file.arm(step)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, (step, done.stderr)
        # One is left at most, whatever came before.
        assert len(list(scratch.iterdir())) <= 1, step
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(scratch.iterdir()) == []
    assert all(report["good"] for report in reports(base / "reports"))


def test_what_is_not_a_killed_drills_is_left_alone(base: Path) -> None:
    removed: list[Path] = []
    names = [f"mirrorfs-drill-{number:016x}" for number in range(6)]
    abandoned, link, unmarked, open_to_all, locked, empty = (base / name for name in names)
    for directory in (abandoned, unmarked, open_to_all, locked, empty):
        directory.mkdir(mode=0o700)
    for directory in (abandoned, open_to_all, locked):
        (directory / ".mirrorfs-drill").touch()
        (directory / "datastore").mkdir()
        (directory / "datastore" / "file").touch()
    precious = base / "precious"
    precious.mkdir()
    (precious / "file").touch()
    link.symlink_to(precious)
    (unmarked / "file").touch()
    open_to_all.chmod(0o755)
    other = base / "mirrorfs-drill-of-mine"
    other.mkdir()
    holder = os.open(locked, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with scratch_directory(base, removed.append) as scratch:
        scratch.datastore.mkdir()
        with scratch_directory(base, removed.append) as second:
            assert second.datastore.parent.is_dir()
        assert scratch.datastore.is_dir()
    os.close(holder)
    assert set(base.iterdir()) == {link, unmarked, open_to_all, locked, precious, other}
    assert (precious / "file").exists()
    assert (locked / "datastore" / "file").exists()
    assert removed == [abandoned, empty]


def test_each_group_has_its_turn(shared_mirror: Mirror, base: Path, few_directories: None) -> None:
    kept = ("--keep-report", str(base / "reports"))
    groups = []
    for number in range(1, 5):
        result = run(shared_mirror, base, "--full", "--turns", "1", *kept)
        assert result.exit_code == 0, result.output
        assert "1 of 1 groups came back, of 3 that there are." in result.stdout
        notes = json.loads(next((base / "reports").glob("drilled-*.json")).read_text())
        groups.append(max(notes["groups"], key=lambda path: notes["groups"][path]["drilled"]))
        assert len(reports(base / "reports")) == number
    assert len(set(groups[:3])) == 3
    assert groups[3] == groups[0]
    result = run(shared_mirror, base, "--full", "--group", "vm/100", *kept)
    assert "1 of 1 groups came back, of 1 that there are." in result.stdout
    result = run(shared_mirror, base, "--full", "--json", *kept)
    assert result.stdout.count('"good": true') == 3
    next((base / "reports").glob("drilled-*.json")).write_text("[]")
    result = run(shared_mirror, base, "--full", *kept)
    assert result.exit_code == 1
    assert ONE_LINE.fullmatch(result.stderr)


def test_it_is_refused(shared_mirror: Mirror, base: Path, few_directories: None) -> None:
    for arguments in (
        ("--turns", "1"),
        ("--full", "--snapshot", NEWEST),
        ("--group", "vm"),
        ("--latest", "0"),
        ("--endpoint-url", "ftp://x"),
    ):
        assert run(shared_mirror, base, *arguments).exit_code == 2
    nothing = Mirror(shared_mirror.access, shared_mirror.bucket, "nothing")
    absent = Mirror(shared_mirror.access, "no-such-bucket-at-all", "x")
    file = base / "file"
    file.touch()
    for result in (
        run(shared_mirror, base, "--group", "vm/999"),
        run(shared_mirror, base, "--full", "--group", "vm/999"),
        run(nothing, base),
        run(nothing, base, "--full"),
        run(absent, base),
        run(absent, base, "--full"),
        run(shared_mirror, base, "--scratch", str(base / "a" / "b")),
        run(shared_mirror, base, "--scratch", str(file)),
    ):
        assert result.exit_code == 1
        assert result.stdout == ""
        assert ONE_LINE.fullmatch(result.stderr), result.stderr
    result = run(shared_mirror, base, "--keep-report", str(file))
    assert result.exit_code == 1
    assert "The report could not be written into" in result.stderr


def test_nothing_in_a_report_is_markup(shared_mirror: Mirror, base: Path, few_directories: None) -> None:
    good = run_drill(shared_mirror, base)
    bad = DrillReport(
        good.url, good.store, good.selection, good.began, good.ended, good.snapshots, good.restore, 1.0, good.read, 1.0,
        (Problem("vm/1/x\n| # ![y](http://z)", "<script>`"),), "a | b\x1b[1m",
    )  # fmt: skip
    page = as_markdown(bad)
    assert "<script>" not in page.replace("\\<", "")
    assert "\x1b" not in page
    assert "\n| # !" not in page
    assert r"a \| b" in page


def test_help_has_examples_and_exit_codes() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "mirrorfs.cli", "drill", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "Examples:" in told
    assert "Exit codes: 0" in told
