"""What a bucket is for: datastores, deleted snapshots and past moments are brought back from it and looked at."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.harness.auditor import Auditor
from tests.harness.mirror import Mirror
from tests.harness.moment import Moment
from tests.harness.scan import FoundDatastore, compare_datastores, scan_datastore
from tests.harness.statistics import Statistics


class Restores:
    """For a mirror that is done. `look` tells what its datastore has; `target` is made and removed each time."""

    def __init__(
        self,
        mirror: Mirror,
        auditor: Auditor,
        look: Callable[[], FoundDatastore],
        target: Path,
        statistics: Statistics,
    ) -> None:
        self._mirror, self._auditor, self._look, self._target = mirror, auditor, look, target
        self._statistics = statistics
        self._moment: Moment | None = None

    def compare_all(self) -> None:
        """Rebuild the datastore from the bucket alone, and compare it byte for byte; if there is anything in it."""
        found = self._look()
        if not found.finished and not found.namespaces:
            return
        with self._restored("restore from the bucket alone") as target:
            if target is not None and not self._look().damaged:
                differences = compare_datastores(found.root, target).differences
                self._statistics.violate(f"P1 restored: {different}" for different in differences)

    def bring_back_a_deleted_snapshot(self, choice: random.Random) -> None:
        """Look whether one that is kept is whole; `snapshots --deleted` must list just those."""
        standing = self._auditor.deleted_snapshots()
        listed = self._mirror.deleted_snapshots()
        self._statistics.violate(
            f"P2 {path}: 'snapshots --deleted' {'lists' if path in listed else 'does not list'} it"
            for path in sorted(standing ^ set(listed))
        )
        if not standing:
            return
        path = choice.choice(sorted(standing))
        with self._restored("restore of a deleted snapshot", "--deleted", "--snapshot", path) as target:
            if target is not None and set(scan_datastore(target).finished) != {path}:
                self._statistics.violate([f"P1 {path}: restored from the deleted ones, and not whole"])

    def note_moment(self) -> None:
        """Remember what there is, to bring it back from the versions that the bucket keeps."""
        self._moment = Moment.now(self._look())

    def compare_the_moment(self) -> None:
        """Rebuild what was noted, if anything was."""
        if self._moment is None:
            return
        with self._restored("restore as of a noted moment", "--as-of", str(self._moment)) as target:
            if target is not None:
                differences = self._moment.differences(target)
                self._statistics.violate(f"P1 restored as of {self._moment}: {different}" for different in differences)

    @contextmanager
    def _restored(self, check: str, *options: str) -> Iterator[Path | None]:
        """A restored datastore, or None when that failed, which is a violation."""
        # Groups are renamed here in more ways than PBS does, and manifests are left alone by that.
        sentence = self._mirror.restore(self._target, "--renamed", *options)
        if sentence is not None:
            self._statistics.violate([f"P1 {check} {' '.join(options)} fails: {sentence}"])
        self._statistics.checks[check] += 1
        try:
            yield self._target if sentence is None else None
        finally:
            shutil.rmtree(self._target, ignore_errors=True)
