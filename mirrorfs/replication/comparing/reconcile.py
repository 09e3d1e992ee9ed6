"""Finding by looking what no journal told: the datastore's tree against the state, in both directions."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import trio

from mirrorfs.datastore.names import CHUNKS_NAME, GroupId, NamespaceId, SnapshotId
from mirrorfs.datastore.tree import ChunkFiles, Tree, Unreadable
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.replication.work.items import ChunkItem, Item, SubtreeItem, item_of_content, item_of_problem, problem_name
from mirrorfs.replication.work.problems import CannotMirror, Problems
from mirrorfs.replication.work.worklist import UNSEEN, Worklist
from mirrorfs.state.chunks import ChunkState
from mirrorfs.state.state import StateTransaction
from mirrorfs.steps import reach

_CHUNK_DIRECTORIES = 65536
# Directories looked at in one visit to a worker thread: enough to make the visit cheap, few enough to stay responsive.
_DIRECTORIES_AT_ONCE = 256
_ALL = sys.maxsize

_chunk_directory = re.compile(rf"{re.escape(CHUNKS_NAME)}/([0-9a-f]{{4}})")


@dataclass(frozen=True, slots=True)
class Found:
    """What a look at a part of the datastore has found, and the directories that refused to be listed."""

    items: list[Item] = field(default_factory=list)
    foreign: list[bytes] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    def refused(self, directory: str, error: OSError) -> None:
        self.unreadable[directory] = f"the directory cannot be listed: {error.strerror}"

    def hides(self, path: bytes) -> bool:
        """Tell whether a name may stand in a directory that could not be listed."""
        return any(path.startswith(f"{directory}/".encode()) or not directory for directory in self.unreadable)


class Reconciler:
    """Lists as work what may differ; whether it does is decided by whoever handles the item.

    A directory that cannot be listed becomes a problem and holds up nothing else; what is known to lie in it is not
    taken for gone.
    """

    def __init__(self, tree: Tree, state: CommittedState, worklist: Worklist, problems: Problems) -> None:
        self._tree = tree
        self._state = state
        self._worklist = worklist
        self._problems = problems

    async def reconcile(self, sequence: int) -> None:
        """Look at the whole datastore: snapshots first, because they count; then chunks that no snapshot has.

        What is found stands for the journal's `sequence`: whoever waits for that record waits for all of it.
        """
        reach("reconcile.begun")
        self._look_again_at_what_is_handled("", sequence)
        found = await trio.to_thread.run_sync(self.look_below, "")
        for item in found.items:
            await self._worklist.room()
            self._worklist.add(item, sequence, at_a_glance=True)
        await self._note(found)
        await self._note(await self._count_foreign(""))
        reach("reconcile.snapshots-listed")
        for numbers in await trio.to_thread.run_sync(self.chunk_directories):
            await self._reconcile_chunks(numbers, sequence)
        reach("reconcile.ended")

    def chunk_directories(self) -> list[list[int]]:
        """Return the numbers of all chunk directories in which anything is or is known to have been, in portions that
        are looked at in one visit to a thread. Blocks for the disk.

        Of one that is made after this look the journal tells.
        """
        try:
            numbers = self._tree.chunk_directories()
        except OSError:
            # Each says for itself that it cannot be listed.
            numbers = set(range(_CHUNK_DIRECTORIES))
        ordered = sorted(numbers | self._state.view(StateTransaction.chunk_directories))
        return [ordered[first : first + _DIRECTORIES_AT_ONCE] for first in range(0, len(ordered), _DIRECTORIES_AT_ONCE)]

    async def reconcile_subtree(self, path: str, sequence: int) -> None:
        """List everything that is in the directory `path`, that the bucket holds of it, or that is a problem in it.

        Does not wait for room in the worklist: it is called by the workers that make room.

        Raises:
            CannotMirror: the directory itself cannot be listed.
        """
        if path == CHUNKS_NAME:
            await self._compare_chunk_names(sequence)
            return
        number = _chunk_directory_number(path)
        if number is not None:
            await self._reconcile_chunks([number], sequence, own=path)
            return
        self._look_again_at_what_is_handled(path, sequence)
        found = await trio.to_thread.run_sync(self.look_below, path)
        # With a directory that was seen to go, all that it held went. One that is there tells nothing of the kind.
        is_here = await trio.to_thread.run_sync(self._tree.exists, path)
        seen_at = UNSEEN if is_here else self._worklist.handles_as_seen_at()
        for item in found.items:
            self._worklist.add(item, sequence, seen_at=seen_at)
        for name in self._problems.names(path):
            problem = item_of_problem(name)
            if problem is not None:
                self._worklist.add(problem, sequence)
        foreign = await self._count_foreign(path)
        await self._note(Found(unreadable=found.unreadable | foreign.unreadable), own=path)

    async def _compare_chunk_names(self, sequence: int) -> None:
        """List the chunks that have come or gone, that have another size, or that are in quarantine now or no more,
        wherever nobody told of it.

        Reads no chunk. Waits for room, which is made by who handles chunks.
        """
        reach("reconcile.chunk-names-begun")
        for numbers in await trio.to_thread.run_sync(self.chunk_directories):
            await self._reconcile_chunks(numbers, sequence)
        reach("reconcile.chunk-names-ended")

    def _look_again_at_what_is_handled(self, path: str, sequence: int) -> None:
        """Whoever handles a name now may have looked before it moved, and the state know nothing of it yet."""
        for item in self._worklist.handled_below(path):
            self._worklist.add(item, sequence)

    async def _note(self, found: Found, own: str | None = None) -> None:
        for directory, reason in found.unreadable.items():
            if directory != own:
                await self._problems.note(problem_name(SubtreeItem(directory)), reason)
        if own is not None and own in found.unreadable:
            raise CannotMirror(problem_name(SubtreeItem(own)), found.unreadable[own])

    async def _count_foreign(self, path: str) -> Found:
        """Count the foreign names in the directory `path` anew: they may have come or gone with it."""
        inside = f"{path}/".encode() if path else b""

        def known(transaction: StateTransaction) -> set[bytes]:
            return {foreign for foreign in transaction.foreign.examples(_ALL)[1] if foreign.startswith(inside)}

        before = self._state.view(known)
        found = await trio.to_thread.run_sync(self._look_for_foreign, path)
        gone = {foreign for foreign in before.difference(found.foreign) if not found.hides(foreign)}
        come = set(found.foreign) - before

        def count(transaction: StateTransaction) -> None:
            for foreign in gone | come:
                transaction.foreign.set(foreign, foreign in come)

        if gone or come:
            await self._state.apply(count)
            reach("foreign.recorded")
        return found

    def _look_for_foreign(self, path: str) -> Found:
        found = Found()
        found.foreign.extend(self._tree.foreign(path, found.refused))
        return found

    def look_at_subtree(self, path: str) -> Found:
        """Return what `reconcile_subtree` would list, but the problems. Blocks for the disk."""
        number = _chunk_directory_number(path)
        return self.look_below(path) if number is None else self.differing_chunks([number])

    def look_below(self, path: str) -> Found:
        """Return everything in the directory `path`, or that the bucket holds of it. Blocks for the disk."""
        found = Found()
        found.items.extend(dict.fromkeys([*self._local_items(path, found.refused), *self._known_items(path)]))
        return found

    def _known_items(self, path: str) -> list[Item]:
        return self._state.view(lambda transaction: list(_known_items(transaction, path)))

    def _local_items(self, path: str, unreadable: Unreadable) -> Iterator[Item]:
        for namespace in self._tree.namespaces(unreadable):
            if _touches(namespace.path, path):
                if namespace.parent is not None:
                    yield namespace
                yield from self._local_groups(namespace, path, unreadable)

    def _local_groups(
        self, namespace: NamespaceId, path: str, unreadable: Unreadable
    ) -> Iterator[GroupId | SnapshotId]:
        for group in self._tree.groups(namespace, unreadable):
            if _touches(group.path, path):
                yield group
                # The newest snapshot first: it is the one that would be missed most.
                snapshots = sorted(self._tree.snapshots(group, unreadable), reverse=True)
                yield from (snapshot for snapshot in snapshots if _touches(snapshot.path, path))

    async def _reconcile_chunks(self, numbers: Iterable[int], sequence: int, own: str | None = None) -> None:
        found = await trio.to_thread.run_sync(self.differing_chunks, numbers)
        for item in found.items:
            if own is None:
                await self._worklist.room()
            self._worklist.add(item, sequence, at_a_glance=True)
        await self._note(found, own)

    def differing_chunks(self, numbers: Iterable[int]) -> Found:
        """Return the chunks of these directories that are to be sent, compared, deleted or noted as in quarantine.

        Sizes are compared, no content: another compression of the same content has another size
        practically always.
        Blocks for the disk.
        """
        found = Found()
        for number in numbers:
            try:
                files = self._tree.chunk_files(number)
            except OSError as error:
                found.refused(f"{CHUNKS_NAME}/{number:04x}", error)
            else:
                known, quarantined = self._known_chunks(number)
                found.items.extend(map(ChunkItem, _differing(files, known, quarantined)))
        return found

    def _known_chunks(self, number: int) -> tuple[dict[bytes, ChunkState], set[bytes]]:
        return self._state.view(
            lambda transaction: (
                dict(transaction.chunks.in_directory(number)),
                transaction.quarantine.in_directory(number),
            )
        )


def _differing(files: ChunkFiles, known: dict[bytes, ChunkState], quarantined: set[bytes]) -> list[bytes]:
    differing = [digest for digest, size in files.sizes.items() if not _is_mirrored(known.get(digest), size)]
    for digest, chunk in known.items():
        if digest not in files.sizes and digest not in files.quarantined and chunk.references == 0:
            differing.append(digest)
    return list(dict.fromkeys([*differing, *(files.quarantined ^ quarantined)]))


def _is_mirrored(known: ChunkState | None, size: int | None) -> bool:
    return known is not None and known.confirmed and size in (known.size, None)


def _chunk_directory_number(path: str) -> int | None:
    match = _chunk_directory.fullmatch(path)
    return int(match[1], 16) if match is not None else None


def _touches(candidate: str, path: str) -> bool:
    """Tell whether a path lies in `path`, or `path` in it."""
    return (
        not path
        or not candidate
        or candidate == path
        or candidate.startswith(path + "/")
        or path.startswith(candidate + "/")
    )


def _known_items(transaction: StateTransaction, path: str) -> Iterator[Item]:
    for snapshot, _ in transaction.snapshots.below(path):
        yield SnapshotId.parse(snapshot)
    for content in transaction.contents.below(path):
        item = item_of_content(content.path)
        if item is not None:
            yield item
