"""The status of a mirror as lines for people."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from mirrorfs.cli.wait import describe_broken_journal
from mirrorfs.replication.questions import Answer
from mirrorfs.replication.waiting import BEFORE_THE_FIRST_ANSWER

_HELD_FOR = {
    "wave": "snapshots are gone from the datastore, more than may go in a day",
    "unseen": "snapshots are not in the datastore and were not seen to go (was an older copy of it put back?)",
    "stranger": "snapshots are in the bucket and not in the datastore, and somebody else has used the bucket's name",
}


def describe(answer: Answer) -> list[str]:
    """Return all that there is to tell, the word first."""
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
        lines.append(f"waiting     since {shown_time(answer['waiting']['since'])}: {answer['waiting']['because']}")
    lines.append(f"recovery    {shown_recovery_point(answer['recovery_point'])}")
    if "backlog" in answer:
        backlog = answer["backlog"]
        lines.append(
            f"backlog     {backlog['items']} items, at least {shown_size(backlog['bytes_at_least'])}; "
            f"lag {answer['lag_seconds']:.0f} s{_describe_drain(backlog['drain_seconds'])}"
        )
    lines.append(
        f"sent        {uploaded['objects']} objects, {shown_size(uploaded['bytes'])} since the uploader started; "
        f"now {shown_size(uploaded['bytes_per_second'])}/s"
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
    since = shown_time(failing["since"])
    return f"the {failing['process']} has ended {failing['deaths']} times in a row since {since}: it {failing['last']}"


def shown_recovery_point(point: dict[str, Any]) -> str:
    """Tell the oldest backup that is missing."""
    if not point["missing"]:
        return "every finished backup is in the bucket"
    more = f", {point['missing']} are not in the bucket" if point["missing"] > 1 else ", not in the bucket"
    return f"{shown_age(point['age_seconds'])} ago: {point['oldest']}{more}"


def _describe_drain(seconds: float | None) -> str:
    if seconds is None:
        return "; nothing is sent at present"
    return f"; done in {shown_age(seconds)} at the present rate" if seconds else ""


def shown_age(seconds: float) -> str:
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
        said.append(f"everything has been read since {shown_time(scrub['oldest'])}")
    if scrub["refusal"] is not None:
        said.append(f"not all can be read: {scrub['refusal']}")
    return ", ".join(said)


def _as_of(answer: Answer) -> str:
    """What is known of the bucket is known to be true only since it was last seen to be this mirror's."""
    looked_at = answer["claim"]["looked_at"]
    if answer["claim"]["is_current"]:
        return ""
    return " (as far as it is known without the store)" if looked_at is None else f" (as of {shown_time(looked_at)})"


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
            until = f", the first at the latest until {shown_time(min(ends))}" if ends else ""
            lines.append(
                f"held        {len(held)} {why}; they stay in the bucket until 'mirrorfs retention approve'{until}"
            )
            lines += [f"              {removal['snapshot']}" for removal in held]
    if retention["deleted"]:
        next_end = min(snapshot["until"] for snapshot in retention["deleted"])
        lines.append(
            f"deleted     {len(retention['deleted'])} removed snapshots are still restorable, the first until "
            f"{shown_time(next_end)}; see 'mirrorfs snapshots --deleted'"
        )
    if retention["refused"]["count"]:
        lines.append(f"refused     {retention['refused']['count']} deletions that the store does not allow for now")
        lines += [
            f"              {refusal['name']}: {refusal['reason']}" for refusal in retention["refused"]["examples"]
        ]
    return lines


def _describe_store(store: dict[str, Any], phase: str) -> str:
    if store["up"] and phase == BEFORE_THE_FIRST_ANSWER:
        return f"{store['place']} has not answered yet"
    if store["up"]:
        return f"{store['place']} answers; confirmed by {store['confirmation']}"
    return f"{store['place']} is not usable since {shown_time(store['since'])}: {store['last_error']}"


def shown_time(moment: float) -> str:
    """Write a Unix time."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def shown_size(count: float) -> str:
    """Write a number of bytes."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
