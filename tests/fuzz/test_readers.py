"""Each reader is given the same inputs in each run of the suite; `scripts/soak --fuzz` gives others, for as long as one
likes.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.readers import READERS

_EXAMPLES = 120


@pytest.mark.parametrize("name", READERS)
def test_a_reader(name: str) -> None:
    reader = READERS[name]
    limited = settings(
        derandomize=True,
        max_examples=_EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    limited(given(reader.inputs)(reader.check))()
