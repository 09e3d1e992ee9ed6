"""Flags win over the environment, the environment wins over the settings file."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from mirrorfs.cli import settings_file
from mirrorfs.cli.settings_file import DatastoreCommand


@click.command("try", cls=DatastoreCommand)
@click.argument("datastore")
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
        ('to = "s3://a/b"\nparallel = 100', "100"),
    ],
)
def test_a_wrong_file_is_a_usage_error(settings: Path, text: str, said: str) -> None:
    settings.write_text(text)
    done = _run("/srv/store1")
    assert done.exit_code == 2
    assert said in done.output
