"""JSON that others wrote: bounds are bounds, and within them it is what Python reads."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.datastore.json_input import LARGEST_DEPTH, MOST_VALUES, MalformedJSON, parse_json

SIZE = 4 * 1024 * 1024
MEMORY = 40_000_000

texts = st.text(max_size=6) | st.sampled_from(['"', "\\", "[", "{", ",", "\\u0022", '\\"', "é", "\U0001f600"])
values: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**38), 10**38) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
    max_leaves=25,
)


def depth_of(value: object) -> int:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth_of, inner), default=0)


def count_of(value: object) -> int:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else max(1, len(inner)) + sum(map(count_of, inner))


@given(values, st.booleans(), st.sampled_from([None, 1]))
def test_within_the_bounds_it_is_what_python_reads(value: object, ascii_only: bool, indent: int | None) -> None:
    data = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    most = count_of(value)
    if depth_of(value) <= LARGEST_DEPTH:
        assert parse_json(data, maximum_size=len(data), most_values=most) == value
    with pytest.raises(MalformedJSON, match="larger than"):
        parse_json(data, maximum_size=len(data) - 1)
    if most:
        with pytest.raises(MalformedJSON, match="values"):
            parse_json(data, maximum_size=len(data), most_values=most - 1)


@given(st.binary(max_size=60) | st.text(alphabet='[]{}",:\\0a ', max_size=30).map(str.encode))
def test_anything_else_is_malformed(data: bytes) -> None:
    try:
        expected: object = json.loads(data.decode())
    except ValueError:
        with pytest.raises(MalformedJSON):
            parse_json(data, maximum_size=100)
    else:
        assert parse_json(data, maximum_size=100) == expected


def test_the_depth() -> None:
    for depth in (LARGEST_DEPTH, LARGEST_DEPTH + 1):
        data = b"[" * depth + b"]" * depth
        if depth == LARGEST_DEPTH:
            parse_json(data, maximum_size=SIZE)
        else:
            with pytest.raises(MalformedJSON, match="deeper"):
                parse_json(data, maximum_size=SIZE)


HOSTILE = {
    "deeply nested": b"[" * SIZE,
    "nested objects": b'{"a":' * (SIZE // 5),
    "empty lists": b"[" + b"[]," * (SIZE // 3 - 1) + b"0]",
    "empty objects": b"[" + b"{}," * (SIZE // 3 - 1) + b"0]",
    "members": b"{" + b",".join(b'"%d":0' % number for number in range(300_000)) + b"}",
    "an integer of a million digits": b"[" + b"9" * 1_000_000 + b"]",
    "a fraction of a million digits": b"[0." + b"9" * 1_000_000 + b"]",
    "an exponent beyond all": b"[1e" + b"9" * 1_000_000 + b"]",
    "a string that does not end, and escapes": b'["' + b'\\"' * (SIZE // 2 - 4),
    "quotation marks": b'"' * SIZE,
    "backslashes": b'"' + b"\\" * (SIZE - 1),
    "wide characters": b'["' + "\U0001f600".encode() + b"a" * (SIZE - 20) + b'"]',
    "UTF-16": json.dumps([[]] * 200_000).encode("utf-16"),
    "nulls": bytes(SIZE),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_documents_cost_little(kind: str) -> None:
    data = HOSTILE[kind]
    assert len(data) <= SIZE
    tracemalloc.start()
    try:
        # What takes a time that grows with the square meets the test's time limit.
        message = _message_of(data)
        memory = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert memory < MEMORY
    assert len(message) < 200


def _message_of(data: bytes) -> str:
    try:
        parse_json(data, maximum_size=SIZE)
    except MalformedJSON as error:
        return str(error)
    return ""


def test_most_values_can_be_read() -> None:
    data = json.dumps([0] * MOST_VALUES).encode()
    assert parse_json(data, maximum_size=SIZE) == [0] * MOST_VALUES
