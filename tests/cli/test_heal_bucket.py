"""What `mirrorfs heal --bucket` tells of its work without a mount."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mirrorfs.cli import heal_bucket
from mirrorfs.objectstore.url import StoreAddress, StoreOptions
from mirrorfs.recovery.selection import Selection
from mirrorfs.recovery.verification import Damage, VerificationReport
from mirrorfs.replay.run import Outcome
from mirrorfs.replication.settings import UploaderSettings
from mirrorfs.state.problems import Problem

ADDRESS = StoreAddress("backups", "store1")
LOST = Problem("in the bucket: vm/1/owner", "told with the damages", 1.0)
PROBLEM = Problem("vm/1/2026-01-01T00:00:00Z", "its manifest lists disk.img.fidx, which is missing", 1.0)


class Run:
    """Stands for a repair that leaves a problem and a snapshot that is held."""

    def run(self) -> Outcome:
        return Outcome("", 0, 0, 1, [LOST, PROBLEM], ["vm/2/2026-01-01T00:00:00Z"])


@contextmanager
def replay(*arguments: object) -> Iterator[Run]:
    yield Run()


def test_what_is_left_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = VerificationReport((), (Damage("vm/1/owner", "it is damaged"),), 0, frozenset(), 0, 0, 0, 0, 0)
    settings = UploaderSettings(str(tmp_path), str(tmp_path), -1, ADDRESS.bucket, ADDRESS.prefix, StoreOptions())
    monkeypatch.setattr(heal_bucket, "verified", lambda *arguments: report)
    monkeypatch.setattr(heal_bucket, "_settings_of_mount", lambda path, address: settings)
    monkeypatch.setattr(heal_bucket, "begin_log", lambda *arguments, **options: None)
    monkeypatch.setattr(heal_bucket, "Replay", replay)
    heal_bucket.heal_bucket(
        str(tmp_path), ADDRESS, Selection(), dry_run=False, parallel=1, store=StoreOptions(), as_json=False
    )
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "1 names cannot be mirrored as they are:",
        f"  {PROBLEM.name}: {PROBLEM.reason}",
        "1 snapshots are gone from the datastore, and are held in the bucket:",
        "  vm/2/2026-01-01T00:00:00Z",
        f"  If they are to go, mount {tmp_path}, and give 'mirrorfs retention approve {tmp_path}'.",
    ]
