"""`python -m tests.harness` by hand: what it prints, and its exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.harness import commands
from tests.harness_tests.fake_s3 import FakeMirror


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(commands.main, arguments)
    return result.exit_code, result.output


def test_a_round_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = str(tmp_path / "store")
    snapshot = "vm/100/2026-01-01T00:00:00Z"
    for arguments in (
        ("create", store, "--quick"),
        ("backup", store, "vm/100", "--size", "512K", "--chunk-size", "64K", "--count", "2"),
        ("backup", store, "ct/7", "--size", "512K", "--chunk-size", "64K", "--encrypted"),
        ("namespace", store, "a/b"),
        ("abort", store, "vm/100"),
        ("notes", store, snapshot, "some notes"),
        ("log", store, snapshot),
        ("verify", store, snapshot),
        ("protect", store, snapshot),
    ):
        code, output = run(*arguments)
        assert code == 0, output
        assert output.strip(), arguments
    code, output = run("forget", store, snapshot)
    assert (code, output) == (1, f"Error: refused, as the server would: {snapshot} is protected\n")
    mirror = FakeMirror(tmp_path / "store")
    monkeypatch.setattr(commands, "open_bucket", lambda url, **options: mirror.bucket)
    code, output = run("audit", "s3://bucket/mirror", "--datastore", store, "--deep")
    assert code == 0, output
    assert "checked P1, P2, P5, P6: 3 manifests" in output
    assert run("protect", store, snapshot, "--off")[0] == 0
    assert run("forget", store, snapshot, "--order", "manifest last")[0] == 0
    code, output = run("audit", "s3://bucket/mirror", "--datastore", store)
    assert code == 1
    assert f"VIOLATION P2 .cnt/{snapshot}/index.json.blob: stands in the bucket" in output
    code, output = run("gc", store, "--age", "0", "--safety", "0")
    assert code == 0
    assert "0 referenced chunks are missing" in output


def test_every_operation_by_hand(tmp_path: Path) -> None:
    store, other = str(tmp_path / "store"), str(tmp_path / "other")
    snapshot, later = "vm/100/2026-01-01T00:00:00Z", "vm/100/2026-01-01T02:00:00Z"
    size = ("--size", "256K", "--chunk-size", "64K")
    for arguments, expected in (
        (("create", store, "--quick"), "made the datastore"),
        (("create", other, "--quick"), "made the datastore"),
        (("backup", store, "vm/100", *size, "--count", "3"), "backup vm/100"),
        (("owner", store, "vm/100", "backup@pbs"), "vm/100 belongs to backup@pbs now"),
        (("group-notes", store, "vm/100", "the mail server"), "set the notes of vm/100"),
        (("verify-state", store, snapshot, "ok"), "is ok"),
        (("reinsert", store, snapshot, "--chunks", "3", "--no-compress"), "chunk "),
        (("sync", other, store, later), f"pulled {later}"),
        (("prune", store, "vm/100", "--keep-last", "2"), "forgot 1 snapshots of vm/100"),
        (("namespace", store, "old"), "made the namespace old"),
        (("move", store, "vm/100", "vm/200", "--target-namespace", "old"), "moved vm/100 to vm/200"),
        (("move", store, "old", "older", "--whole-namespace"), "moved old to older"),
        (("corrupt", store, f"ns/older/{later.replace('100', '200')}", "--chunks", "2"), "flipped a bit in chunk"),
    ):
        code, output = run(*arguments)
        assert code == 0, output
        assert expected in output
    code, output = run("verify", store, f"ns/older/{later.replace('100', '200')}")
    assert (code, "2 corrupt and 0 missing" in output) == (1, True)
    assert run("compare", other, other)[0] == 0
    assert run("corrupt", other, later, "--file", "drive-scsi0.img.fidx") == (
        0,
        f"flipped a bit in {later}/drive-scsi0.img.fidx\n",
    )
    code, output = run("corrupt", other, later)
    assert code == 2
    assert "checksum does not match" in output
    code, output = run("move", store, "vm/1", "vm/2", "--target-namespace", "nowhere")
    assert code == 1


def test_help_tells_every_command_in_one_line_and_each_gives_an_example() -> None:
    code, output = run("--help")
    assert code == 0
    for name, command in commands.main.commands.items():
        assert f"\n  {name} " in output
        assert "Example" in run(name, "--help")[1], name
        assert command.help


def test_compare_tells_what_differs(tmp_path: Path) -> None:
    stores = [str(tmp_path / name) for name in ("left", "right")]
    for store, seed in zip(stores, ("1", "2"), strict=True):
        run("create", store, "--quick")
        run("backup", store, "vm/1", "--size", "256K", "--chunk-size", "64K", "--seed", seed)
    code, output = run("compare", stores[0], stores[1])
    assert code == 1
    assert "DIFFERENCE vm/1/2026-01-01T00:00:00Z/index.json.blob: the bytes differ" in output
    assert run("compare", stores[0], stores[0])[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("backup", "{store}", "nonsense"), 2, "not a group"),
        (("backup", "{store}", "vm/1", "--size", "huge"), 2, "not a size"),
        (("notes", "{store}", "vm/1/yesterday", "x"), 2, "not a snapshot"),
        (("notes", "{store}", "vm/1/2026-01-01T00:00:00Z", "x"), 1, "No such file"),
        (("audit", "http://bucket/mirror"), 2, "not of the form"),
    ],
)
def test_bad_input_gets_one_line(tmp_path: Path, arguments: tuple[str, ...], code: int, text: str) -> None:
    store = str(tmp_path / "store")
    run("create", store, "--quick")
    found, output = run(*(argument.format(store=store) for argument in arguments))
    assert found == code
    assert text in output
    assert "Traceback" not in output
