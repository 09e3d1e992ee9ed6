"""`mirrorfs heal --bucket`: what a bucket has lost is sent again from the datastore that has it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import rich.filesize
import trio

from mirrorfs import interpreter
from mirrorfs.cli.errors import Failure
from mirrorfs.cli.mounted import require_serving
from mirrorfs.cli.replay_plan import told_errors_of_plan
from mirrorfs.cli.replay_run import shown_progress as run_progress
from mirrorfs.cli.replay_run import told_errors, unsettled
from mirrorfs.cli.restore_progress import count
from mirrorfs.cli.verify import MOST_SHOWN, cost_of, shown_progress, verified
from mirrorfs.filesystem.condition import Condition, condition_of
from mirrorfs.objectstore.url import StoreAddress, StoreOptions
from mirrorfs.output import begin_log, say, say_json
from mirrorfs.recovery.selection import Selection
from mirrorfs.recovery.source import View
from mirrorfs.recovery.verification import Damage, Depth, VerificationReport
from mirrorfs.replay.plan import Plan, PlanSettings
from mirrorfs.replay.run import Replay, ReplaySettings
from mirrorfs.replay.source import Source, find_place
from mirrorfs.replication.engine import Engine
from mirrorfs.replication.questions import Answer, ask
from mirrorfs.replication.settings import UploaderSettings
from mirrorfs.replication.work.items import path_in_bucket
from mirrorfs.supervision.asking import lingering_at
from mirrorfs.supervision.registry import state_directory_of
from mirrorfs.supervision.settings import MountSettings

# A question to the uploader is one line of 64 KiB at most.
_BYTES_A_QUESTION = 32 * 1024
_EVERYTHING = Depth(100.0)
_STATUS_SECONDS = 10.0


@dataclass(slots=True)
class _Outcome:
    """The damages that were sent again (or would be), and those that stay, with the reason."""

    healed: list[Damage] = field(default_factory=list)
    lost: list[tuple[Damage, str]] = field(default_factory=list)

    def take(self, damages: Sequence[Damage], healed: Collection[str], lost: Mapping[str, str]) -> None:
        """Sort damages by what has become of their paths; those in neither are good after all, or needed no more."""
        self.healed += [damage for damage in damages if damage.path in healed]
        self.lost += [(damage, lost[damage.path]) for damage in damages if damage.path in lost]


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
    """Read what the bucket at `address` holds, have what is damaged sent again, and tell: by the mirror mounted at
    `path`, or, if none is, as that would do it; nothing else is done then, and nothing removed.

    Returns whether nothing stays damaged. Raises Failure.
    """
    is_mounted = condition_of(path) is not Condition.ABSENT or lingering_at(path) is not None
    if is_mounted:
        require_serving(path)
        _refuse_another_mirror(path, address)
    report = verified(address, selection, View(), _EVERYTHING, None, parallel, store, shown_progress())
    outcome = _Outcome()
    if is_mounted:
        for damages in _questions(report.damages):
            _ask(path, damages, outcome, dry_run=dry_run)
    elif report.damages and dry_run:
        _foresee_without_mount(_settings_without_mount(path, address, store), report.damages, outcome)
    elif report.damages:
        _send_without_mount(_settings_without_mount(path, address, store), report.damages, outcome)
    if as_json:
        say_json(_as_json(path, address, report, outcome, dry_run=dry_run), indent=2)
    else:
        _tell(report, outcome, dry_run=dry_run)
    return not outcome.lost and not report.damages_left_out


def _refuse_another_mirror(path: str, address: StoreAddress) -> None:
    """What another bucket lacks is not in the one that the mount would look into."""
    status = _answer(path, "status", _STATUS_SECONDS, {})
    if (status["bucket"], status["prefix"]) != (address.bucket, address.prefix):
        raise Failure(
            f"{path} is mirrored to s3://{status['bucket']}/{status['prefix']}, and its mount can send nothing to "
            f"{address}: leave out --from"
        )


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
    arguments = {"paths": [damage.path for damage in damages], "dry_run": dry_run}
    answer = _answer(path, "heal", None, arguments)
    if "error" in answer:
        raise Failure(f"nothing more was sent: {answer['error']}")
    outcome.take(damages, answer["healed"], answer["lost"])


def _answer(path: str, command: str, seconds: float | None, arguments: dict[str, object]) -> Answer:
    directory = state_directory_of(path)
    try:
        return ask(directory.control_socket, command, seconds, arguments=arguments)
    except (ConnectionError, FileNotFoundError, TimeoutError):
        raise Failure(
            f"the uploader of {path} does not run or answer, or has ended meanwhile; the mount starts it again. What "
            f"was sent stays. Give the same command again in a minute; if this lasts, see {directory.log_file}"
        ) from None


def _settings_without_mount(path: str, address: StoreAddress, store: StoreOptions) -> UploaderSettings:
    # What is for one start of a mount only is not for a repair.
    return replace(
        _settings_of_mount(path, address),
        bucket=address.bucket,
        prefix=address.prefix,
        store=store,
        take_over=False,
        allow_removals=False,
    )


def _foresee_without_mount(settings: UploaderSettings, damages: Sequence[Damage], outcome: _Outcome) -> None:
    directory = settings.state_directory
    reasons = {damage.path: damage.reason for damage in damages}
    planned = PlanSettings(settings, asks_store=True, command="heal --bucket")
    begin_log("heal", verbose=False)
    with told_errors(), Source(directory, find_place(directory)) as source, Plan(source, planned) as plan:
        with told_errors_of_plan():
            healing = trio.run(plan.foresee_healing, reasons)
        outcome.take(damages, healing.healed, healing.lost)
    say(*plan.notes, err=True)


def _send_without_mount(settings: UploaderSettings, damages: Sequence[Damage], outcome: _Outcome) -> None:
    async def send(engine: Engine) -> None:
        healing = await engine.mirror.heal_bucket([damage.path for damage in damages], dry_run=False)
        outcome.take(damages, healing.healed, healing.lost)

    begin_log("heal", verbose=False)
    shown = run_progress()
    replay = ReplaySettings(settings, repair=send)
    with told_errors(), Replay(settings.state_directory, replay, shown.tell) as run, shown.shown():
        done = run.run()
    # What is lost in the bucket is told with the damages.
    problems = [problem for problem in done.problems if path_in_bucket(problem.name) is None]
    approval = f"mount {settings.datastore}, and give 'mirrorfs retention approve {settings.datastore}'"
    say(
        *unsettled(replace(done, problems=problems), approval),
        err=True,
    )


def _settings_of_mount(path: str, address: StoreAddress) -> UploaderSettings:
    """Return what a mount of the datastore would be told, by its settings file and the environment."""
    arguments = ("mount", path, "--to", str(address), "--show-settings", os.getcwd())
    done = subprocess.run(
        interpreter.command("mirrorfs.cli", *arguments),
        env=interpreter.environment(),
        cwd=interpreter.WORKING_DIRECTORY,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        raise Failure(done.stderr.decode(errors="replace").strip())
    return MountSettings.decode(done.stdout).uploader


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
