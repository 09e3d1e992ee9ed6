"""A command about a mirror takes the datastore that it is one of, by name or by path."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mirrorfs.cli import settings_file
from mirrorfs.cli.mirror_of import MirrorCommand, MirrorURL
from mirrorfs.cli.options import store_options
from mirrorfs.objectstore.url import StoreAddress, StoreOptions

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
