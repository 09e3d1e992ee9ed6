"""What a recorded name is, in a word, and what the state knows of it."""

from __future__ import annotations

import os
from typing import Any

from mirrorfs.datastore.names import (
    PROTECTED_NAME,
    ChunkName,
    ForeignName,
    GroupDirectoryName,
    GroupFileName,
    InternalName,
    NamespaceDirectoryName,
    QuarantinedChunkName,
    SnapshotDirectoryName,
    SnapshotFileName,
    SnapshotId,
    StructureName,
    TypeDirectoryName,
    classify,
)
from mirrorfs.replication.work.items import item_of, problem_name
from mirrorfs.state.state import StateTransaction

KINDS = (
    "chunk",
    "quarantined-chunk",
    "manifest",
    "index",
    "blob",
    "protection",
    "owner",
    "notes",
    "snapshot",
    "group",
    "type",
    "namespace",
    "structure",
    "internal",
    "foreign",
)
"""The words of `kind_of`."""


def kind_of(path: bytes) -> str:
    """Return one of KINDS: what a name is by its form, whatever stands there."""
    match classify(path):
        case ChunkName():
            return "chunk"
        case QuarantinedChunkName():
            return "quarantined-chunk"
        case SnapshotFileName(filename=filename) as name:
            return "manifest" if name.is_manifest else _kind_of_file(filename)
        case GroupFileName(filename=filename):
            return filename
        case SnapshotDirectoryName():
            return "snapshot"
        case GroupDirectoryName():
            return "group"
        case TypeDirectoryName():
            return "type"
        case NamespaceDirectoryName():
            return "namespace"
        case StructureName():
            return "structure"
        case InternalName():
            return "internal"
        case ForeignName():
            return "foreign"


def _kind_of_file(filename: str) -> str:
    if filename == PROTECTED_NAME:
        return "protection"
    return "index" if filename.endswith((".fidx", ".didx")) else "blob"


def knowledge_of(transaction: StateTransaction, path: bytes) -> dict[str, Any]:
    """Return what the state knows of a name, ready for JSON; docs/replay.md says what the keys mean.

    Raises DatabaseCorrupt.
    """
    known: dict[str, Any] = {}
    match classify(path):
        case ChunkName(digest=digest) | QuarantinedChunkName(digest=digest):
            chunk = transaction.chunks.get(digest)
            known["object"] = None if chunk is None else _object(chunk.size, chunk.crc32c, chunk.confirmed)
            known["references"] = 0 if chunk is None else chunk.references
            known["quarantined_since"] = transaction.quarantine.since(digest)
        case SnapshotFileName(snapshot=snapshot):
            known["object"] = _content(transaction, os.fsdecode(path))
            known["snapshot"] = _snapshot(transaction, snapshot)
        case SnapshotDirectoryName(snapshot=snapshot):
            known["snapshot"] = _snapshot(transaction, snapshot)
        case GroupFileName():
            known["object"] = _content(transaction, os.fsdecode(path))
        case NamespaceDirectoryName(namespace=namespace):
            known["object"] = _content(transaction, f"{namespace.path}/.namespace")
    item = item_of(path)
    problem = None if item is None else transaction.problems.get(problem_name(item))
    known["problem"] = None if problem is None else {"reason": problem.reason, "since": problem.since}
    return known


def _content(transaction: StateTransaction, path: str) -> dict[str, Any] | None:
    content = transaction.contents.get(path)
    return None if content is None else _object(content.size, content.crc32c, content.confirmed)


def _object(size: int, crc32c: int, confirmed: bool) -> dict[str, Any]:
    return {
        "confirmed": confirmed,
        "size": size if confirmed else None,
        "crc32c": f"{crc32c:08x}" if confirmed else None,
    }


def _snapshot(transaction: StateTransaction, snapshot: SnapshotId) -> dict[str, Any] | None:
    known = transaction.snapshots.get(snapshot.path)
    return None if known is None else {"phase": known.phase.value, "since": known.since}


def describe_knowledge(known: dict[str, Any]) -> str:
    """Return in a few words what `knowledge_of` has found."""
    words = []
    if known.get("snapshot") is not None:
        words.append(f"snapshot {known['snapshot']['phase']}")
    if "object" in known:
        words.append(_describe_object(known["object"]))
    if known.get("references"):
        words.append(f"{known['references']} references")
    if known.get("quarantined_since") is not None:
        words.append("in quarantine")
    if known["problem"] is not None:
        words.append(f"problem: {known['problem']['reason']}")
    return ", ".join(words) or "-"


def _describe_object(known: dict[str, Any] | None) -> str:
    if known is None:
        return "no object"
    return f"object of {known['size']} bytes" if known["confirmed"] else "object not confirmed"
