"""`mirrorfs status`."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any, NoReturn

import click

from mirrorfs.cli.durations import Duration
from mirrorfs.cli.errors import Failure, require_root
from mirrorfs.cli.mounted import locate
from mirrorfs.cli.screen import clear
from mirrorfs.cli.settings_file import DATASTORE
from mirrorfs.cli.wait import describe_broken_journal
from mirrorfs.filesystem.condition import Condition, condition_of
from mirrorfs.output import say, say_json
from mirrorfs.own_files import NotOwn
from mirrorfs.replication.control import Answer
from mirrorfs.replication.verdict import Word
from mirrorfs.replication.waiting import needs_an_administrator
from mirrorfs.supervision import asking
from mirrorfs.supervision.registry import RunningMount, running_mounts

_WATCH_SECONDS = 2.0
# The uploader's phase in which nothing is known of the store, for it or against it.
_BEFORE_THE_FIRST_ANSWER = "waiting for the store"
_NOTES = {
    Condition.SERVING: "",
    Condition.DEAD: " (dead: its process was killed; mount it again)",
    Condition.SILENT: " (does not answer: its process is stopped, or the disk of the datastore hangs)",
    Condition.ABSENT: " (unmounted, but something keeps it: 'mirrorfs umount' ends it)",
}


_HELD_FOR = {
    "wave": "snapshots are gone from the datastore, more than may go in a day",
    "unseen": "snapshots are not in the datastore and were not seen to go (was an older copy of it put back?)",
    "stranger": "snapshots are in the bucket and not in the datastore, and somebody else has used the bucket's name",
}


@click.command("status")
@click.argument("datastore", type=DATASTORE, required=False)
@click.option(
    "--json",
    "as_json",
    envvar="MIRRORFS_STATUS_JSON",
    is_flag=True,
    help="One JSON object (documented in docs/status.md).",
)
@click.option("--watch", is_flag=True, help=f"Show it again every {_WATCH_SECONDS:g} seconds, until Ctrl-C.")
@click.option(
    "--check",
    is_flag=True,
    help="One line and an exit code for Nagios, Checkmk and their kind: 0 well, 1 to be looked at, 2 to be mended.",
)
@click.option(
    "--warning",
    type=Duration(),
    default="1h",
    metavar="DURATION",
    help="The mirror is behind when a finished backup is not in the bucket for so long.",
)
@click.option(
    "--critical",
    type=Duration(),
    default="1d",
    metavar="DURATION",
    help="With --check: exit with 2 when a finished backup is not in the bucket for so long.",
)
def command(datastore: str | None, as_json: bool, watch: bool, check: bool, warning: float, critical: float) -> None:
    """Tell how the mirror of DATASTORE is, first in one word: healthy, behind, held, waiting or broken.

    Then come why and what to do, the recovery point (the age of the oldest finished backup that is not in the bucket),
    the backlog and how long it takes at the present rate, and what is wrong.
    Without DATASTORE, the mounts that are up on this machine are listed.

    \b
    Example:
      mirrorfs status /mnt/datastore/store1 --watch
      mirrorfs status /mnt/datastore/store1 --json | jq .problems
      mirrorfs status /mnt/datastore/store1 --check --warning 2h --critical 12h

    Exit codes: 0 all is well or being worked on; 1 not mounted, something cannot be mirrored, or nothing is for
    a reason that you could end; 2 wrong usage. An outage is being worked on for its first 15 minutes. With --check:
    0 healthy; 1 behind, held or waiting; 2 broken, later than --critical, not mounted, or without an answer.
    """
    require_root("ask a mirror for its status")
    if datastore is None:
        _list_mounts(as_json)
        return
    path = locate(datastore)
    if check:
        _check(path, warning, critical)
    while True:
        answer = _read(path, warning)
        if watch:
            clear()
        if as_json:
            say_json(answer, indent=1)
        else:
            say(*_describe(answer))
        if not watch:
            break
        time.sleep(_WATCH_SECONDS)
    if _is_to_be_mended(answer):
        raise SystemExit(1)


def _is_to_be_mended(answer: Answer) -> bool:
    """Tell whether the exit code of `status` is 1."""
    wrong = (answer["problems"], answer["failing_processes"], needs_an_administrator(answer))
    return any(wrong) or answer["journal_broken_since"] is not None


def _check(path: str, warning: float, critical: float) -> NoReturn:
    """Print the line of a plugin, and end with its exit code; whatever goes wrong is one too."""
    try:
        answer = _read(path, warning)
    except (Failure, NotOwn) as error:
        say(f"MIRRORFS CRITICAL - {error}")
        raise SystemExit(2) from None
    age = answer["recovery_point"]["age_seconds"]
    code = 2 if age > critical else Word(answer["word"]).exit_code
    backlog = answer.get("backlog", {}).get("bytes_at_least", 0)
    say(
        f"MIRRORFS {('OK', 'WARNING', 'CRITICAL')[code]} - {answer['word']}: {answer['why']} "
        f"| recovery_point={age:.0f}s;{warning:.0f};{critical:.0f};0 backlog={backlog}B;;;0"
    )
    raise SystemExit(code)


def _list_mounts(as_json: bool) -> None:
    mounts = running_mounts()
    if as_json:
        say_json([_mount_answer(mount) for mount in mounts], indent=1)
        return
    if not mounts:
        say("no mirrorfs is mounted")
    for mount in mounts:
        note = _NOTES[condition_of(mount.mountpoint)]
        say(f"{mount.datastore} on {mount.mountpoint}, process {mount.pid}{note}")


def _mount_answer(mount: RunningMount) -> dict[str, Any]:
    condition = condition_of(mount.mountpoint)
    return {
        "datastore": mount.datastore,
        "mountpoint": mount.mountpoint,
        "state_directory": mount.state_directory,
        "pid": mount.pid,
        "dead": condition is Condition.DEAD,
        "condition": condition.value,
    }


def _read(path: str, warning: float) -> Answer:
    try:
        return asking.read_status(path, warning)
    except asking.NoAnswer as error:
        raise Failure(str(error)) from None


def _describe(answer: Answer) -> list[str]:
    uploader, store, uploaded = answer["uploader"], answer["store"], answer["uploaded"]
    published = [entry for entry in answer["snapshots"] if entry["phase"] == "published"]
    lines = [
        f"{answer['word']}: {answer['why']}",
        f"  {answer['to_do']}",
        "",
        f"datastore   {answer['datastore']} -> s3://{answer['bucket']}/{answer['prefix']}",
        f"uploader    {uploader['refused'] or uploader['phase']}",
        f"store       {_describe_store(store, uploader['phase'])}",
        f"snapshots   {len(published)} published{_as_of(answer)}, {len(answer.get('publishing', {}))} being published",
        f"chunks      {answer['chunks']} in the bucket",
        f"chunk store {_describe_chunk_store(answer['chunk_store'])}",
    ]
    if answer.get("waiting") is not None and store["up"]:
        lines.append(f"waiting     since {_time(answer['waiting']['since'])}: {answer['waiting']['because']}")
    lines.append(f"recovery    {_describe_recovery_point(answer['recovery_point'])}")
    if "backlog" in answer:
        backlog = answer["backlog"]
        lines.append(
            f"backlog     {backlog['items']} items, at least {_size(backlog['bytes_at_least'])}; "
            f"lag {answer['lag_seconds']:.0f} s{_describe_drain(backlog['drain_seconds'])}"
        )
    lines.append(
        f"sent        {uploaded['objects']} objects, {_size(uploaded['bytes'])} since the uploader started; "
        f"now {_size(uploaded['bytes_per_second'])}/s"
    )
    if not store["clock_is_trusted"]:
        lines.append(
            f"clock       the store's differs by {store['clock_difference']:.0f} s: nothing goes because of its age "
            "until one is set right"
        )
    if answer["journal_broken_since"] is not None:
        lines.append(f"journal     {describe_broken_journal(answer['journal_broken_since'])}")
    lines += [f"failing     {_describe_failing(failing)}" for failing in answer["failing_processes"]]
    if answer["foreign"]["count"]:
        lines.append(f"foreign     {answer['foreign']['count']} names that are none of PBS's, passed through only")
        lines += [f"              {name!r}" for name in answer["foreign"]["examples"]]
    for name in store.get("does_without", ()):
        lines.append(f"store       does without {name}")
    for request in store.get("requests_without_progress", ()):
        lines.append(f"stalled     for {request['seconds']:.0f} s: {request['request']}")
    if answer.get("locks_obstacle"):
        lines.append(f"locks       {answer['locks_obstacle']}")
    if "scrub" in answer:
        lines.append(f"scrub       {_describe_scrub(answer['scrub'])}")
    lines += _describe_quarantine(answer["quarantined"])
    lines += _describe_retention(answer["retention"])
    if answer["problems"]:
        lines.append(f"problems    {sum(problem.get('count', 1) for problem in answer['problems'])}")
        lines += [f"              {problem['name']}: {problem['reason']}" for problem in answer["problems"]]
    return lines


def _describe_failing(failing: dict[str, Any]) -> str:
    since = _time(failing["since"])
    return f"the {failing['process']} has died {failing['deaths']} times in a row since {since}: it {failing['last']}"


def _describe_recovery_point(point: dict[str, Any]) -> str:
    if not point["missing"]:
        return "every finished backup is in the bucket"
    more = f", {point['missing']} are not in the bucket" if point["missing"] > 1 else ", not in the bucket"
    return f"{_age(point['age_seconds'])} ago: {point['oldest']}{more}"


def _describe_drain(seconds: float | None) -> str:
    if seconds is None:
        return "; nothing is sent at present"
    return f"; done in {_age(seconds)} at the present rate" if seconds else ""


def _age(seconds: float) -> str:
    """Write a time that has passed, in its two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    first = next((place for place, (count, _) in enumerate(parts) if count), 3)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count) or "0 s"


def _describe_chunk_store(chunk_store: dict[str, str]) -> str:
    if chunk_store["in_use"] == "native":
        return "native: PBS works on .chunks of the backing directory itself"
    return f"fuse: {chunk_store['reason']}"


def _describe_scrub(scrub: dict[str, Any]) -> str:
    if not scrub["percent_per_day"]:
        return "off (verify.percent_per_day = 0)"
    said = [f"{scrub['percent_per_day']:g} % a day; {scrub['objects']} objects read since the uploader started"]
    if scrub["sent_again"]:
        said.append(f"{scrub['sent_again']} of them sent again")
    if scrub["never_read"]:
        said.append(f"{scrub['never_read']} of {len(scrub['parts'])} parts not read yet")
    else:
        said.append(f"everything has been read since {_time(scrub['oldest'])}")
    if scrub["refusal"] is not None:
        said.append(f"not all can be read: {scrub['refusal']}")
    return ", ".join(said)


def _as_of(answer: Answer) -> str:
    """What is known of the bucket is known to be true only since it was last seen to be this mirror's."""
    looked_at = answer["claim"]["looked_at"]
    if answer["claim"]["is_current"]:
        return ""
    return " (as far as it is known without the store)" if looked_at is None else f" (as of {_time(looked_at)})"


def _describe_quarantine(quarantined: dict[str, Any]) -> list[str]:
    if not quarantined["count"]:
        return []
    lines = [f"quarantine  {quarantined['count']} chunks that PBS found corrupt"]
    for chunk in quarantined["examples"]:
        copy = "the bucket has a good copy" if chunk["bucket_has_a_good_copy"] else "the bucket has NO good copy"
        lines.append(f"              {chunk['chunk']}: {copy}")
    return lines


def _describe_retention(retention: dict[str, Any]) -> list[str]:
    lines = []
    for reason, why in _HELD_FOR.items():
        held = [removal for removal in retention["held"] if removal["reason"] == reason]
        if held:
            ends = [removal["goes_at"] for removal in held if removal["goes_at"] is not None]
            until = f", the first at the latest until {_time(min(ends))}" if ends else ""
            lines.append(
                f"held        {len(held)} {why}; they stay in the bucket until 'mirrorfs retention approve'{until}"
            )
            lines += [f"              {removal['snapshot']}" for removal in held]
    if retention["deleted"]:
        next_end = min(snapshot["until"] for snapshot in retention["deleted"])
        lines.append(
            f"deleted     {len(retention['deleted'])} removed snapshots are still restorable, the first until "
            f"{_time(next_end)}; see 'mirrorfs snapshots --deleted'"
        )
    if retention["refused"]["count"]:
        lines.append(f"refused     {retention['refused']['count']} deletions that the store does not allow for now")
        lines += [
            f"              {refusal['name']}: {refusal['reason']}" for refusal in retention["refused"]["examples"]
        ]
    return lines


def _describe_store(store: dict[str, Any], phase: str) -> str:
    if store["up"] and phase == _BEFORE_THE_FIRST_ANSWER:
        return f"{store['place']} has not answered yet"
    if store["up"]:
        return f"{store['place']} answers; confirmed by {store['confirmation']}"
    return f"{store['place']} is not usable since {_time(store['since'])}: {store['last_error']}"


def _time(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
