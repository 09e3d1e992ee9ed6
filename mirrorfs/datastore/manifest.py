"""Manifests (``index.json.blob``): which files a snapshot consists of, and whether given bytes are they.

A manifest is a DataBlob, never encrypted, holding JSON: ``backup-type``, ``backup-id``, ``backup-time``,
``files`` and ``unprotected``. Source: Proxmox Backup Server, ``pbs-datastore/src/manifest.rs``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

from mirrorfs.datastore.blob import check_blob, decode_blob
from mirrorfs.datastore.content import Content
from mirrorfs.datastore.errors import BlobError, DatastoreError, ManifestError
from mirrorfs.datastore.index import Index, check_index_beginning, is_index_name, parse_index
from mirrorfs.datastore.json_input import MalformedJSON, parse_json
from mirrorfs.datastore.limits import LONGEST_LISTED_BLOB, LONGEST_MANIFEST_CONTENT, LONGEST_NOTES, longest_index
from mirrorfs.datastore.names import BACKUP_TYPES, SnapshotId, is_component, is_listed_file_name
from mirrorfs.datastore.quoting import cut, quoted

_ENCRYPTIONS = ("none", "encrypt", "sign-only")
_MAXIMUM_SIZE = 2**63 - 1


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One listed file. ``size`` in bytes and ``checksum`` (32 bytes) are of the plain archive and of its
    entries for an index, of the whole file for a blob; ``encryption`` is the ``crypt-mode``: none, encrypt or
    sign-only.
    """

    filename: str
    size: int
    checksum: bytes
    encryption: str

    @property
    def is_index(self) -> bool:
        """Whether the file is an index; otherwise it is a blob."""
        return is_index_name(self.filename)

    @property
    def chunks_are_encrypted(self) -> bool:
        """Whether the chunks of this index are to be encrypted, each of them; those of a signed one are not."""
        return self.encryption == "encrypt"

    @property
    def longest(self) -> int:
        """How many bytes the file itself may have, before anything of it is read."""
        return longest_index(self.size) if self.is_index else min(self.size, LONGEST_LISTED_BLOB)

    def check_beginning(self, beginning: bytes, length: int) -> None:
        """Check what a file of `length` bytes begins with, before the rest is read. Raises DatastoreError."""
        if not self.is_index:
            return
        checksum, size = check_index_beginning(self.filename, beginning, length)
        _compare(self, self.size if size is None else size, checksum)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checked manifest, without what nobody here needs.

    ``verify_state`` is the result of the last verification by PBS ("ok" or "failed"), None when there was none;
    ``notes`` are those on the snapshot, cut after LONGEST_NOTES characters, None where there are none.
    """

    backup_type: str
    backup_id: str
    backup_time: int
    files: tuple[ManifestFile, ...]
    verify_state: str | None = None
    notes: str | None = None

    @property
    def checksums(self) -> dict[str, str]:
        """The names of the files with their checksums in hex: what makes a snapshot another one."""
        return {file.filename: file.checksum.hex() for file in self.files}

    @property
    def size(self) -> int:
        """Sum of the sizes of the listed files, in bytes; PBS adds that of the manifest itself."""
        return sum(file.size for file in self.files)

    @property
    def is_encrypted(self) -> bool:
        """Whether at least one of the files is encrypted."""
        return any(file.encryption == "encrypt" for file in self.files)

    @property
    def encryption(self) -> str:
        """What all files have for ``crypt-mode``: none, encrypt or sign-only; "mixed" if they differ, as PBS's web
        interface says it (``Utils.js``, ``calculateCryptMode``).
        """
        found = {file.encryption for file in self.files} or {"none"}
        return found.pop() if len(found) == 1 else "mixed"

    def names_other_than(self, snapshot: SnapshotId) -> str | None:
        """What the manifest calls its snapshot, where that is not what the directory of ``snapshot`` does: cut, for a
        message. The namespace is told by the directory alone.
        """
        group = snapshot.group
        own = (self.backup_type, self.backup_id, self.backup_time)
        if own == (group.backup_type, group.backup_id, snapshot.timestamp):
            return None
        return cut(f"{self.backup_type}/{self.backup_id} of the time {_time_of(self.backup_time)}")


def parse_manifest(data: bytes) -> Manifest:
    """Check and read a whole ``index.json.blob``.

    Raises ManifestError for a damaged blob, malformed JSON, a missing or mistyped field, a checksum that is
    no SHA-256, and for file names that are listed twice, are outside the grammar or name the manifest itself.
    """
    try:
        content = decode_blob(data, maximum_size=LONGEST_MANIFEST_CONTENT)
        value = parse_json(content, maximum_size=LONGEST_MANIFEST_CONTENT)
    except MalformedJSON as error:
        raise ManifestError(f"the manifest {error}") from error
    except DatastoreError as error:
        raise ManifestError(f"the manifest is damaged: {error}") from error
    match value:
        case {
            "backup-type": str(backup_type),
            "backup-id": str(backup_id),
            "backup-time": int(backup_time),
            "files": list(entries),
            **others,
        } if not isinstance(backup_time, bool) and 0 <= backup_time <= _MAXIMUM_SIZE:
            pass
        case _:
            raise ManifestError("the manifest lacks backup-type, backup-id, backup-time or files")
    if backup_type not in BACKUP_TYPES or not is_component(backup_id):
        raise ManifestError(f"the manifest names no valid backup group ({quoted(backup_type)}, {quoted(backup_id)})")
    files = tuple(_parse_file(entry) for entry in entries)
    _reject_duplicates(files)
    verify_state, notes = _shown_of(others.get("unprotected", {}))
    return Manifest(backup_type, backup_id, backup_time, files, verify_state, notes)


def check_listed_file(file: ManifestFile, data: Content) -> Index | None:
    """Check the whole content of a listed file against its manifest entry; returns the index if it is one.

    An index must be intact and have the listed checksum and size; a blob must have a right CRC, and the
    listed length and SHA-256. Raises ManifestError, IndexFormatError or BlobError.
    """
    if file.is_index:
        index = parse_index(file.filename, data)
        _compare(file, index.size, index.checksum)
        return index
    try:
        check_blob(data)
    except BlobError as error:
        raise BlobError(f"{file.filename} is damaged: {error}") from error
    _compare(file, len(data), hashlib.sha256(data).digest())
    return None


def _compare(file: ManifestFile, size: int, checksum: bytes) -> None:
    if size != file.size:
        raise ManifestError(f"{file.filename} has the size {size}, the manifest says {file.size}")
    if checksum != file.checksum:
        raise ManifestError(
            f"{file.filename} has the checksum {checksum.hex()}, the manifest says {file.checksum.hex()}"
        )


def _parse_file(entry: object) -> ManifestFile:
    match entry:
        case {"filename": str(filename), "size": int(size), "csum": str(checksum), **others}:
            pass
        case _:
            raise ManifestError("the manifest lists a file without filename, size or csum")
    if not is_listed_file_name(filename):
        raise ManifestError(f"the manifest lists a file with the forbidden name {quoted(filename)}")
    if isinstance(size, bool) or not 0 <= size <= _MAXIMUM_SIZE:
        raise ManifestError(f"the manifest lists {filename} with the impossible size {size}")
    # Older clients wrote no crypt-mode; PBS then takes "none".
    encryption = others.get("crypt-mode", "none")
    if not isinstance(encryption, str) or encryption not in _ENCRYPTIONS:
        raise ManifestError(f"the manifest lists {filename} with an unknown crypt-mode")
    return ManifestFile(filename, size, _parse_checksum(filename, checksum), encryption)


def _parse_checksum(filename: str, text: str) -> bytes:
    try:
        checksum = bytes.fromhex(text)
    except ValueError as error:
        raise ManifestError(f"the manifest lists {filename} with a checksum that is not hexadecimal") from error
    if len(text) != 64 or len(checksum) != 32:
        raise ManifestError(f"the manifest lists {filename} with a checksum that is no SHA-256")
    return checksum


def _time_of(timestamp: int) -> str:
    try:
        return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{timestamp} s after 1970"


def _reject_duplicates(files: tuple[ManifestFile, ...]) -> None:
    seen: set[str] = set()
    for file in files:
        if file.filename in seen:
            raise ManifestError(f"the manifest lists {file.filename} twice")
        seen.add(file.filename)


def _shown_of(unprotected: object) -> tuple[str | None, str | None]:
    """Verify state and notes, of what PBS may change after the backup."""
    if not isinstance(unprotected, dict):
        raise ManifestError("the manifest's unprotected part is not an object")
    state = notes = None
    match unprotected.get("verify_state"):
        case {"state": str(found)}:
            state = cut(found)
    match unprotected.get("notes"):
        case str(found):
            notes = cut(found, LONGEST_NOTES)
    return state, notes
