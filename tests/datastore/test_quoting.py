"""What others wrote is escaped and cut where it is quoted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.datastore.quoting import LONGEST_QUOTATION, cut, quoted


@given(st.text() | st.binary() | st.lists(st.text()) | st.text(min_size=200))
def test_a_quotation_is_one_short_line(value: object) -> None:
    text = quoted(value)
    assert len(text) <= LONGEST_QUOTATION + 2
    assert text.isprintable()


@given(st.text(max_size=20))
def test_what_is_short_is_quoted_whole(value: str) -> None:
    if value.isprintable():
        assert quoted(value) == repr(value)


def test_what_is_cut_says_so() -> None:
    assert quoted("a" * 100) == f"'{'a' * 100}'"
    assert quoted("a" * 101) == f"'{'a' * 99}…"
    assert quoted("\x00" * 50).endswith("…")
    assert cut("a" * 10, 5) == "aaaaa…"
    assert cut("a" * 5, 5) == "aaaaa"
