"""Which chunks a snapshot in the bucket references, and the counting of that, part by part."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import trio

from mirrorfs.datastore.digests import Digests
from mirrorfs.datastore.index import is_index_name
from mirrorfs.datastore.limits import LONGEST_INDEX
from mirrorfs.datastore.tree import Tree
from mirrorfs.replication.work.bucket import Bucket
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.replication.work.stored import UNUSABLE, read_digests
from mirrorfs.state.counting import PartialCount, ReferenceHolder
from mirrorfs.state.state import StateTransaction
from mirrorfs.steps import reach

log = logging.getLogger(__name__)

CHUNKS_A_COMMIT = 8192
_LAST_DIGEST = b"\xff" * 32


class Unreferenced:
    """Tells on which chunks nobody references any more, of those that the datastore may not hold."""

    def __init__(self, tree: Tree, look_at: Callable[[bytes], None]) -> None:
        self._tree = tree
        self._look_at = look_at

    async def tell(self, digests: list[bytes]) -> None:
        """Have those looked at whose files are gone; the others will be named when they are unlinked."""
        for digest in await trio.to_thread.run_sync(self._perhaps_gone, digests):
            self._look_at(digest)

    def _perhaps_gone(self, digests: list[bytes]) -> list[bytes]:
        return [digest for digest in digests if not self._is_here(digest)]

    def _is_here(self, digest: bytes) -> bool:
        try:
            return self._tree.chunk_size(digest) is not None
        except OSError:
            # Whoever handles the chunk finds out, and says so.
            return False


class References:
    """The references of snapshots, published or kept, as the state counts them.

    A large snapshot's in one commit would change nearly every page of a large state: all of them in memory, and the
    file half as large again. So they are counted in the order of their digests, a part with each commit, which also
    notes how far that went, and given back in the reverse order. What a crash has left between is known by that.
    """

    def __init__(
        self,
        bucket: Bucket,
        state: CommittedState,
        unreferenced: Unreferenced,
        *,
        chunks_a_commit: int = CHUNKS_A_COMMIT,
    ) -> None:
        self._bucket = bucket
        self._state = state
        self._unreferenced = unreferenced
        self._chunks_a_commit = chunks_a_commit

    async def digests(
        self, holder: ReferenceHolder, files: Mapping[str, str], longest: Mapping[str, int] | None = None
    ) -> Digests | None:
        """Return the digests that the indexes among `files` (names with checksums in hex) name.

        `longest` tells how many bytes each may have, where that is known from elsewhere.

        They are read as they stand in the bucket, since the datastore may hold others or none by now. None, with a line
        in the log, where one of them is missing there or is not the one that was published: too many references keep
        chunks for too long; too few would delete chunks that are needed (P5).
        """
        found: list[Digests] = []
        for name, checksum in files.items():
            if not is_index_name(name):
                continue
            maximum = LONGEST_INDEX if longest is None else longest[name]
            try:
                found.append(await read_digests(self._bucket.store, self._key(holder, name), name, checksum, maximum))
            except UNUSABLE as error:
                _say_unknown(holder.path, name, str(error))
                return None
        return await trio.to_thread.run_sync(Digests.union, *found)

    def _key(self, holder: ReferenceHolder, name: str) -> str:
        if holder.is_kept:
            return self._bucket.layout.deleted_key(holder.path, name)
        return self._bucket.layout.content_key(f"{holder.path}/{name}")

    def interrupted(self, holder: ReferenceHolder) -> PartialCount | None:
        """Tell how far a count has gone that was begun, up or down, and has not ended."""
        return self._state.view(lambda transaction: transaction.counting.get(holder))

    async def count_all_but_last(self, holder: ReferenceHolder, files: Mapping[str, str], digests: Digests) -> Digests:
        """Count one reference to each of the `digests` that the indexes among `files` name, but for the last part.

        That is returned: it is to be counted in the commit after which the holder's phase tells that all are counted.
        Until then the indexes must stay in the bucket as they are. A count of the same files that was interrupted is
        continued.
        """
        begun = self.interrupted(holder)
        if begun is not None and begun.files != files:
            await self.give_back_interrupted(holder)
            begun = None
        left = digests if begun is None else digests.beyond(begun.up_to)
        while len(left) > self._chunks_a_commit:
            part, left = left[: self._chunks_a_commit], left[self._chunks_a_commit :]
            await self._count(holder, PartialCount(files, part[-1]), part)
        return left

    async def give_back(
        self, holder: ReferenceHolder, files: Mapping[str, str], note: Callable[[StateTransaction], None]
    ) -> None:
        """Give back all references of a holder; `note` enters the phase that tells so, in the commit that begins it.

        Until this returns the indexes among `files` must stay in the bucket as they are.
        """

        def begin(transaction: StateTransaction) -> None:
            note(transaction)
            transaction.counting.set(holder, PartialCount(files, _LAST_DIGEST))

        await self._state.apply(begin)
        reach("references.giving-back")
        await self.give_back_interrupted(holder)

    async def give_back_interrupted(self, holder: ReferenceHolder) -> None:
        """Give back what a count that has not ended has counted, or has left; does nothing without one."""
        count = self.interrupted(holder)
        if count is None:
            return
        digests = await self.digests(holder, count.files) or Digests()
        left: PartialCount | None = count
        counted = digests.up_to(count.up_to)
        while left is not None:
            counted, part = counted[: -self._chunks_a_commit], counted[-self._chunks_a_commit :]
            left = PartialCount(count.files, counted[-1]) if counted else None
            await self._give_back(holder, left, part)

    async def _count(self, holder: ReferenceHolder, count: PartialCount, digests: Digests) -> None:
        await self._state.apply(lambda transaction: transaction.counting.count(holder, count, digests))
        reach("references.counted")

    async def _give_back(self, holder: ReferenceHolder, left: PartialCount | None, digests: Digests) -> None:
        unreferenced = await self._state.apply(
            lambda transaction: transaction.counting.give_back(holder, left, digests)
        )
        reach("references.given-back")
        await self._unreferenced.tell(unreferenced)


def _say_unknown(path: str, name: str, why: str) -> None:
    log.warning(
        "the chunks of %s cannot be told, because its index %s in the bucket cannot be read (%s); those of a removed "
        "snapshot stay there until a new state directory counts the references anew",
        path,
        name,
        why,
    )
