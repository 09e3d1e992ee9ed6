"""Timing: samples of one part of an operation on one target, and what a series of them says."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.targets import Target, sync_file_system
from tests.harness.system_calls import Identity


@dataclass(frozen=True, slots=True)
class Part:
    """Something that is timed, and the unit that it is told per: "chunk", "MiB", ... `is_mirrored` tells whether the
    uploader has work with it."""

    name: str
    title: str
    unit: str
    is_mirrored: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """One timing of `count` units. Seconds; processor time of the file system's process is that until the operation
    was answered, that of the uploader until all was mirrored, which took `publication_seconds` more."""

    seconds: float
    count: float
    daemon_seconds: float
    uploader_seconds: float
    publication_seconds: float | None

    @property
    def unit_seconds(self) -> float:
        """Seconds for one unit."""
        return self.seconds / self.count


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of a series and its ends."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises statistics.StatisticsError when there are none."""
        return cls(statistics.median(values), min(values), max(values))


class Meter:
    """Collects samples. Before each one, dirty pages are written and mirroring is at rest, so that none pays for
    what came before it."""

    def __init__(self, base: Path) -> None:
        """`base` is any directory on the backing file system."""
        self._base = base
        self.parts: dict[str, Part] = {}
        self._samples: dict[tuple[str, str], list[Sample]] = {}

    @contextmanager
    def sample(self, part: Part, target: Target, count: float) -> Iterator[None]:
        """Time the block as one sample of `count` units. It acts as PBS's user, to whom the datastore belongs."""
        target.drain()
        sync_file_system(self._base)
        uploader_before, daemon_before = target.uploader_seconds(), target.daemon_seconds()
        with Identity.for_datastore(str(target.backing)).acting():
            began = time.perf_counter()
            yield
            elapsed = time.perf_counter() - began
        daemon = target.daemon_seconds() - daemon_before
        publication = target.drain()
        uploader = target.uploader_seconds() - uploader_before
        target.rest()
        self.parts[part.name] = part
        series = self._samples.setdefault((part.name, target.name), [])
        series.append(Sample(elapsed, count, daemon, uploader, publication))

    def samples(self, part: Part, target: str) -> list[Sample]:
        """The series of a part on a target, in the order of the rounds."""
        return self._samples.get((part.name, target), [])

    def ratios(self, part: Part, target: str, reference: str) -> Spread | None:
        """Times of a target over times of the reference, round by round; None without samples."""
        pairs = zip(self.samples(part, target), self.samples(part, reference), strict=True)
        ratios = [sample.unit_seconds / other.unit_seconds for sample, other in pairs]
        return Spread.of(ratios) if ratios else None
