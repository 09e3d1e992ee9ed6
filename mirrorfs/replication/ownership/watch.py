"""Whether the bucket is still this mirror's: looked at once a minute, after each outage, and before what counts.

Nobody keeps a PBS or another mirror from writing below a prefix; what can be done is to notice it before a manifest is
put whose chunks may be gone, and before anything is removed.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import trio

from mirrorfs.datastore.quoting import cut
from mirrorfs.objectstore.errors import ConfirmationFailed, ObjectChanged, StoreRejected
from mirrorfs.replication.ownership.claim import (
    CLAIM_NAME,
    UNKNOWN_HOST,
    Claim,
    ClaimUnreadable,
    describe_handed_over,
    etag_of,
    read_claim,
    read_in_use,
)
from mirrorfs.replication.work.bucket import Bucket
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.steps import reach

log = logging.getLogger(__name__)

_LOOK_SECONDS = 60.0
# Batches of removals follow each other within seconds; one new epoch serves those of so long a time.
_RENEWAL_SECONDS = 5.0
_REFUSED_PAUSE_SECONDS = 10.0

Result = TypeVar("Result")

_MOUNT_AGAIN = "Nothing is sent or removed any more; backups go on, and the journal notes them."


class BucketLost(Exception):
    """The bucket is not this mirror's, or not as its state says; the message says which, and what to do."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a look has found. `lost`: why the bucket is not this mirror's; `stale`: why the state is to be made anew."""

    lost: str | None = None
    stale: str | None = None
    used_by: str | None = None


class OwnershipWatch:
    """Looks at the two objects that say whose the prefix is. Implements `work.ownership.Ownership`.

    What is found is told once, by `lost` or `stale`, which must cancel everything that works for the mirror, or raise;
    whoever asks after that waits until he is cancelled.
    """

    def __init__(
        self,
        bucket: Bucket,
        state: CommittedState,
        *,
        lost: Callable[[str], None],
        stale: Callable[[str], None],
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        """`clock` tells seconds."""
        self._bucket = bucket
        self._state = state
        self._lost = lost
        self._stale = stale
        self._clock = clock
        self._lock = trio.Lock()
        self._claim: Claim | None = None
        self._is_over = False
        self._last_look = self._last_renewal = float("-inf")
        self._has_changed = self._has_removed = False
        self.looked_at: float | None = None
        """When (Unix time) the bucket was last seen to be this mirror's; None if it was not yet."""

    def begin(self, claim: Claim) -> None:
        """Watch over `claim`, which was just put. Before this nobody may ask."""
        self._claim = claim
        self._seen()

    def has_looked_since(self, moment: float) -> bool:
        """Tell whether the bucket was seen to be this mirror's after a Unix time, and nothing was found since."""
        return not self._is_over and self.looked_at is not None and self.looked_at >= moment

    # --- for whoever publishes or removes

    async def confirm(self) -> None:
        """See Ownership."""
        await self._confirm(self._clock())

    async def confirm_for_removal(self) -> None:
        """See Ownership."""
        await self._confirm(self._clock(), removes=True)

    async def doubt(self, evidence: str) -> None:
        """See Ownership."""
        await self._state.apply(lambda transaction: transaction.progress.set_inspecting(True))
        reach("watch.doubted")
        async with self._lock:
            await self._end(Verdict(stale=f"{evidence}: the bucket is compared with what is known of it"))

    async def _confirm(self, asked: float, *, removes: bool = False) -> None:
        async with self._lock:
            if self._is_over:
                await trio.sleep_forever()
            if self._last_look < asked:
                await self._look()
            # What follows changes the bucket: a state from before must come to be known as older, if not at once.
            self._has_changed = True
            self._has_removed = self._has_removed or removes
            if removes and self._clock() - self._last_renewal >= _RENEWAL_SECONDS:
                await self._patiently(self._renew)

    # --- on its own

    async def keep_looking(self) -> None:
        """Look at the bucket once a minute and after each outage, for ever."""
        condition = self._bucket.store.condition
        while True:
            began = self._clock()
            await condition.wait_for_recovery(_RENEWAL_SECONDS)
            has_recovered = self._clock() - began < _RENEWAL_SECONDS
            async with self._lock:
                is_due = self._clock() - self._last_look >= _LOOK_SECONDS
                if has_recovered or is_due:
                    await self._look()
                if self._has_removed or (is_due and self._has_changed):
                    await self._patiently(self._renew)

    # --- looking

    async def _look(self) -> None:
        began = self._clock()
        verdict = await self._patiently(self._read)
        if verdict.lost is not None or verdict.stale is not None:
            await self._end(verdict)
        self._seen(began)

    def _seen(self, began: float | None = None) -> None:
        self._last_look = self._clock() if began is None else began
        self.looked_at = time.time()

    async def _read(self) -> Verdict:
        return self._judge(await read_claim(self._bucket), await read_in_use(self._bucket))

    async def _patiently(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Do it until the store does not refuse it any more, nor gives what is no answer."""
        told = ""
        while True:
            try:
                return await work()
            except (ClaimUnreadable, StoreRejected, ConfirmationFailed) as error:
                if str(error) != told:
                    log.error("nothing is published or removed until it is known whose the bucket's name is: %s", error)
                told = str(error)
            await trio.sleep(_REFUSED_PAUSE_SECONDS)

    def _judge(self, standing: Claim | None, in_use: str | None) -> Verdict:
        assert self._claim is not None
        epochs = self._state.view(lambda transaction: transaction.identity.epochs())
        if standing is None:
            return Verdict(stale="the claim is gone from the bucket: it is read anew")
        if standing.is_handed_over:
            return Verdict(lost=f"{describe_handed_over('the name in the bucket', standing)} {_MOUNT_AGAIN}")
        if not standing.is_of(self._claim):
            return Verdict(
                lost=f"the name in the bucket was taken over: it is the mirror of {standing.owner} now. {_MOUNT_AGAIN} "
                "Unmount, and mount to another name; or, if that mirror is never to run again, mount once with "
                "--take-over."
            )
        if standing.epoch in epochs.earlier:
            return Verdict(stale="the store has brought an earlier claim of this mirror back: the bucket is read anew")
        if standing.epoch not in epochs.own:
            return Verdict(
                lost=f"another mirrorfs with the same names writes to the bucket (is a copy of this machine running?), "
                f"or this machine was put back to an earlier moment while it ran. {_MOUNT_AGAIN} Make sure that only "
                "this one runs, unmount, and mount again: then the bucket is read anew."
            )
        if in_use is None:
            return Verdict(
                stale="the object .in-use is gone, so a Proxmox Backup Server may have used the bucket's name: it is "
                "read anew",
                used_by=UNKNOWN_HOST,
            )
        if in_use != self._claim.in_use:
            return Verdict(
                lost=f"the name in the bucket is in use by {cut(in_use)} now, as the object .in-use says, which a "
                f"Proxmox Backup Server writes. {_MOUNT_AGAIN} Take it away there (proxmox-backup-manager datastore "
                "remove), or mount to another name; if that server is never to use it again, mount once with "
                "--take-over.",
                used_by=in_use,
            )
        return Verdict()

    async def _end(self, verdict: Verdict) -> None:
        """Note what a next start has to know, say it, and never return."""
        if not self._is_over:
            self._is_over = True
            used_by = verdict.used_by
            if used_by is not None:
                await self._state.apply(lambda transaction: transaction.identity.set_used_by(used_by))
                reach("watch.use-recorded")
            if verdict.lost is not None:
                self._lost(verdict.lost)
            else:
                self._stale(verdict.stale or "")
        await trio.sleep_forever()

    async def _renew(self) -> None:
        """Put a claim with a new epoch, so that a state from before is known to be an older one."""
        assert self._claim is not None
        renewed = replace(self._claim, epoch=uuid.uuid4().hex)
        epochs = self._state.view(lambda transaction: transaction.identity.epochs())
        coming = replace(epochs, coming=renewed.epoch)
        await self._state.apply(lambda transaction: transaction.identity.set_epochs(coming))
        reach("watch.before-renewal")
        self._has_changed = self._has_removed = False
        await self._put(renewed)
        reach("watch.after-renewal")
        await self._state.apply(lambda transaction: transaction.identity.set_renewed(renewed.epoch))
        reach("watch.renewed")
        self._claim = renewed
        self._last_renewal = self._clock()

    async def _put(self, claim: Claim) -> None:
        """Put it in the place of one that is ours; where that has become another's meanwhile, say so instead."""
        assert self._claim is not None
        key = self._bucket.layout.own_key(CLAIM_NAME)
        while True:
            etag = await etag_of(self._bucket, key)
            verdict = self._judge(await read_claim(self._bucket), self._claim.in_use)
            if verdict.lost is not None or verdict.stale is not None:
                await self._end(verdict)
            try:
                await self._bucket.store.put_over(key, claim.encode(), etag)
                return
            except ObjectChanged as race:
                log.warning("the claim was changed while a new one was put: looking again. %s", race)
