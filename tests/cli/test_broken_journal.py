"""Nobody is told that all is published, or well, while changes are missing in the journal."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from mirrorfs.cli import status, umount, wait
from mirrorfs.filesystem.condition import Condition
from mirrorfs.supervision import asking, registry
from mirrorfs.supervision.registry import Registration, RunningMount

ANSWER = {
    "datastore": "/srv/a",
    "bucket": "b",
    "prefix": "n",
    "uploader": {"refused": None, "phase": "mirroring"},
    "store": {"up": True, "place": "s3://b", "confirmation": "put-checksum", "clock_is_trusted": True},
    "claim": {"looked_at": 1_700_000_000.0, "is_current": True},
    "uploaded": {"objects": 0, "bytes": 0, "bytes_per_second": 0.0},
    "snapshots": [],
    "recovery_point": {"missing": 0, "oldest": None, "finished": None, "age_seconds": 0.0},
    "chunks": 0,
    "foreign": {"count": 0, "examples": []},
    "problems": [],
    "quarantined": {"count": 0, "examples": []},
    "retention": {"held": [], "deleted": [], "refused": {"count": 0, "examples": []}},
}


@pytest.fixture
def datastore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A directory that is taken for a mount whose uploader answers that all is well."""
    monkeypatch.setattr(registry, "RUNTIME_BASE", str(tmp_path / "run"))
    monkeypatch.setattr(registry, "is_mounted", lambda _: True)
    for module in (asking, umount):
        monkeypatch.setattr(module, "condition_of", lambda _: Condition.SERVING)
    for module in (asking, wait):
        monkeypatch.setattr(module, "ask", lambda *_: ANSWER)
    path = tmp_path / "datastore"
    path.mkdir()
    return os.path.realpath(path)


def test_it_is_told_until_it_is_made_good(datastore: str) -> None:
    registration = Registration(RunningMount(datastore, datastore, "/state", os.getpid()))
    registration.begin()
    assert CliRunner().invoke(wait.command, [datastore]).exit_code == 0
    assert CliRunner().invoke(status.command, [datastore]).exit_code == 0
    registration.set_journal_broken_since(1_700_000_000.0)
    for command, arguments in ((wait.command, []), (status.command, []), (umount.command, ["--drain"])):
        result = CliRunner().invoke(command, [datastore, *arguments])
        assert result.exit_code == 1
        assert "the journal cannot be written since 2023-11-14T22:13:20Z" in result.output
    assert '"journal_broken_since": 1700000000.0' in CliRunner().invoke(status.command, [datastore, "--json"]).output
    registration.set_journal_broken_since(None)
    assert CliRunner().invoke(wait.command, [datastore]).exit_code == 0
    assert CliRunner().invoke(status.command, [datastore]).exit_code == 0
    registration.end()
    assert registry.find(datastore) is None


def test_a_note_that_cannot_be_written_ends_nothing(datastore: str, monkeypatch: pytest.MonkeyPatch) -> None:
    registration = Registration(RunningMount(datastore, datastore, "/state", os.getpid()))
    registration.set_journal_broken_since(1.0)
    registration.begin()
    noted = registry.find(datastore)
    assert noted is not None
    assert noted.journal_broken_since == 1.0
    monkeypatch.setattr(registry, "RUNTIME_BASE", "/dev/null/run")
    registration.set_journal_broken_since(None)
