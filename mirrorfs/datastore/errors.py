"""The errors of this package: each message is a sentence that names what is wrong and where."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class DatastoreError(Exception):
    """Something in a datastore, or offered as part of one, is not what Proxmox Backup Server writes."""


class BlobError(DatastoreError):
    """A DataBlob (chunk or ``.blob`` file) is truncated, of unknown kind, or fails its checksum."""


class IndexFormatError(DatastoreError):
    """A fixed or dynamic index has a wrong magic, checksum or length."""


class ManifestError(DatastoreError):
    """A manifest is malformed, or does not agree with the snapshot or the files it describes."""


class TooMuch(DatastoreError):
    """One input asks for more than this process can give: a problem of that input, not of the process."""


@contextmanager
def contained(what: str) -> Iterator[None]:
    """Have an input within that exhausts memory, the stack or a number's range raise TooMuch, with ``what`` as text."""
    try:
        yield
    except (MemoryError, RecursionError, OverflowError) as error:
        raise TooMuch(f"{what} ({type(error).__name__})") from error
