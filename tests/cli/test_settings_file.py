"""Flags win over the environment, the environment wins over the settings file."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from mirrorfs.cli import settings_file
from mirrorfs.cli.settings_file import DATASTORE, DatastoreCommand, named_datastore


@click.command("try", cls=DatastoreCommand)
@click.argument("datastore", type=DATASTORE)
@click.option("--to", "address", required=True)
@click.option("--parallel", type=click.IntRange(1, 64), default=8)
@click.option("--foreground", is_flag=True)
@click.option("--retention-delete-after", default="")
def command(datastore: str, address: str, parallel: int, foreground: bool, retention_delete_after: str) -> None:
    click.echo(f"{datastore} {address} {parallel} {foreground}{retention_delete_after}")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(settings_file, "SETTINGS_BASE", str(tmp_path))
    return tmp_path / "srv-store1.toml"


def _run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(command, arguments, env=environment, auto_envvar_prefix="TRY")


def test_without_a_file_the_command_line_is_all(settings: Path) -> None:
    assert _run("/srv/store1", "--to", "s3://a/b").output == "/srv/store1 s3://a/b 8 False\n"
    assert _run("/srv/store1").exit_code == 2


def test_the_file_may_hold_what_is_required(settings: Path) -> None:
    settings.write_text('to = "s3://a/b"\nparallel = 3\nforeground = true\n')
    assert _run("/srv/store1").output == "/srv/store1 s3://a/b 3 True\n"
    assert _run("/srv/other").exit_code == 2


@pytest.mark.parametrize(
    "text",
    [
        '[retention]\ndelete_after = " 30d"',
        '[retention]\ndelete-after = " 30d"',
        'retention.delete_after = " 30d"',
        'retention-delete-after = " 30d"',
    ],
)
def test_options_of_one_kind_may_stand_in_a_table(settings: Path, text: str) -> None:
    settings.write_text(f'to = "s3://a/b"\n{text}\n')
    assert _run("/srv/store1").output == "/srv/store1 s3://a/b 8 False 30d\n"


def test_precedence(settings: Path) -> None:
    settings.write_text('to = "s3://file/x"\nparallel = 3\n')
    assert _run("/srv/store1", TRY_PARALLEL="4").output == "/srv/store1 s3://file/x 4 False\n"
    assert _run("/srv/store1", "--parallel", "5", TRY_PARALLEL="4").output == "/srv/store1 s3://file/x 5 False\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("to = ", "cannot read the settings file"),
        ('secret-key = "x"', "which is no option of 'try'"),
        ('[retention]\nsecret_key = "x"', "has 'retention-secret-key', which is no option of 'try'"),
        ("paralel = 3", "which is no option of 'try': the nearest there is is 'parallel'"),
        ('[retentoin]\ndelete_after = "30d"', "the nearest there is is 'retention-delete-after'"),
        ("xyzzy = 3", "docs/settings.md and 'mirrorfs mount --help' list what there is"),
        ('to = "s3://a/b"\nparallel = 100', "srv-store1.toml has a wrong value of 'parallel': 100"),
        ('to = ["s3://a/b"]', "has a wrong value of 'to': it must be a text"),
        ("parallel = true", "has a wrong value of 'parallel': it must be a text"),
        ("parallel = nan", "has a wrong value of 'parallel': it must be a text"),
        (
            'retention-delete-after = "30d"\n[retention]\ndelete_after = "1d"',
            "has 'retention-delete-after' twice, as 'retention-delete-after' and as 'retention.delete_after'",
        ),
        (
            '[retention]\ndelete_after = "30d"\ndelete-after = "1d"',
            "twice, as 'retention.delete_after' and as 'retention.delete-after': take one of them away",
        ),
        ('foreground = "yes"', "has a wrong value of 'foreground': it must be true or false"),
        ('datastore = "store1"', "has a wrong value of 'datastore': it must be the absolute path"),
    ],
)
def test_a_wrong_file_is_a_usage_error(settings: Path, text: str, said: str) -> None:
    settings.write_text(text)
    done = _run("/srv/store1")
    assert done.exit_code == 2
    assert said in done.output


class TestNames:
    """A file names its datastore, and is what the datastore is called."""

    def test_a_command_takes_the_name_alone(self, settings: Path) -> None:
        settings.with_name("store1.toml").write_text('datastore = "/srv/store1"\nto = "s3://a/b"\nparallel = 3\n')
        assert _run("store1").output == "/srv/store1 s3://a/b 3 False\n"
        assert _run("/srv/store1").output == "/srv/store1 s3://a/b 3 False\n"
        assert _run("./store1").exit_code == 2

    def test_a_word_that_is_no_name_is_a_path(self, settings: Path) -> None:
        assert named_datastore("store1") == "store1"
        assert named_datastore("../store1") == "../store1"

    def test_two_files_about_one_datastore_are_told(self, settings: Path) -> None:
        for name in ("store1", "srv-store1"):
            settings.with_name(f"{name}.toml").write_text('datastore = "/srv/store1"\nto = "s3://a/b"\n')
        done = _run("store1")
        assert done.exit_code == 2
        assert "store1.toml are both about '/srv/store1'" in done.output

    def test_a_file_of_another_datastore_is_not_taken_for_its_name(self, settings: Path) -> None:
        settings.write_text('datastore = "/srv/other"\nto = "s3://a/b"\n')
        assert "Missing option '--to'" in _run("/srv/store1").output

    def test_a_file_that_names_no_datastore_gives_no_name(self, settings: Path) -> None:
        settings.write_text('to = "s3://a/b"\n')
        assert "does not say which datastore it is about" in _run("srv-store1").output

    def test_a_file_that_cannot_be_read_may_be_about_any(self, settings: Path) -> None:
        settings.with_name("other.toml").write_text("to = ")
        assert "cannot read the settings file" in _run("/srv/store1", "--to", "s3://a/b").output
