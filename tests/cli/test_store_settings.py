"""Whatever can be set about a store is set by an option, by the settings file, and by the environment alike."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from mirrorfs.cli import settings_file
from mirrorfs.cli.options import store_options
from mirrorfs.cli.settings_file import DatastoreCommand
from mirrorfs.objectstore.url import StoreOptions

_FINGERPRINT = ":".join(["ab"] * 32)
# As it is written in a settings file, and what it means.
SETTINGS: dict[str, tuple[str, Any]] = {
    "endpoint_url": ('"https://s3.example.org"', "https://s3.example.org"),
    "profile": ('"backups"', "backups"),
    "region": ('"eu-west-3"', "eu-west-3"),
    "addressing_style": ('"virtual"', "virtual"),
    "connect_timeout": ("3", 3.0),
    "read_timeout": ("4.5", 4.5),
    "request_timeout": ("50", 50.0),
    "slowest_rate": ("8", 8192.0),
    "checksums": ('"off"', "off"),
    "encryption": ('"aws:kms"', "aws:kms"),
    "kms_key_id": ('"alias/backups"', "alias/backups"),
    "chunk_storage_class": ('"STANDARD_IA"', "STANDARD_IA"),
    "storage_class": ('"STANDARD"', "STANDARD"),
    "ca_bundle": ('"/etc/ssl/own.pem"', "/etc/ssl/own.pem"),
    "fingerprint": (f'"{_FINGERPRINT}"', _FINGERPRINT),
    "proxy": ('"http://proxy.example:3128"', "http://proxy.example:3128"),
}
_NEEDS = {"kms_key_id": "encryption"}

seen: list[StoreOptions] = []


@click.command("try", cls=DatastoreCommand)
@click.argument("datastore")
@store_options
def command(datastore: str, store: StoreOptions) -> None:
    """Take what is given."""
    seen.append(store)


def test_all_are_here() -> None:
    assert set(SETTINGS) == {field.name for field in dataclasses.fields(StoreOptions)}


def _given(name: str) -> list[str]:
    return [name] if name not in _NEEDS else [_NEEDS[name], name]


@pytest.mark.parametrize("way", ["option", "file", "environment"])
@pytest.mark.parametrize("name", SETTINGS)
def test_each_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, way: str) -> None:
    monkeypatch.setattr(settings_file, "SETTINGS_BASE", str(tmp_path))
    arguments, environment, lines = ["/srv/store1"], dict[str, str](), list[str]()
    for one in _given(name):
        written = SETTINGS[one][0]
        match way:
            case "option":
                arguments += [f"--{one.replace('_', '-')}", written.strip('"')]
            case "file":
                lines.append(f"{one.replace('_', '-')} = {written}")
            case _:
                environment[f"TRY_{one.upper()}"] = written.strip('"')
    (tmp_path / "srv-store1.toml").write_text("\n".join(lines))
    result = CliRunner().invoke(command, arguments, env=environment, auto_envvar_prefix="TRY")
    assert result.exit_code == 0, result.output
    expected = {one: SETTINGS[one][1] for one in _given(name)}
    assert seen.pop() == StoreOptions(**expected)


def test_each_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    for name in SETTINGS:
        assert f"--{name.replace('_', '-')}" in text
