"""Who is told can be tried, and settings that name nobody or nonsense are refused in a sentence."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mirrorfs.cli import notify, settings_file
from mirrorfs.cli.config_check import _notifications
from mirrorfs.cli.main import main
from mirrorfs.notification import delivery
from mirrorfs.objectstore.trial import Verdict
from mirrorfs.service import units
from tests.service_manager import Unit


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the settings files stand; `store1` is there."""
    monkeypatch.setattr(settings_file, "SETTINGS_BASE", str(tmp_path))
    # The log goes to a descriptor, which pytest's standard error has none of.
    monkeypatch.setattr(notify, "begin_log", lambda _: None)
    return tmp_path / "store1.toml"


def _test(settings: Path, table: str) -> Result:
    settings.write_text(f'datastore = "/srv/store1"\nto = "s3://backups/store1"\n[notify]\n{table}\n')
    settings.chmod(0o600)
    return CliRunner().invoke(main, ["notify", "test", "store1"])


def test_each_way_is_tried(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = settings.parent / "tell"
    program.write_text(f"#!/bin/sh\ncat >>{settings.parent}/told\n")
    program.chmod(0o755)
    monkeypatch.setattr(delivery, "SENDMAIL", str(program))
    done = _test(settings, f'command = "{program}"')
    assert (done.exit_code, done.stdout) == (0, f"notify.command has told it: {program} ended well\n")
    assert '"event": "test", "datastore": "/srv/store1"' in (settings.parent / "told").read_text()


@pytest.mark.parametrize(
    ("table", "code", "sentence"),
    [
        ("", 1, "nobody is told: set 'mail' or 'command' in the table [notify]"),
        ('command = ["/bin/false"]', 1, "notify.command: /bin/false has failed (exit code 1)"),
        ('command = ["/nowhere/tell"]', 1, "notify.command: cannot run /nowhere/tell: No such file or directory"),
        ('command = ["tell", "x"]', 2, "must begin with the absolute path of a program, not with 'tell'"),
        ('command = ["/bin/tell", "a\\u0000b"]', 2, "zero byte"),
        ("command = [true]", 2, "it must be a text"),
        ('mail = "a@b, c@d"', 2, "is not one mail address"),
        ('mail = "-oQ/tmp"', 2, "is not one mail address"),
        ('mail = "a@b\\nBcc: c"', 2, "is not one mail address"),
        ('behind-after = "5s"', 2, "out of range: 1m to 365d"),
        ('after = "soon"', 2, "is not a duration"),
        ('maill = "root"', 2, "the nearest there is is 'notify.mail'"),
    ],
)
def test_what_cannot_be_is_a_sentence(settings: Path, table: str, code: int, sentence: str) -> None:
    done = _test(settings, table)
    assert done.exit_code == code
    assert sentence in done.stderr
    assert "Traceback" not in done.output


def _commands_of_the_unit(program: str, result: str, how: tuple[str, str], base: Path) -> list[str]:
    """Do what the unit does when its process has ended, where `systemd-run` runs nothing; returns what it would run."""
    (base / "systemd-run").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{base}/run\n')
    (base / "systemd-run").chmod(0o755)
    unit = Unit(units.template(units.MOUNT, program), "store1")
    said = {"SERVICE_RESULT": result, "EXIT_CODE": how[0], "EXIT_STATUS": how[1]}
    subprocess.run(unit.command_after(), env={"PATH": f"{base}:/usr/bin:/bin", **said}, check=False)
    return (base / "run").read_text().splitlines() if (base / "run").exists() else []


def test_a_unit_that_fails_has_it_told(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = settings.parent / "tell"
    program.write_text(f'#!/bin/sh\necho "$MIRRORFS_EVENT: $MIRRORFS_WHY" >>{settings.parent}/told\n')
    program.chmod(0o755)
    state = settings.parent / "state"
    assert _commands_of_the_unit("mirrorfs", "success", ("exited", "0"), settings.parent) == []
    words = _commands_of_the_unit("mirrorfs", "signal", ("killed", "KILL"), settings.parent)
    assert words[words.index("mirrorfs") :] == ["mirrorfs", "notify", "failed", "store1", "signal", "killed", "KILL"]

    settings.write_text(
        f'datastore = "/srv/store1"\nto = "s3://backups/store1"\nstate-dir = "{state}"\nnotify.command = "{program}"\n'
    )
    settings.chmod(0o600)
    arguments = words[words.index("notify") :]
    for _ in range(2):
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.output
    assert CliRunner().invoke(main, ["notify", "failed", "store1", "success"]).exit_code == 0
    expected = "broken: The mount has failed (signal: killed KILL). Until it is up again PBS does not run.\n"
    assert (settings.parent / "told").read_text() == expected


def test_a_check_of_the_settings_says_whether_it_could_be_told() -> None:
    values = {
        "notify_command": ("/nowhere/tell",),
        "notify_mail": None,
        "notify_behind_after": 1.0,
        "notify_after": 1.0,
    }
    (bad,) = _notifications(values)
    (good,) = _notifications({**values, "notify_command": ("/bin/true",)})
    assert (bad.subject, bad.verdict) == ("notify.command", Verdict.BAD)
    assert (good.subject, good.verdict) == ("notify.command", Verdict.GOOD)
    assert list(_notifications({**values, "notify_command": ()})) == []
