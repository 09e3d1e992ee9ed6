"""`mirrorfs heal --bucket`: what a bucket has lost is sent again by the mirror of the datastore that has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import rich.filesize

from mirrorfs.cli.errors import Failure
from mirrorfs.cli.mounted import require_serving
from mirrorfs.cli.restore_progress import count
from mirrorfs.cli.verify import MOST_SHOWN, cost_of, shown_progress, verified
from mirrorfs.objectstore.url import StoreAddress, StoreOptions
from mirrorfs.output import say, say_json
from mirrorfs.recovery.selection import Selection
from mirrorfs.recovery.source import View
from mirrorfs.recovery.verification import Damage, Depth, VerificationReport
from mirrorfs.replication.control import Answer, ask
from mirrorfs.supervision.registry import state_directory_of

# A question to the uploader is one line of 64 KiB at most.
_BYTES_A_QUESTION = 32 * 1024
_EVERYTHING = Depth(100.0)


@dataclass(slots=True)
class _Outcome:
    """The damages that were sent again (or would be), and those that stay, with the reason."""

    healed: list[Damage] = field(default_factory=list)
    lost: list[tuple[Damage, str]] = field(default_factory=list)


def heal_bucket(
    path: str,
    address: StoreAddress,
    selection: Selection,
    *,
    dry_run: bool,
    parallel: int,
    store: StoreOptions,
    as_json: bool,
) -> bool:
    """Read what the bucket at `address` holds, have the mirror mounted at `path` send again what is damaged, and tell.

    Returns whether nothing stays damaged. Raises Failure.
    """
    require_serving(path, if_absent="only its mirror sends to the bucket, so mount it first")
    report = verified(address, selection, View(), _EVERYTHING, None, parallel, store, shown_progress())
    outcome = _Outcome()
    for damages in _questions(report.damages):
        _ask(path, damages, outcome, dry_run=dry_run)
    if as_json:
        say_json(_as_json(path, address, report, outcome, dry_run=dry_run), indent=2)
    else:
        _tell(report, outcome, dry_run=dry_run)
    return not outcome.lost and not report.damages_left_out


def _questions(damages: Sequence[Damage]) -> Iterator[list[Damage]]:
    part: list[Damage] = []
    size = 0
    for damage in damages:
        length = len(damage.path) + 4
        if part and size + length > _BYTES_A_QUESTION:
            yield part
            part, size = [], 0
        part.append(damage)
        size += length
    if part:
        yield part


def _ask(path: str, damages: list[Damage], outcome: _Outcome, *, dry_run: bool) -> None:
    directory = state_directory_of(path)
    arguments = {"paths": [damage.path for damage in damages], "dry_run": dry_run}
    try:
        answer: Answer = ask(directory.control_socket, "heal", None, arguments=arguments)
    except (ConnectionError, FileNotFoundError):
        raise Failure(
            f"the uploader of {path} does not run, or has ended meanwhile; the mount starts it again. What was sent "
            f"stays. Give the same command again in a minute; if this lasts, see {directory.log_file}"
        ) from None
    if "error" in answer:
        raise Failure(f"nothing more was sent: {answer['error']}")
    for damage in damages:
        if damage.path in answer["lost"]:
            outcome.lost.append((damage, str(answer["lost"][damage.path])))
        elif damage.path in answer["healed"]:
            outcome.healed.append(damage)


def _tell(report: VerificationReport, outcome: _Outcome, *, dry_run: bool) -> None:
    could = "could be sent again" if dry_run else "sent again"
    for damage in outcome.healed[:MOST_SHOWN]:
        say(f"{could}: {damage.path}: {damage.reason}", err=True)
    for damage, reason in outcome.lost[:MOST_SHOWN]:
        say(f"LOST: {damage.path}: {reason}{cost_of(damage)}", err=True)
    more = max(0, len(outcome.healed) - MOST_SHOWN) + max(0, len(outcome.lost) - MOST_SHOWN)
    if more:
        say(f"and {more} more; --json lists them", err=True)
    if report.damages_left_out:
        say(f"{report.damages_left_out} more are damaged: give the same command again", err=True)
    say(
        f"Read {count(report.chunks_read, 'chunk')}, {rich.filesize.decimal(report.bytes_read)}. "
        f"{len(outcome.healed)} {could}, {len(outcome.lost)} lost."
    )


def _as_json(
    path: str, address: StoreAddress, report: VerificationReport, outcome: _Outcome, *, dry_run: bool
) -> dict[str, object]:
    return {
        "datastore": path,
        "url": str(address),
        "dry_run": dry_run,
        "good": not outcome.lost and not report.damages_left_out,
        "chunks_read": report.chunks_read,
        "bytes_read": report.bytes_read,
        "healed": [{"path": damage.path, "reason": damage.reason} for damage in outcome.healed],
        "lost": [
            {"path": damage.path, "reason": reason, "snapshots": [snapshot.path for snapshot in damage.snapshots]}
            for damage, reason in outcome.lost
        ],
        "damages_left_out": report.damages_left_out,
    }
