"""Mutations of the product: how a process is started that is broken on purpose (tests/harness/mutations/)."""

from __future__ import annotations

import os
from pathlib import Path

MUTATIONS = (
    "skip-confirmation",
    "publish-early",
    "delete-without-reference-check",
    "drop-journal-record",
    "no-syncfs",
    "share-the-name",
    "stumble",
)
"""skip-confirmation: a PUT counts as confirmed when it was answered.
publish-early: a manifest does not wait for its chunks, every fourth of which takes seconds.
delete-without-reference-check: the object of a chunk that is gone locally goes, whoever needs it.
drop-journal-record: a third of all names (by their CRC-32) never gets into the journal; a reconcile at the next start
makes that good, so look while the mount is up.
no-syncfs: the rename of a manifest is answered without any sync.
share-the-name: whoever else claims the name in the bucket, the mirror goes on.
stumble: the uploader ends by an error that nobody expected, each time that it is begun."""

COUNT_IN_SMALL_PARTS = "count-in-small-parts"
"""A variation, which breaks nothing: the references of a snapshot are counted three at a time, as those of one with
millions of chunks are by thousands."""

SCRUB_IN_A_HURRY = "scrub-in-a-hurry"
"""A variation: the scrub reads one object after the other, where a whole mirror may be read in a day at most."""
VARIATIONS = (COUNT_IN_SMALL_PARTS, SCRUB_IN_A_HURRY)

_DIRECTORY = Path(__file__).parent / "mutations"
_REPOSITORY = Path(__file__).parents[2]


def environment_of(mutation: str) -> dict[str, str]:
    """What to add to a process' environment, so that it and its children are broken, or varied. Raises ValueError."""
    if mutation not in (*MUTATIONS, *VARIATIONS):
        raise ValueError(f"no mutation {mutation}: it is one of {', '.join(MUTATIONS)}")
    # The repository too: the package must be found before the program has set its own path.
    paths = [str(_DIRECTORY), str(_REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "MIRRORFS_MUTATION": mutation}


def is_active(mutation: str, standard_error: str) -> bool:
    """Whether a process that was started so has said that it is broken: without this, a run proves nothing."""
    return f"mutation {mutation} is active" in standard_error.splitlines()
