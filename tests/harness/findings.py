"""What an audit says: broken promises, and how much was looked at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise (P1, P2, P5 or P6), the object's key (relative to the mirror's name), and what is wrong."""

    promise: str
    key: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.promise} {self.key}: {self.sentence}"


@dataclass(slots=True)
class AuditCounts:
    """How much was looked at since the auditor was made.

    left_open: manifests that changed under the audit. undecided: objects that a lagging listing lacked and that are
    there, put later than their manifest: replaced or too late, nobody can tell. rewritten: how
    often a chunk object was put again beneath a manifest that stood all the time (as another compression asks for).
    """

    audits: int = 0
    manifests: int = 0
    files: int = 0
    chunk_references: int = 0
    chunks_read: int = 0
    bytes_read: int = 0
    left_open: int = 0
    undecided: int = 0
    rewritten: int = 0
