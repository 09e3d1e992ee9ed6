"""What the harness believes PBS to hold: a power cut takes what was not durable, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.test_crashes import TINY
from tests.harness.model import Model
from tests.harness.scan import scan_datastore
from tests.harness.writer import DatastoreWriter


@pytest.mark.parametrize("is_synced", [True, False])
def test_a_chunk_that_was_brought_again_may_get_lost_until_something_syncs(tmp_path: Path, is_synced: bool) -> None:
    model = Model()
    with DatastoreWriter(tmp_path / "datastore", seed=3, default_plan=TINY) as writer:
        writer.create(chunk_directories="when needed")
        written = writer.backup("vm/1")
        model.wrote(written)
        (digest, *_) = sorted(written.inserted)
        model.rotten.add(digest)
        model.healed.add(digest)
        # A look that finds all well makes nothing durable.
        assert model.resolve(scan_datastore(writer.path)) == []
        if is_synced:
            model.synced()
        model.lost_power()
        writer.corrupt_chunk(digest)
        assert bool(model.resolve(scan_datastore(writer.path))) is is_synced
