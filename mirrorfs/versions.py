"""Which mirrorfs this is, and of which versions what matters to it is: for people, and for reports of faults."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path

from mirrorfs import __version__

_PACKAGE = Path(__file__).parent
# What speaks to the kernel, to the disk and to the store.
_MATTERING = ("boto3", "botocore", "click", "crc32c", "lmdb", "pyfuse3", "trio", "urllib3", "zstandard")
_commit = re.compile(r"[0-9a-f]{40,64}")


def versions() -> dict[str, str]:
    """Return the versions by name, mirrorfs first; what is not known is "unknown"."""
    return {
        "mirrorfs": __version__,
        "commit": commit() or "unknown",
        "Python": platform.python_version(),
        "Linux": os.uname().release,
        **{name: _version_of(name) for name in _MATTERING},
    }


def commit() -> str | None:
    """Return the commit that this was built from or, in a clone of the repository, that is checked out."""
    git = _PACKAGE.parent / ".git"
    return _as_commit(_text(_PACKAGE / "commit")) or _checked_out(git)


def _checked_out(git: Path) -> str | None:
    head = _text(git / "HEAD")
    if not head.startswith("ref: "):
        return _as_commit(head)
    name = head.removeprefix("ref: ").strip()
    packed = re.search(rf"^([0-9a-f]+) {re.escape(name)}$", _text(git / "packed-refs"), re.MULTILINE)
    return _as_commit(_text(git / name)) or (None if packed is None else _as_commit(packed[1]))


def _as_commit(text: str) -> str | None:
    return text.strip() if _commit.fullmatch(text.strip()) else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _version_of(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"
