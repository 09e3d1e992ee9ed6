"""A command about a mirror takes the datastore that it is one of, by name or by path."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mirrorfs.cli import settings_file
from mirrorfs.cli.mirror_of import MirrorCommand, MirrorURL
from mirrorfs.cli.options import store_options
from mirrorfs.cli.settings_file import DATASTORE
from mirrorfs.database.directory import DEFAULT_BASE
from mirrorfs.objectstore.url import StoreAddress, StoreOptions
from tests.cli.command_lines import COMMANDS


def _argument(command: click.Command, name: str) -> click.Argument | None:
    found = (parameter for parameter in command.params if isinstance(parameter, click.Argument))
    return next((argument for argument in found if argument.name == name), None)


seen: list[tuple[StoreAddress, StoreOptions]] = []


@click.command("try", cls=MirrorCommand)
@click.argument("address", type=MirrorURL())
@store_options
def command(address: StoreAddress, store: StoreOptions) -> None:
    """Take what is given."""
    seen.append((address, store))


@pytest.fixture(autouse=True)
def _settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_file, "SETTINGS_BASE", str(tmp_path))
    (tmp_path / "store1.toml").write_text(
        'datastore = "/srv/store1"\nto = "s3://backups/one"\nregion = "here"\nprofile = "file"\nparallel = 3\n'
    )
    (tmp_path / "nowhere.toml").write_text('datastore = "/srv/nowhere"\nregion = "here"\n')


@pytest.mark.parametrize("given", ["store1", "/srv/store1"])
def test_its_settings_hold(given: str) -> None:
    done = CliRunner().invoke(command, [given, "--profile", "line"])
    assert done.exit_code == 0, done.output
    assert seen.pop() == (StoreAddress("backups", "one"), StoreOptions(region="here", profile="line"))


def test_a_url_is_a_url() -> None:
    assert CliRunner().invoke(command, ["s3://backups/other"]).exit_code == 0
    assert seen.pop() == (StoreAddress("backups", "other"), StoreOptions())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nowhere", "nowhere has no mirror that is known here"),
        ("/srv/unknown", "/srv/unknown has no mirror that is known here"),
        ("unknown", "s3://"),
        ("../store1", "s3://"),
    ],
)
def test_what_is_no_mirror_is_wrong_usage(given: str, said: str) -> None:
    done = CliRunner().invoke(command, [given])
    assert done.exit_code == 2
    assert said in done.output
    assert seen == []


_MIRRORS = [command for command in COMMANDS.values() if _argument(command, "address") is not None]


@pytest.mark.parametrize("of_mirror", _MIRRORS, ids=lambda command: str(command.name))
def test_each_command_about_a_mirror_takes_the_name_alone(of_mirror: click.Command) -> None:
    rest = ["/srv/new"] if _argument(of_mirror, "target") else []
    with of_mirror.make_context(of_mirror.name, ["store1", *rest]) as context:
        assert context.params["address"] == StoreAddress("backups", "one")
        assert context.params["region"] == "here"


def test_they_are_all_there() -> None:
    assert {command.name for command in _MIRRORS} == {
        *("snapshots", "restore", "verify", "drill", "handover", "takeback"),
    }


def test_each_datastore_that_a_command_is_about_may_be_a_name() -> None:
    by_path = {
        (*path, parameter.opts[0])
        for path, command in COMMANDS.items()
        for parameter in command.params
        if parameter.name in ("datastore", "into") and parameter.type is not DATASTORE
    }
    # The first makes the file of the name.
    assert by_path == {("config", "init", "datastore")}


def test_a_state_directory_may_be_a_name(tmp_path: Path) -> None:
    (tmp_path / "store2.toml").write_text('datastore = "/srv/store2"\nstate-dir = "/srv/state2"\n')
    expected = {"store1": f"{DEFAULT_BASE}/srv-store1", "store2": "/srv/state2", "./store1": "./store1", "no": "no"}
    taking = [command for path, command in COMMANDS.items() if _argument(command, "state_dir") is not None]
    assert {command.name for command in taking} == {"list", "export", "import", "plan", "run"}
    for command in taking:
        taken = _argument(command, "state_dir")
        assert taken is not None
        assert {given: taken.type.convert(given, None, None) for given in expected} == expected
