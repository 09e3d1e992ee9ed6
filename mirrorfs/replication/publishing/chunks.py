"""Chunks: each is sent once, as soon as it is due, and goes when the datastore and every snapshot are done with it."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager

import trio

from mirrorfs.datastore.blob import check_chunk
from mirrorfs.datastore.digests import Digests
from mirrorfs.datastore.errors import BlobError, DatastoreError
from mirrorfs.datastore.limits import LONGEST_CHUNK
from mirrorfs.datastore.names import chunk_path
from mirrorfs.datastore.tree import ChunkFile, Tree
from mirrorfs.objectstore.checksums import calculate_crc32c
from mirrorfs.objectstore.errors import ConfirmationFailed, CopyUnsupported, ObjectMissing, StoreRejected
from mirrorfs.replication.publishing.outlook import GONE, NOT_MIRRORED, Forecast, Outlook
from mirrorfs.replication.publishing.replica import holds
from mirrorfs.replication.sending.sender import ChunkSender
from mirrorfs.replication.work.bucket import Bucket
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.replication.work.exclusion import Exclusion
from mirrorfs.replication.work.problems import CannotMirror, Problems
from mirrorfs.state.chunks import ChunkState
from mirrorfs.steps import reach

log = logging.getLogger(__name__)

_STAGING = "staging/"


class ChunkMirror:
    """The chunk objects of the bucket.

    A chunk is deleted only while it is neither referenced in the state nor pinned by a publication that is under way;
    whoever pins looks afterwards at what is being handled at that moment, so that no deletion slips in between (P5).
    An object is replaced by a copy inside the bucket of what was confirmed there before, where the store can do that.
    """

    def __init__(
        self,
        tree: Tree,
        bucket: Bucket,
        state: CommittedState,
        problems: Problems,
        *,
        in_memory: trio.CapacityLimiter,
        sender: ChunkSender | None,
        healed: Callable[[bytes], None],
        look_again: Callable[[bytes], None],
    ) -> None:
        """`in_memory` bounds the chunks in memory. `sender` sends what is new in one go; without it, and where that
        does not work, everything is done step by step.

        `healed` is called with each digest that has become confirmed, `look_again` with each that others alone have
        kept from being deleted: when they pin it no more, or at once if they work on it, which is to be waited for.
        """
        self._tree = tree
        self._bucket = bucket
        self._state = state
        self._problems = problems
        self._healed = healed
        self._look_again = look_again
        self._kept_by_pins: set[bytes] = set()
        self._busy = Exclusion[bytes]()
        self._distrusted: set[bytes] = set()
        self._pins: list[Digests] = []
        self._in_memory = in_memory
        self._sender = sender

    @asynccontextmanager
    async def pinned(self, digests: Digests) -> AsyncIterator[Digests]:
        """Keep `digests` from being deleted, and give those that `ensure` must see to, sorted."""
        self._pins.append(digests)
        busy = digests.among(self._busy.held())
        try:
            yield await trio.to_thread.run_sync(self._to_see_to, digests, busy)
        finally:
            # By identity: two publications may pin equal sets.
            self._pins = [pin for pin in self._pins if pin is not digests]
            self._tell_unpinned(digests.among(self._kept_by_pins))

    def _to_see_to(self, digests: Digests, busy: set[bytes]) -> Digests:
        return self._state.view(
            lambda transaction: digests.where(
                lambda digest: digest in busy or not transaction.chunks.is_confirmed(digest)
            )
        )

    async def is_in_bucket(self, digest: bytes) -> bool:
        """Look whether the object of a pinned chunk is there, which the state has as confirmed."""
        if await self._bucket.store.head(self._bucket.layout.chunk_key(digest)) is not None:
            return True
        # If it is not confirmed any more, somebody has found that out before.
        return not self._state.view(lambda transaction: transaction.chunks.is_confirmed(digest))

    def _tell_unpinned(self, digests: set[bytes]) -> None:
        for digest in digests:
            if not self._is_pinned(digest):
                self._kept_by_pins.discard(digest)
                self._look_again(digest)

    def _is_pinned(self, digest: bytes) -> bool:
        return any(digest in pin for pin in self._pins)

    @contextmanager
    def deletable(self, digests: Iterable[bytes]) -> Iterator[list[bytes]]:
        """Keep others from working on `digests`, and give those that nobody works on or pins.

        Whoever pins one of these from now on finds it being handled.
        """
        with self._busy.hold_free(digests) as free:
            for digest in set(digests).difference(free):
                self._look_again(digest)
            yield [digest for digest in free if not self._is_kept_by_pin(digest)]

    def _is_kept_by_pin(self, digest: bytes) -> bool:
        if self._is_pinned(digest):
            self._kept_by_pins.add(digest)
            return True
        return False

    async def ensure(self, digest: bytes) -> None:
        """Have the chunk confirmed in the bucket, from the local file if it is not yet.

        Raises:
            CannotMirror: the local file is missing or damaged, or the store refuses it.
        """
        async with self._busy.hold(digest):
            known = self._known(digest)
            if known is not None and known.confirmed:
                return
            if known is None:
                if await self._send_in_one_go(digest):
                    return
                known = self._known(digest)
            try:
                await self._upload(digest, known)
            except CannotMirror:
                # What the datastore has lost or damaged may be whole in the bucket: adopted, or doubted by a crash.
                if known is None or not await self._confirm_object(digest):
                    raise

    async def settle(self, digest: bytes, *, at_a_glance: bool = False) -> bool:
        """Have the bucket agree with what the datastore holds now under the chunk's name.

        `at_a_glance`, one of the size that is confirmed is not read: a publication has been there before.
        Deletes nothing: returns False where the file is gone, and an object may be left that nobody is known to need.

        Raises:
            CannotMirror: see `ensure`.
        """
        async with self._busy.hold(digest):
            known, since = self._state.view(
                lambda transaction: (transaction.chunks.get(digest), transaction.quarantine.since(digest))
            )
            if known is None and since is None and await self._send_in_one_go(digest):
                return True
            file = await trio.to_thread.run_sync(self._tree.chunk, digest)
            is_noted = file.is_quarantined != (since is not None)
            if is_noted:
                await self._note_quarantine(digest, file.is_quarantined)
            known = self._known(digest)
            if file.size is not None:
                if is_noted or not (at_a_glance and _is_confirmed(known, file.size)):
                    await self._upload(digest, known)
                return True
            return _stays(file, known) or self._is_kept_by_pin(digest)

    async def distrust(self, digest: bytes, known: ChunkState) -> bool:
        """Say that a chunk's object was read and is damaged or gone, if it is still as `known`; tells whether it is.

        From then on it counts as not confirmed, and whoever sends it does so whatever the store tells of it.
        """
        async with self._busy.hold(digest):
            if not await self._state.apply(lambda transaction: transaction.chunks.doubt_if_still(digest, known)):
                return False
            reach("chunk.doubted")
            self._distrusted.add(digest)
            return True

    async def confirm_if_sound(self, digest: bytes) -> bool:
        """Have the object of a chunk that is not confirmed confirmed if it is sound; tells whether it is.

        Raises:
            StoreError: the store refuses to be read.
        """
        async with self._busy.hold(digest):
            known = self._known(digest)
            return known is not None and (known.confirmed or await self._confirm_object(digest))

    def local_fault(self, digest: bytes) -> str | None:
        """Say why the datastore cannot give the chunk, None if it has it good. Blocks for the disk."""
        try:
            self._read(digest)
        except CannotMirror as failure:
            return failure.reason
        return None

    def outlook(self, digest: bytes) -> Forecast | None:
        """Tell what `settle` would do, as far as that can be told without reading the chunk; None if nothing.

        Blocks for the disk.
        """
        try:
            file = self._tree.chunk(digest)
        except OSError as error:
            return Forecast(Outlook.FAIL, f"it cannot be read: {error.strerror}")
        known = self._known(digest)
        if file.size is None:
            return None if _stays(file, known) else Forecast(Outlook.REMOVE, f"{GONE}, and no snapshot needs it")
        if known is None:
            return Forecast(Outlook.SEND, NOT_MIRRORED)
        if not known.confirmed:
            return Forecast(Outlook.COMPARE, NOT_MIRRORED)
        if known.size != file.size:
            return Forecast(Outlook.SEND, f"the datastore has {file.size} bytes of it, the bucket has {known.size}")
        return None

    def _known(self, digest: bytes) -> ChunkState | None:
        return self._state.view(lambda transaction: transaction.chunks.get(digest))

    async def _send_in_one_go(self, digest: bytes) -> bool:
        """Send a chunk of which no object is known to be there; False where it has to be done step by step."""
        sender = self._sender
        if sender is None or not sender.is_open or self._problems.refused.limits_size:
            return False
        await self._intend(digest)
        attempt = await sender.send(digest)
        if attempt.is_stored:
            await self._confirm(digest, attempt.size, attempt.crc32c)
            self._healed(digest)
        elif not attempt.began:
            await self._state.apply(lambda transaction: transaction.chunks.withdraw([digest]))
        return attempt.is_stored

    async def _intend(self, digest: bytes) -> None:
        reach("chunk.before-intention")
        await self._state.apply(lambda transaction: transaction.chunks.intend([digest]))

    async def _note_quarantine(self, digest: bytes, is_quarantined: bool) -> None:
        """Note that a chunk came into quarantine, or left it."""
        now = time.time() if is_quarantined else None
        await self._state.apply(lambda transaction: transaction.quarantine.set_since(digest, now))
        reach("chunk.quarantine-recorded")
        if is_quarantined:
            log.warning("%s is in quarantine: PBS has found it corrupt; its object is kept", chunk_path(digest))

    async def _upload(self, digest: bytes, known: ChunkState | None) -> None:
        async with self._in_memory:
            data, checksum = await trio.to_thread.run_sync(self._read, digest)
            if known is not None and (known.size, known.crc32c) == (len(data), checksum):
                return
            foreseen = self._problems.foreseen(chunk_path(digest), len(data), (digest,))
            if foreseen is not None:
                raise foreseen
            try:
                await self._put(digest, data, checksum, known)
            except (StoreRejected, ConfirmationFailed) as error:
                raise self._problems.refusal(chunk_path(digest), error, size=len(data), chunks=(digest,)) from error
        self._healed(digest)

    async def _put(self, digest: bytes, data: bytes, checksum: int, known: ChunkState | None) -> None:
        key = self._bucket.layout.chunk_key(digest)
        if known is None:
            await self._intend(digest)
        elif not known.confirmed and digest not in self._distrusted and await holds(self._bucket.store, key, data):
            await self._confirm(digest, len(data), checksum)
            return
        elif self._bucket.store.capabilities.copies and (
            known.confirmed or await self._bucket.store.head(key) is not None
        ):
            await self._replace(digest, data, checksum, known)
            return
        elif known.confirmed:
            await self._doubt(digest)
        reach("chunk.before-put")
        await self._bucket.store.put(key, data, crc32c=checksum)
        reach("chunk.after-put")
        await self._confirm(digest, len(data), checksum)

    async def _replace(self, digest: bytes, data: bytes, checksum: int, known: ChunkState) -> None:
        """Replace a chunk's object; what comes in its place is known to be good before."""
        key, staged = self._bucket.layout.chunk_key(digest), self._staging_key(digest)
        await self._doubt(digest)
        try:
            await self._bucket.store.put(staged, data, crc32c=checksum)
        except (StoreRejected, ConfirmationFailed):
            if known.confirmed:
                await self._confirm(digest, known.size, known.crc32c)
            raise
        reach("chunk.staged")
        try:
            await self._bucket.store.copy(staged, key, size=len(data), crc32c=checksum)
        except (CopyUnsupported, ObjectMissing) as error:
            log.debug("%s", error)
            await self._bucket.store.put(key, data, crc32c=checksum)
        reach("chunk.replaced")
        await self._confirm(digest, len(data), checksum)
        await self._unstage([staged])

    async def clear_staging(self) -> None:
        """Delete what replacements that were interrupted have left in the bucket; none may be under way."""
        prefix = self._bucket.layout.own_key(_STAGING)
        async with aclosing(self._bucket.store.list(prefix)) as objects:
            left = [stored.key async for stored in objects if self._is_staging_key(stored.key)]
        if left:
            await self._unstage(left)

    async def _unstage(self, keys: list[str]) -> None:
        try:
            refused = await self._bucket.store.delete_each(keys)
        except StoreRejected as error:
            refused = dict.fromkeys(keys, error)
        for refusal in refused.values():
            log.debug("it is tried again at the next start: %s", refusal)
        reach("chunk.unstaged")

    def _staging_key(self, digest: bytes) -> str:
        return self._bucket.layout.own_key(f"{_STAGING}{digest.hex()}")

    def _is_staging_key(self, key: str) -> bool:
        name = key.removeprefix(self._bucket.layout.own_key(_STAGING))
        # Only what could be a chunk's: others may keep something there, too.
        return self._bucket.layout.chunk_digest(f"{self._bucket.layout.chunks_prefix}{name[:4]}/{name}") is not None

    async def _doubt(self, digest: bytes) -> None:
        await self._state.apply(lambda transaction: transaction.chunks.doubt(digest))
        reach("chunk.doubted")

    async def _confirm(self, digest: bytes, size: int, checksum: int) -> None:
        await self._state.apply(lambda transaction: transaction.chunks.confirm(digest, size, checksum))
        self._distrusted.discard(digest)
        reach("chunk.recorded")

    async def _confirm_object(self, digest: bytes) -> bool:
        """Read the chunk's object and confirm it if it is sound."""
        async with self._in_memory:
            try:
                data = await self._bucket.store.get(self._bucket.layout.chunk_key(digest), LONGEST_CHUNK)
                await trio.to_thread.run_sync(lambda: check_chunk(data, digest, content=True))
            except (ObjectMissing, StoreRejected, BlobError):
                return False
            await self._confirm(digest, len(data), calculate_crc32c(data))
        return True

    def _read(self, digest: bytes) -> tuple[bytes, int]:
        """Read a chunk that is sound, and calculate its CRC32C."""
        try:
            data = self._tree.read_chunk(digest)
            # Also the content: a store would confirm wrong content under a good name, and the good object be gone.
            check_chunk(data, digest, content=True)
        except FileNotFoundError as error:
            raise CannotMirror(chunk_path(digest), "the chunk is missing in the datastore", (digest,)) from error
        except BlobError as error:
            reason = f"it is not sound in the datastore: {error}"
            raise CannotMirror(chunk_path(digest), reason, (digest,)) from error
        except (DatastoreError, OSError) as error:
            raise CannotMirror(chunk_path(digest), f"the chunk cannot be read: {error}", (digest,)) from error
        return data, calculate_crc32c(data)


def _is_confirmed(known: ChunkState | None, size: int) -> bool:
    return known is not None and known.confirmed and known.size == size


def _stays(file: ChunkFile, known: ChunkState | None) -> bool:
    """Tell whether the object of a chunk whose file is gone, if there is one, is needed nevertheless."""
    return file.is_quarantined or known is None or known.references > 0
