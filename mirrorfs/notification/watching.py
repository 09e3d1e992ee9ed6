"""When something is told: looks at a mirror, counted, so that neither a moment's trouble nor a flicker is news."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mirrorfs.notification.event import KINDS, Kind
from mirrorfs.replication.verdict import NOTHING_TO_DO, Verdict, Word


@dataclass(frozen=True, slots=True)
class News:
    """Something to be told, and what is told about it."""

    kind: Kind
    verdict: Verdict


class Watching:
    """What one way of telling has told, and what it is to tell now.

    Looks are counted, not timed: a machine that was stopped for an hour has seen nothing meanwhile.
    """

    def __init__(self, told: Iterable[Word], looks: int) -> None:
        """`told` is what has been told and not taken back; what is so, or so no more, at `looks` looks is news."""
        self._told = set(told)
        self._looks = looks
        self._seen: Counter[Word] = Counter()
        self._missed: Counter[Word] = Counter()

    @property
    def told(self) -> frozenset[Word]:
        """What has been told and not taken back."""
        return frozenset(self._told)

    def look(self, verdicts: Sequence[Verdict]) -> list[News]:
        """Take what is so now, gravest first, and return what is to be told."""
        now = {verdict.word: verdict for verdict in verdicts if verdict.word in KINDS}
        for word in KINDS:
            self._seen[word] = self._seen[word] + 1 if word in now else 0
            self._missed[word] = 0 if word in now else self._missed[word] + 1
        new = [word for word in now if word not in self._told and self._seen[word] >= self._looks]
        ended = {word for word in self._told if self._missed[word] >= self._looks}
        self._told = (self._told - ended) | set(new)
        news = [News(KINDS[word], now[word]) for word in new]
        if ended and not self._told:
            news.append(News(Kind.RECOVERED, _well_again(verdicts)))
        return news


def _well_again(verdicts: Sequence[Verdict]) -> Verdict:
    if not verdicts:
        return Verdict(Word.HEALTHY, "What was told before is over.", NOTHING_TO_DO)
    return Verdict(Word.HEALTHY, f"What was told before is over. {verdicts[0].why}", verdicts[0].to_do)
