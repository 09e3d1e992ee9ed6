"""`mirrorfs replay list`: the records of a journal one by one, and what they come to."""

from __future__ import annotations

import base64
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mirrorfs.datastore.names import chunk_path
from mirrorfs.datastore.patterns import PathPattern
from mirrorfs.journal.journal import Record
from mirrorfs.journal.view import JournalDamage, was_closed_cleanly
from mirrorfs.replay.names import kind_of, knowledge_of
from mirrorfs.replay.source import Source
from mirrorfs.state.chunks import ChunkState
from mirrorfs.state.contents import ContentState

_STATE_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Filter:
    """Which records are listed: those that pass all that is given.

    `patterns` are shell patterns of whole paths, in which `*` also matches `/`; `since` and `until` Unix times.
    """

    patterns: tuple[str, ...] = ()
    kinds: frozenset[str] = frozenset()
    since: float | None = None
    until: float | None = None
    only_pending: bool = False
    _compiled: list[re.Pattern[bytes]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        """Raises MalformedPattern."""
        for pattern in self.patterns:
            self._compiled.append(PathPattern(pattern).compiled())

    @property
    def is_given(self) -> bool:
        """Whether anything is left out."""
        return bool(self.patterns or self.kinds or self.only_pending) or (self.since, self.until) != (None, None)

    def passes_name(self, path: bytes, kind: str) -> bool:
        """Tell whether a name is to be listed."""
        if self.kinds and kind not in self.kinds:
            return False
        return not self._compiled or any(pattern.fullmatch(path) for pattern in self._compiled)

    def passes(self, record: Record, kind: str, dealt_with: bool | None) -> bool:
        """Tell whether a record is to be listed; what is not known to be dealt with is pending."""
        if self.since is not None and record.time < self.since:
            return False
        if self.until is not None and record.time > self.until:
            return False
        if self.only_pending and dealt_with:
            return False
        return self.passes_name(record.path, kind)


@dataclass(frozen=True, slots=True)
class Line:
    """A name with what is known of it. Names that only the state knows have no `record`."""

    path: bytes
    kind: str
    record: Record | None
    dealt_with: bool | None
    knowledge: dict[str, Any] | None

    def as_json(self) -> dict[str, Any]:
        """Return it as docs/replay.md describes it."""
        value: dict[str, Any] = {"type": "name" if self.record is None else "record"}
        if self.record is not None:
            value |= {"sequence": self.record.sequence, "time": self.record.time}
        value |= {**path_as_json(self.path), "kind": self.kind}
        if self.record is not None:
            value["dealt_with"] = self.dealt_with
        if self.knowledge is not None:
            value["state"] = self.knowledge
        return value


def path_as_json(path: bytes) -> dict[str, str]:
    """Return `path` as text, and, if it is not UTF-8, its bytes beside that: then the text has U+FFFD for some."""
    try:
        return {"path": path.decode()}
    except UnicodeDecodeError:
        return {"path": path.decode(errors="replace"), "path_base64": base64.b64encode(path).decode()}


class Listing:
    """The names of a source that pass a filter. Counts while they are read."""

    def __init__(self, source: Source, wanted: Filter, *, with_state: bool) -> None:
        """Without a journal, `with_state` lists the names that the state knows."""
        self._source = source
        self._wanted = wanted
        self._with_state = with_state
        self.records = 0
        self.dealt_with = 0
        self.listed = 0
        self.kinds: Counter[str] = Counter()

    def head(self) -> dict[str, Any]:
        """Return what is known before anything is read, ready for JSON."""
        source, journal, identity = self._source, self._source.journal, self._source.identity
        position = source.position
        return {
            "type": "journal",
            "journal": source.place.journal,
            "state": source.place.state,
            "generation": None if journal is None else journal.generation or None,
            "last_sequence": None if journal is None else journal.last_sequence(),
            "closed_cleanly": None if source.place.journal is None else was_closed_cleanly(source.place.journal),
            "datastore": source.datastore,
            "bucket": None if identity is None else identity.bucket,
            "prefix": None if identity is None else identity.prefix,
            "position": (
                None if position is None else {"generation": position.generation, "sequence": position.sequence}
            ),
        }

    def lines(self) -> Iterator[Line]:
        """Yield the records in order; without a journal the names that the state knows. Raises DatabaseError."""
        if self._source.journal is not None:
            lines = self._of_journal()
        elif self._with_state:
            lines = self._of_state()
        else:
            return
        for line in lines:
            self.listed += 1
            self.kinds[line.kind] += 1
            yield line

    def _of_journal(self) -> Iterator[Line]:
        source = self._source
        assert source.journal is not None
        for record in source.journal.records():
            kind, dealt_with = kind_of(record.path), source.is_dealt_with(record)
            self.records += 1
            self.dealt_with += bool(dealt_with)
            if self._wanted.passes(record, kind, dealt_with):
                yield Line(record.path, kind, record, dealt_with, self._knowledge(record.path))

    def _of_state(self) -> Iterator[Line]:
        for path in self._state_names():
            kind = kind_of(path)
            if self._wanted.passes_name(path, kind):
                yield Line(path, kind, None, None, self._knowledge(path))

    def _state_names(self) -> Iterator[bytes]:
        """Yield the datastore's names of all objects that the state knows, what is below `.cnt` first."""
        after = ""
        while contents := self._contents_after(after):
            for content in contents:
                yield os.fsencode(content.path.removesuffix("/.namespace"))
            after = contents[-1].path
        digest = b""
        while chunks := self._chunks_after(digest):
            for digest, _ in chunks:
                yield os.fsencode(chunk_path(digest))

    def _contents_after(self, path: str) -> list[ContentState]:
        return self._source.ask_state(lambda state: state.contents.after(path, _STATE_BATCH)) or []

    def _chunks_after(self, digest: bytes) -> list[tuple[bytes, ChunkState]]:
        return self._source.ask_state(lambda state: state.chunks.after(digest, _STATE_BATCH)) or []

    def _knowledge(self, path: bytes) -> dict[str, Any] | None:
        if not self._with_state:
            return None
        return self._source.ask_state(lambda state: knowledge_of(state, path))

    def summary(self) -> dict[str, Any]:
        """Return what the lines came to, ready for JSON; to be called after them."""
        journal = self._source.journal
        is_known = journal is not None and self._source.position_is_known
        return {
            "type": "summary",
            "listed": self.listed,
            "records": self.records,
            "dealt_with": self.dealt_with if is_known else None,
            "pending": self.records - self.dealt_with if is_known else None,
            "kinds": dict(sorted(self.kinds.items())),
            "damage": damage_as_json(self._source),
        }


def damage_as_json(source: Source) -> dict[str, Any]:
    """Return where a source turned out damaged, ready for JSON."""
    journal = source.journal
    return {
        "count": 0 if journal is None else journal.damage_count,
        "places": [] if journal is None else [_place_as_json(damage) for damage in journal.damages],
        "journal": source.journal_trouble,
        "state": source.state_trouble,
    }


def _place_as_json(damage: JournalDamage) -> dict[str, Any]:
    return {
        "after": damage.after,
        "page": damage.page,
        "offset": damage.offset,
        "file_length": damage.file_length,
        "what": damage.what,
    }


def describe_damage(source: Source) -> list[str]:
    """Return sentences about what could not be read, where that is and what it means; none if all is well."""
    lines = []
    journal = source.journal
    if journal is not None and journal.damages:
        lines.append(
            f"the journal {journal.path} is damaged in {journal.damage_count} "
            f"place{'s' if journal.damage_count > 1 else ''}; this could not be read:"
        )
        lines += [f"  {_describe_place(damage)}" for damage in journal.damages]
        if journal.damage_count > len(journal.damages):
            lines.append(f"  and {journal.damage_count - len(journal.damages)} places more")
        lines.append(
            "What that means: names that changed may be missing from the list, and names near the damage may have been "
            "dealt with or recorded again since. Nothing is lost by that as long as the datastore is there: a mount, "
            "and 'replay run', compare all of it with what the bucket is known to hold."
        )
    if source.journal_trouble is not None:
        lines.append(
            f"{source.journal_trouble}. What that means: which names changed last is not known. As long as the "
            "datastore is there nothing is lost: a mount, and 'replay run', compare all of it."
        )
    if source.state_trouble is not None:
        lines.append(
            f"{source.state_trouble}. What that means: it is not known what is dealt with; a mount, and 'replay run', "
            "learn it again from the bucket."
        )
    return lines


def _describe_place(damage: JournalDamage) -> str:
    where = f"behind record {damage.after}" if damage.after else "before the first record"
    if damage.page is None:
        return f"{where}: {damage.what}"
    return f"{where}: {damage.what} (it begins at byte {damage.offset}, the file has {damage.file_length})"
