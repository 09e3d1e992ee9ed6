"""What is told: one event, as JSON, as variables of the environment, and as a mail."""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from enum import Enum

from mirrorfs.output import printable
from mirrorfs.replication.verdict import NOTHING_TO_DO, Verdict, Word


class Kind(Enum):
    """What has happened; the values are for programs and do not change."""

    BROKEN = "broken"
    HELD = "held"
    BEHIND = "behind"
    RECOVERED = "recovered"
    TEST = "test"


KINDS = {Word.BROKEN: Kind.BROKEN, Word.HELD: Kind.HELD, Word.BEHIND: Kind.BEHIND}
"""The words of a status that are told. An outage is not: after a quarter of an hour it is called broken."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event of one datastore. Everything in it is printable: names come from others."""

    event: str
    datastore: str
    host: str
    time: str
    why: str
    to_do: str

    def as_json(self) -> bytes:
        """Write it as one line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"

    def as_environment(self) -> dict[str, str]:
        """Return it as variables, whose names begin with MIRRORFS_."""
        return {f"MIRRORFS_{name.upper()}": value for name, value in asdict(self).items()}

    def as_mail(self, address: str) -> bytes:
        """Return it as a mail to an address, with its header."""
        mail = EmailMessage()
        mail["To"] = address
        mail["Subject"] = f"mirrorfs on {self.host}: {self.datastore} {_IN_A_SUBJECT[Kind(self.event)]}"
        # What answers by itself, such as a note of absence, is not to answer this.
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(
            "\n".join((self.why, self.to_do, "", f"datastore: {self.datastore}", f"time: {self.time}", ""))
        )
        return mail.as_bytes()


_IN_A_SUBJECT = {
    Kind.BROKEN: "is broken",
    Kind.HELD: "holds removals",
    Kind.BEHIND: "is behind",
    Kind.RECOVERED: "is well again",
    Kind.TEST: "(test)",
}


def event_of(kind: Kind, datastore: str, verdict: Verdict) -> Event:
    """Make an event of now."""
    return Event(
        kind.value,
        printable(datastore),
        printable(socket.gethostname()),
        datetime.now(UTC).isoformat(timespec="seconds"),
        printable(verdict.why),
        printable(verdict.to_do),
    )


def trial_event(datastore: str) -> Event:
    """Make an event that says that it is none."""
    why = "This is a test: somebody has called 'mirrorfs notify test'."
    return event_of(Kind.TEST, datastore, Verdict(Word.HEALTHY, why, NOTHING_TO_DO))
