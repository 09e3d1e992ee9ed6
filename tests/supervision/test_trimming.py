"""Trimming follows the uploader, and ends no mount."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from mirrorfs.database.environment import Environment
from mirrorfs.database.errors import DatabaseError
from mirrorfs.journal.journal import JournalWriter, Position
from mirrorfs.supervision.trimming import Trimming
from tests.journal.test_journal import pairs


@pytest.mark.trio
async def test_a_journal_that_cannot_be_trimmed_is_trimmed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = JournalWriter(str(tmp_path))
    journal.append_all([b"vm/1", b"vm/2", b"vm/3"])
    trimming = Trimming(journal)
    failed = trio.Event()

    def fail(*_: object) -> None:
        trio.from_thread.run_sync(failed.set)
        raise DatabaseError("no space left on device")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trimming.run)
        with monkeypatch.context() as patch:
            patch.setattr(Environment, "update", fail)
            trimming.done_up_to(Position(journal.generation, 1))
            await failed.wait()
            await trio.testing.wait_all_tasks_blocked(0.01)
        trimming.done_up_to(Position(journal.generation, 2))
        while journal._environment.entries(b"records") > 1:
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    journal.close()
    assert pairs(tmp_path) == [(3, b"vm/3")]
