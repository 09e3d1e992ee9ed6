"""Options, file, help and reference are made from the same settings; what is written can be read."""

from __future__ import annotations

import json
import re
import stat
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from mirrorfs.cli import config, mount, settings_file
from mirrorfs.cli.setting import SECTIONS, Setting, TakesEffect, settings_of
from mirrorfs.cli.settings_text import reference

SETTINGS = settings_of(mount.command)
_REFERENCE = Path(__file__).parents[2] / "docs" / "settings.md"
_TO = ("--to", "s3://backups/store1")


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(settings_file, "SETTINGS_BASE", str(tmp_path / "etc"))
    return tmp_path / "etc"


def _run(*arguments: str, answers: str = "") -> Result:
    return CliRunner().invoke(config.command, arguments, input=answers)


def test_every_option_of_a_mount_is_a_setting() -> None:
    others = [option for option in mount.command.params if isinstance(option, click.Option) and option.hidden is False]
    assert [option for option in others if not isinstance(option, Setting)] == []
    assert len(SETTINGS) > 30


def test_the_reference_is_made_from_the_settings() -> None:
    assert _REFERENCE.read_text() == reference(SETTINGS.values()), "run scripts/settings-reference"
    assert max(map(len, _REFERENCE.read_text().splitlines())) <= 100


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda setting: setting.long)
def test_each_setting_says_what_it_is(setting: Setting) -> None:
    assert setting.help
    assert setting.values not in ("", "text", "a text"), (
        "say what may stand there: metavar, a type with a range, values"
    )
    assert (setting.section is not None) == setting.full_key.startswith(tuple(f"{section}." for section in SECTIONS))


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda setting: setting.long)
def test_help_has_its_default_and_range(setting: Setting) -> None:
    record = setting.get_help_record(click.Context(mount.command, show_default=True))
    assert record is not None
    assert setting.range in record[1]
    if setting.written_default and not setting.is_flag:
        assert f"default: {setting.written_default}" in record[1]


def test_what_is_written_is_what_was_given(base: Path) -> None:
    given = ("--parallel", "16", "--retention-delete-after", "30d", "-o", "allow_other", "-o", "suid", "--verbose")
    done = _run("init", "/srv/store1", *_TO, *given, "--retention-max-delete-fraction", ".5")
    assert done.exit_code == 0, done.output
    path = base / "store1.toml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert tomllib.loads(path.read_text()) == {
        "datastore": "/srv/store1",
        "to": "s3://backups/store1",
        "parallel": 16,
        "options": ["allow_other", "suid"],
        "verbose": True,
        "bandwidth": {},
        "notify": {},
        "retention": {"delete-after": "30d", "max-delete-fraction": 0.5},
        "verify": {},
        "web": {},
    }


def test_every_key_stands_in_it_and_means_its_default(base: Path) -> None:
    assert _run("init", "/srv/store1", *_TO).exit_code == 0
    text = (base / "store1.toml").read_text()
    before = json.loads(_run("show", "store1", "--json").output)
    for setting in SETTINGS.values():
        assert (f"{setting.key} = " in text) == (setting.takes_effect is not TakesEffect.ONCE)
    # Taken in, each default is what holds without it.
    (base / "store1.toml").write_text(re.sub(r'^# (?=[a-z-]+ = (?!""))', "", text, flags=re.MULTILINE))
    after = json.loads(_run("show", "store1", "--json").output)
    assert {key: told["value"] for key, told in after.items()} == {key: told["value"] for key, told in before.items()}
    assert after["parallel"]["source"] == "file"
    assert before["parallel"]["source"] == "default"


def test_where_a_value_comes_from(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _run("init", "/srv/store1", *_TO, "--parallel", "3").exit_code == 0
    monkeypatch.setenv("MIRRORFS_MOUNT_NICE", "9")
    shown = json.loads(_run("show", "/srv/store1", "--json").output)
    assert shown["to"] == {"value": "s3://backups/store1", "source": "file"}
    assert shown["nice"] == {"value": "9", "source": "environment"}
    assert shown["retry-ceiling"] == {"value": "1m", "source": "default"}
    assert "parallel                       3" in _run("show", "store1").output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give --to s3://BUCKET/NAME"),
        (("--to", "s3://b"), "Invalid value for '--to'"),
        ((*_TO, "--parallel", "99"), "Invalid value for '--parallel'"),
        ((*_TO, "--kms-key-id", "x"), "A KMS key goes with the encryption"),
        ((*_TO, "--name", "../x"), "cannot be a name"),
        ((*_TO, "--profile", "a\x7fb"), "cannot stand in a settings file"),
        ((*_TO, "--connect-timeout", "0"), "0 is out of range: more than 0 to 1d"),
        ((*_TO, "--slowest-rate", "1 B/s"), "1 B/s is out of range: 128 B/s to 1 GiB/s"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_written(base: Path, arguments: tuple[str, ...], said: str) -> None:
    done = _run("init", "/srv/store1", *arguments)
    assert done.exit_code == 2
    assert said in done.output
    assert not base.exists() or not list(base.iterdir())


def test_a_file_that_is_there_stays(base: Path) -> None:
    assert _run("init", "/srv/store1", *_TO).exit_code == 0
    again = _run("init", "/srv/store1", *_TO, "--parallel", "3")
    assert again.exit_code == 1
    assert "is there already" in again.output
    other = _run("init", "/srv/store1", *_TO, "--name", "other")
    assert other.exit_code == 1
    assert "store1.toml is about /srv/store1 already" in other.output
    assert _run("init", "/srv/store1", *_TO, "--parallel", "3", "--force").exit_code == 0
    assert "\nparallel = 3\n" in (base / "store1.toml").read_text()
    assert [path.name for path in base.iterdir()] == ["store1.toml"]
