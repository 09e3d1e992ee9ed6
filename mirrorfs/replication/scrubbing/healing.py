"""What somebody else has found to be damaged in the bucket is sent again now: `mirrorfs heal --bucket`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mirrorfs.concurrency import for_each
from mirrorfs.replication.scrubbing.examination import Examination, Fault, Outcome
from mirrorfs.replication.scrubbing.losses import Losses
from mirrorfs.state.contents import ContentState


@dataclass(slots=True)
class Healing:
    """What came of it: paths of objects that were sent again (or would be), that are good after all or that nobody
    needs, and that are lost, those with the reason.
    """

    healed: list[str] = field(default_factory=list)
    good: list[str] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)


async def heal_objects(
    examination: Examination, losses: Losses, paths: Sequence[str], *, parallel: int, dry_run: bool = False
) -> Healing:
    """Look at the objects of these datastore paths, and have those that are not sound sent again.

    With `dry_run` nothing is changed; what the datastore has good would be sent.

    Raises:
        StoreError: the store refuses to be read.
        TooMuch: there is no memory or disk space here to read one of them.
    """
    healing = Healing()
    faults: list[Fault] = []

    async def look(path: str) -> None:
        fault = await examination.examine(path) or examination.doubt(path)
        if fault is None:
            healing.good.append(path)
        else:
            faults.append(fault)

    await for_each(dict.fromkeys(paths), look, parallel)
    if dry_run:
        outcomes = {fault: await _foreseen(examination, fault) for fault in faults}
    else:
        outcomes = await examination.mend(faults) if faults else {}
        await losses.note([fault for fault, outcome in outcomes.items() if outcome is Outcome.LOST])
        for path in healing.good:
            await losses.end(path)
    for fault, outcome in outcomes.items():
        match outcome:
            case Outcome.SENT:
                healing.healed.append(fault.path)
            case Outcome.LOST:
                healing.lost[fault.path] = await examination.loss(fault)
            case _:
                healing.good.append(fault.path)
    return healing


async def foresee(examination: Examination, damages: Mapping[str, str]) -> Healing:
    """Tell what `heal_objects` would do about objects that were just found damaged, for the reasons in `damages`.

    Only the datastore is read, and nothing is changed.
    """
    healing = Healing()
    for path, reason in damages.items():
        obstacle = await examination.obstacle(path)
        if not examination.is_needed(path):
            healing.good.append(path)
        elif obstacle is None:
            healing.healed.append(path)
        else:
            healing.lost[path] = f"{reason}; {obstacle}"
    return healing


async def _foreseen(examination: Examination, fault: Fault) -> Outcome:
    is_in_doubt = isinstance(fault.known, ContentState) and examination.is_in_doubt(fault.path)
    is_left = is_in_doubt or await examination.obstacle(fault.path) is not None
    return Outcome.LOST if is_left else Outcome.SENT
