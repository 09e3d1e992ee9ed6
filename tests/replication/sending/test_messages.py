"""What goes between uploader and worker arrives as it was sent, or is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.objectstore.url import StoreOptions
from mirrorfs.replication.sending.attempt import Attempt
from mirrorfs.replication.sending.messages import (
    LONGEST_LINE,
    BadMessage,
    WorkerSettings,
    decode_attempts,
    decode_order,
    encode_attempts,
    encode_order,
)
from tests.stores.capabilities import HONEST

NUMBERS = st.integers(0, 2**32 - 1)


@given(st.lists(st.builds(Attempt, st.booleans(), NUMBERS, NUMBERS), min_size=1, max_size=8))
def test_attempts_arrive(attempts: list[Attempt]) -> None:
    line = encode_attempts(attempts)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert len(line) < LONGEST_LINE
    assert decode_attempts(line, 8) == attempts


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=8))
def test_orders_arrive(digests: list[bytes]) -> None:
    found, capabilities = decode_order(encode_order(digests, HONEST))
    assert found == digests
    assert capabilities.confirmation is HONEST.confirmation
    assert capabilities.needs_md5 == HONEST.needs_md5


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"ready\n",
        b"[]\n",
        b"{}\n",
        b"[1]\n",
        b"[[1,2,3]]\n",
        b"[[true,-1,3]]\n",
        b"[[true,1,4294967296]]\n",
        b"[[true,1,3,4]]\n",
        b'[[true,"1",3]]\n',
        b"[[true,1.0,3]]\n",
        b"[[true,1,3],[true,1,3],[true,1,3]]\n",
        b"[" * 60000,
        b"\xff\n",
    ],
)
def test_what_no_worker_would_say_is_refused(line: bytes) -> None:
    with pytest.raises(BadMessage):
        decode_attempts(line, 2)


def test_settings_arrive() -> None:
    options = StoreOptions(endpoint_url="http://127.0.0.1:1", read_timeout=5.0)
    settings = WorkerSettings("bucket", "a/b", options, 3, (4, 5), verbose=True)
    assert WorkerSettings.decode(settings.encode()) == settings
