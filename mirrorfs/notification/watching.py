"""When something is told: looks at a mirror, counted, so that neither a moment's trouble nor a flicker is news."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mirrorfs.notification.event import KINDS, Kind
from mirrorfs.replication.verdict import NOTHING_TO_DO, Verdict, Word


@dataclass(frozen=True, slots=True)
class Look:
    """What was so at one look, gravest first.

    `judged` are the words that could be judged: of the others it is not known whether they are still so.
    """

    verdicts: Sequence[Verdict]
    judged: frozenset[Word] = frozenset(KINDS)


@dataclass(frozen=True, slots=True)
class News:
    """Something to be told, and what is told about it."""

    kind: Kind
    verdict: Verdict
    told: frozenset[Word]
    """What has been told and not taken back, once this is told too."""


class Watching:
    """What one way of telling has told, and what it is to tell now.

    Looks are counted, not timed: a machine that was stopped for an hour has seen nothing meanwhile.
    """

    def __init__(self, told: Iterable[Word], looks: int) -> None:
        """`told` is what has been told and not taken back; what is so, or so no more, at `looks` looks is news."""
        self.told = frozenset(told)
        """What has been told and not taken back."""
        self._looks = looks
        self._seen: Counter[Word] = Counter()
        self._missed: Counter[Word] = Counter()
        self._now: dict[Word, Verdict] = {}
        self._verdicts: Sequence[Verdict] = ()

    def look(self, look: Look) -> None:
        """Take what is so now."""
        self._verdicts = look.verdicts
        found = {verdict.word: verdict for verdict in look.verdicts if verdict.word in look.judged}
        for word in look.judged:
            self._seen[word] = self._seen[word] + 1 if word in found else 0
            self._missed[word] = 0 if word in found else self._missed[word] + 1
            self._now.pop(word, None)
        self._now |= found
        left = self.told - self._ended()
        # The last one that ends is told, as the end of all.
        self.told = left or self.told

    def news(self) -> News | None:
        """Return what is to be told first; it stays news until `has_told` says that it was told."""
        for word in KINDS:
            if word in self._now and word not in self.told and self._seen[word] >= self._looks:
                return News(KINDS[word], self._now[word], self.told - self._ended() | {word})
        if self.told and self.told == self._ended():
            return News(Kind.RECOVERED, _well_again(self._verdicts), frozenset())
        return None

    def has_told(self, news: News) -> None:
        """Note that it was told."""
        self.told = news.told

    def _ended(self) -> frozenset[Word]:
        return frozenset(word for word in self.told if self._missed[word] >= self._looks)


def _well_again(verdicts: Sequence[Verdict]) -> Verdict:
    if not verdicts:
        return Verdict(Word.HEALTHY, "What was told before is over.", NOTHING_TO_DO)
    return Verdict(Word.HEALTHY, f"What was told before is over. {verdicts[0].why}", verdicts[0].to_do)
