"""`mirrorfs status --watch`: a live view on a terminal, elsewhere a line at each change."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

from mirrorfs.cli.screen import View, ViewLine
from mirrorfs.cli.status_text import shown_age, shown_recovery_point, shown_size
from mirrorfs.filesystem.condition import NotAsked
from mirrorfs.output import say, say_json
from mirrorfs.own_files import NotOwn
from mirrorfs.replication.questions import Answer
from mirrorfs.replication.verdict import Word
from mirrorfs.supervision.asking import NoAnswer

_SECONDS = 2.0
_MOST_ON_THEIR_WAY = 10
_MOST_PROBLEMS = 5

Read = Callable[[], Answer]


def watch(answer: Answer, read: Read, *, as_json: bool) -> None:
    """Show a mirror until Ctrl-C, `answer` first; `read` gives the next. That nothing answers is shown too."""
    try:
        if as_json:
            _tell_json(answer, read)
        elif sys.stdout.isatty():
            _draw(answer, read)
        else:
            _tell_changes(answer, read)
    except KeyboardInterrupt:
        return


def _next(read: Read) -> Answer | str:
    """Wait for a moment and ask again; returns a sentence where there is no answer."""
    time.sleep(_SECONDS)
    try:
        return read()
    except (NoAnswer, NotAsked, NotOwn) as error:
        return str(error)


def _tell_json(first: Answer, read: Read) -> None:
    now: Answer | str = first
    while True:
        say_json({"error": now} if isinstance(now, str) else now)
        now = _next(read)


def _tell_changes(first: Answer, read: Read) -> None:
    now: Answer | str = first
    told = ""
    while True:
        line = now if isinstance(now, str) else _line(now)
        if line != told:
            say(f"{datetime.now(UTC).strftime('%Y-%m-%dT%H:%M:%SZ')}  {line}")
            told = line
        now = _next(read)


def _line(answer: Answer) -> str:
    published = sum(one["phase"] == "published" for one in answer["snapshots"])
    missing = answer["recovery_point"]["missing"]
    return (
        f"{answer['word']}: {answer['why']} {published} published, {len(answer.get('publishing', {}))} on their way, "
        f"{missing} missing, {len(answer['problems'])} problems"
    )


def _draw(first: Answer, read: Read) -> None:
    now: Answer | str = first
    rates = _Rates()
    with View() as view:
        while True:
            view.show([ViewLine(now, is_bad=True)] if isinstance(now, str) else _lines(now, rates.rate(now)))
            now = _next(read)


class _Rates:
    """How fast it is between two looks."""

    def __init__(self) -> None:
        self._before: tuple[float, float, int] | None = None

    def rate(self, answer: Answer) -> float | None:
        """Return bytes a second since the last look; None at the first one of an uploader."""
        started, sent = float(answer["uploader"]["started"]), int(answer["uploaded"]["bytes"])
        now = (started, time.monotonic(), sent)
        before, self._before = self._before, now
        if before is None or before[0] != now[0] or now[1] <= before[1]:
            return None
        return max(0.0, (now[2] - before[2]) / (now[1] - before[1]))


def _lines(answer: Answer, rate: float | None) -> list[ViewLine]:
    minute = shown_size(answer["uploaded"]["bytes_per_second"])
    lines = [
        ViewLine(f"{answer['word']}: {answer['why']}", is_bad=answer["word"] == Word.BROKEN.value, is_head=True),
        ViewLine(answer["to_do"]),
        ViewLine(""),
        ViewLine(f"datastore   {answer['datastore']} -> s3://{answer['bucket']}/{answer['prefix']}"),
        ViewLine(f"recovery    {shown_recovery_point(answer['recovery_point'])}"),
        ViewLine(f"sending     {'…' if rate is None else shown_size(rate)}/s; {minute}/s in the last minute"),
    ]
    if "backlog" in answer:
        backlog = answer["backlog"]
        left = backlog["drain_seconds"]
        until = "" if not left else f", done in {shown_age(left)}"
        size = shown_size(backlog["bytes_at_least"])
        lines.append(ViewLine(f"backlog     {backlog['items']} items, at least {size}{until}"))
    return [*lines, *_on_their_way(answer), *_problems(answer)]


def _on_their_way(answer: Answer) -> list[ViewLine]:
    publishing: dict[str, int] = answer.get("publishing", {})
    if not publishing:
        return []
    # What is nearly done first.
    named = sorted(publishing.items(), key=lambda one: (one[1], one[0]))
    shown = [ViewLine(f"  {snapshot}: {chunks} chunks to go") for snapshot, chunks in named[:_MOST_ON_THEIR_WAY]]
    return [ViewLine(""), ViewLine("on their way", is_head=True), *shown, *_more(len(named), _MOST_ON_THEIR_WAY)]


def _problems(answer: Answer) -> list[ViewLine]:
    problems = answer["problems"]
    if not problems:
        return []
    shown = [ViewLine(f"  {one['name']}: {one['reason']}", is_bad=True) for one in problems[:_MOST_PROBLEMS]]
    return [ViewLine(""), ViewLine("problems", is_head=True), *shown, *_more(len(problems), _MOST_PROBLEMS)]


def _more(count: int, shown: int) -> list[ViewLine]:
    return [ViewLine(f"  and {count - shown} more")] if count > shown else []
