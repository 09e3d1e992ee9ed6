"""What stands in a datastore's settings file holds for `replay run` and `replay plan` too, where it can be meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mirrorfs.cli import replay_plan, replay_run, settings_file

FILE = """
datastore = "{datastore}"
to = "s3://backups/store1"
endpoint-url = "https://s3.example.com"
parallel = 3
[retention]
delete_after = "30d"
[verify]
percent_per_day = 5
"""


class Stop(Exception):
    """The command has understood what it is to do."""


@pytest.fixture
def datastore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(settings_file, "SETTINGS_BASE", str(tmp_path / "settings"))
    (tmp_path / "settings").mkdir()
    path = tmp_path / "datastore"
    path.mkdir()
    (tmp_path / "settings" / "store1.toml").write_text(FILE.format(datastore=path))
    return path


def understood(command: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:  # noqa: ANN401
    """How a command understands its arguments."""
    parameters: dict[str, Any] = {}

    def keep(**given: Any) -> None:  # noqa: ANN401
        parameters.update(given)
        raise Stop

    monkeypatch.setattr(command, "callback", keep)
    result = CliRunner().invoke(command, ["/state", *arguments])
    assert isinstance(result.exception, Stop), result.output
    return parameters


@pytest.mark.parametrize("name", ["store1", ""])
def test_a_run_takes_bucket_store_and_retention_from_there(
    datastore: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    found = understood(replay_run.run, monkeypatch, "--datastore", name or str(datastore))
    assert str(found["address"]) == "s3://backups/store1"
    assert found["endpoint_url"] == "https://s3.example.com"
    assert (found["parallel"], found["retention_delete_after"]) == (3, 30 * 86400.0)


def test_what_is_given_wins(datastore: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--datastore", str(datastore), "--retention-delete-after", "1d", "--endpoint-url", "http://other")
    found = understood(replay_run.run, monkeypatch, *arguments)
    assert (found["retention_delete_after"], found["endpoint_url"]) == (86400.0, "http://other")


def test_another_bucket_is_not_in_the_store_of_the_file(datastore: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--datastore", str(datastore), "--to", "s3://elsewhere/store1")
    found = understood(replay_run.run, monkeypatch, *arguments)
    assert (str(found["address"]), found["endpoint_url"]) == ("s3://elsewhere/store1", None)
    assert found["retention_delete_after"] == 30 * 86400.0


def test_a_plan_asks_the_bucket_only_if_it_is_told_to(datastore: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert understood(replay_plan.plan, monkeypatch, "--datastore", str(datastore))["address"] is None
    arguments = ("--datastore", str(datastore), "--to", "s3://backups/store1")
    assert understood(replay_plan.plan, monkeypatch, *arguments)["endpoint_url"] == "https://s3.example.com"
