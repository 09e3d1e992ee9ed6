"""What others wrote, in messages: escaped and cut, so that no object can fill a log."""

from __future__ import annotations

LONGEST_QUOTATION = 100
"""In characters."""


def quoted(value: object) -> str:
    """``value`` in quotation marks as Python writes it, with whatever is not printable escaped; at most
    LONGEST_QUOTATION characters of it, and "…" where that is not all.
    """
    if isinstance(value, str | bytes):
        # Cut before it is escaped: what is cut off may be large.
        whole = repr(value[: LONGEST_QUOTATION + 1])
        return whole if len(whole) <= LONGEST_QUOTATION + 2 else f"{whole[:LONGEST_QUOTATION]}…"
    whole = repr(value)
    return whole if len(whole) <= LONGEST_QUOTATION else f"{whole[:LONGEST_QUOTATION]}…"


def cut(text: str, length: int = LONGEST_QUOTATION) -> str:
    """The first ``length`` characters of ``text``, and "…" where that is not all."""
    return text if len(text) <= length else f"{text[:length]}…"
