"""`mirrorfs replay plan`: what a run would do now about each name, and why, without doing it.

Or what a repair would, for `mirrorfs heal --bucket --dry-run` without a mount.

It is told by the parts of the mirror that would do it, from the state as it is, or, for a bucket that the state does
not know, from one that is built for the moment out of what the bucket holds. Neither bucket nor state are changed.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import trio

from mirrorfs.database.errors import DatabaseError
from mirrorfs.datastore.names import CHUNKS_NAME, GroupFileName, SnapshotDirectoryName, classify
from mirrorfs.journal.journal import JournalSource, Record
from mirrorfs.journal.view import NoJournal
from mirrorfs.replay.listing import path_as_json
from mirrorfs.replay.run import end_on_signal, refuse_to_repair_what_is_unknown
from mirrorfs.replay.source import Source
from mirrorfs.replication.comparing.differences import Difference
from mirrorfs.replication.engine import Engine
from mirrorfs.replication.ownership.claim import ClaimRefused, is_known
from mirrorfs.replication.scrubbing.healing import Healing
from mirrorfs.replication.settings import UploaderSettings
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.replication.work.items import ForeignItem, Item, SubtreeItem, item_of
from mirrorfs.state.identity import Identity
from mirrorfs.state.state import State

# Several records in a row are often of one snapshot.
_REMEMBERED = 1000
_RECORDS_AT_ONCE = 200
_NOTHING = "nothing"
_LEAVE = "leave"
_COMPARE = "compare"


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """What is planned: as ReplaySettings; with `asks_store` the bucket itself is asked, else only the state.

    `command` is what would be given to have it done.
    """

    uploader: UploaderSettings
    asks_store: bool
    first: int | None = None
    only_journal: bool = False
    command: str = "replay run"


@dataclass(frozen=True, slots=True)
class Step:
    """What would be done about a name: `send`, `compare`, `delete`, `none` (it cannot be mirrored), `nothing`, `leave`.

    `name` is the object's name in the datastore (with a "/" at the end for a snapshot as a whole), `record` the record
    that leads to it, None for what only comparing the datastore finds.
    """

    action: str
    name: str
    why: str
    record: Record | None

    def as_json(self) -> dict[str, Any]:
        """Return it as docs/replay.md describes it."""
        value: dict[str, Any] = {"type": "step", "action": self.action, "name": self.name, "why": self.why}
        value["sequence"] = None if self.record is None else self.record.sequence
        return value if self.record is None else value | path_as_json(self.record.path)


Tell = Callable[[Step], Awaitable[None]]


class Plan:
    """One plan; to be entered."""

    def __init__(self, source: Source, settings: PlanSettings) -> None:
        """`source` is entered already, and stays the caller's."""
        self._source = source
        self._settings = settings
        self._opened = ExitStack()
        self._recent: OrderedDict[Item, list[Difference]] = OrderedDict()
        self.counts: Counter[str] = Counter()
        self.notes: list[str] = []
        """Sentences about what the plan rests on, and why a run would be refused; complete after `tell`."""

    def __enter__(self) -> Plan:
        """Open the datastore. Raises DatabaseError where it cannot be."""
        path = self._settings.uploader.datastore
        try:
            root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise DatabaseError(f"cannot open the datastore {path}: {error.strerror}. Is its disk mounted?") from error
        self._opened.callback(os.close, root)
        self._root = root
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    async def tell(self, tell: Tell) -> None:
        """Tell each step: the journal's names in order, then what comparing the datastore would find beside them.

        Raises StoreError where the bucket cannot be read, DatabaseError for journal and state, ReplayEnded if a signal
        has asked for the end; all of them in a group.
        """
        journal = self._source.journal or NoJournal()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end_on_signal)
            engine = await self._doubted_engine(nursery, journal)
            records = self._records(engine)
            while steps := await trio.to_thread.run_sync(self._of_records, engine, records):
                for step in steps:
                    await self._add(tell, step)
            if not self._settings.only_journal:
                await self._compare(engine, tell)
            nursery.cancel_scope.cancel()

    async def foresee_healing(self, damages: Mapping[str, str]) -> Healing:
        """Tell what a repair would do about objects of the bucket that were just found damaged, by datastore path each
        with what is wrong with it. Raises as `tell` does, and ReplayRefused where a repair would not know the bucket.
        """
        refuse_to_repair_what_is_unknown(self._source, self._settings.uploader)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end_on_signal)
            engine = await self._doubted_engine(nursery, self._source.journal or NoJournal())
            healing = await engine.mirror.foresee_healing(damages)
            nursery.cancel_scope.cancel()
        return healing

    async def _doubted_engine(self, nursery: trio.Nursery, journal: JournalSource) -> Engine:
        engine = await self._engine(nursery, journal)
        doubt = await engine.doubt()
        if doubt is not None:
            self._note_refusal(doubt)
        return engine

    def _note_refusal(self, reason: str) -> None:
        if self._settings.command == "replay run":
            reason = reason.replace("mount once with", "give")
        self.notes.append(f"'{self._settings.command}' would be refused: {reason}")

    async def _add(self, tell: Tell, step: Step) -> None:
        self.counts[step.action] += 1
        await tell(step)

    # --- what is known of the bucket

    async def _engine(self, nursery: trio.Nursery, journal: JournalSource) -> Engine:
        settings = replace(
            self._settings.uploader, root_descriptor=self._root, journal_sequence=journal.last_sequence()
        )
        identity = self._identity()
        if self._knows_bucket(identity):
            assert self._source.state is not None
            engine = Engine(settings, CommittedState(self._source.state), journal, identity)
            if not self._settings.asks_store or await self._is_known(engine):
                return engine
            self.notes.append("the bucket was changed by another state since: what it holds was read from it")
        state = CommittedState(self._temporary_state())
        nursery.start_soon(state.run)
        engine = Engine(settings, state, journal, identity)
        if self._settings.asks_store:
            await self._is_known(engine)
            await engine.mirror.adoption.adopt(engine.mirror.grace)
        else:
            self.notes.append("what the bucket holds is not known: this is the plan for an empty one (see --to)")
        return engine

    def _identity(self) -> Identity:
        settings, known = self._settings.uploader, self._source.identity
        if known is not None and (known.bucket, known.prefix) == (settings.bucket, settings.prefix):
            return known
        return Identity(self._source.datastore or settings.datastore, settings.bucket, settings.prefix)

    def _knows_bucket(self, identity: Identity) -> bool:
        return (
            self._source.state is not None
            and self._source.state_trouble is None
            and (identity is self._source.identity)
        )

    async def _is_known(self, engine: Engine) -> bool:
        settings = self._settings.uploader
        try:
            return await is_known(engine.bucket, engine.identity, engine.state, take_over=settings.take_over)
        except ClaimRefused as error:
            self._note_refusal(str(error))
            return await is_known(engine.bucket, engine.identity, engine.state, take_over=True)

    def _temporary_state(self) -> State:
        directory = self._opened.enter_context(tempfile.TemporaryDirectory(prefix="mirrorfs-plan-"))
        state = State(os.path.join(directory, "state"))
        self._opened.callback(state.close)
        return state

    # --- the journal

    def _records(self, engine: Engine) -> Iterator[Record]:
        journal, first = self._source.journal, self._settings.first
        if journal is None:
            return iter(())
        return journal.records(engine.drain.position.sequence if first is None else first - 1)

    def _of_records(self, engine: Engine, records: Iterator[Record]) -> list[Step]:
        """Return the steps of the next records; none at the end, since each has one."""
        return [step for record in islice(records, _RECORDS_AT_ONCE) for step in self._of_record(engine, record)]

    def _of_record(self, engine: Engine, record: Record) -> list[Step]:
        item, name = item_of(record.path), os.fsdecode(record.path)
        if item is None:
            return [Step(_NOTHING, name, "it is a plain directory, or PBS's own: nothing of it is mirrored", record)]
        if isinstance(item, ForeignItem):
            return [Step(_LEAVE, name, "PBS would not make it: it is counted, not mirrored", record)]
        if item == SubtreeItem(""):
            return [Step(_COMPARE, name, "the journal was begun or mended here: all of it is compared", record)]
        if item == SubtreeItem(CHUNKS_NAME):
            return [Step(_COMPARE, name, "chunks may have changed here unheard: their names are compared", record)]
        differences = self._differences(engine, item)
        if not differences:
            return [Step(_NOTHING, name, "the bucket is known to agree with the datastore", record)]
        return [self._step(engine, difference, record) for difference in differences]

    def _differences(self, engine: Engine, item: Item) -> list[Difference]:
        if item not in self._recent:
            self._recent[item] = list(engine.mirror.survey.differences(item))
            if len(self._recent) > _REMEMBERED:
                self._recent.popitem(last=False)
        return self._recent[item]

    def _step(self, engine: Engine, difference: Difference, record: Record | None) -> Step:
        return Step(difference.remedy.value, _name_of(engine, difference.key), difference.found, record)

    # --- the rest

    async def _compare(self, engine: Engine, tell: Tell) -> None:
        async def report(difference: Difference) -> None:
            step = self._step(engine, difference, None)
            if not self._is_in_journal(engine, step.name):
                await self._add(tell, step)

        await engine.mirror.survey.survey(report)

    def _is_in_journal(self, engine: Engine, name: str) -> bool:
        """Tell whether one of the records that were told leads to a step of this name."""
        journal = self._source.journal
        if journal is None:
            return False
        first = self._settings.first
        after = engine.drain.position.sequence if first is None else first - 1
        return any((journal.sequence_of(os.fsencode(path)) or 0) > after for path in _paths_of(name))


def _name_of(engine: Engine, key: str) -> str:
    layout = engine.bucket.layout
    if key.startswith(layout.content_prefix):
        return key.removeprefix(layout.content_prefix)
    return f".chunks/{key.removeprefix(layout.chunks_prefix)}"


def _paths_of(name: str) -> tuple[str, ...]:
    """The names under which the journal may have what a step is about."""
    path = name.rstrip("/").removesuffix("/.namespace")
    match classify(os.fsencode(path)):
        case SnapshotDirectoryName(snapshot=snapshot):
            return (snapshot.manifest_path, path)
        case GroupFileName(group=group):
            return (path, group.path)
    return (path,)
