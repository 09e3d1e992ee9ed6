"""scripts/drill in its short form: everything is lost, and each way brings it back."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.drill import WAYS


# Each way has shorter tests of its own; together they take minutes.
@pytest.mark.long
@pytest.mark.timeout(2500)
def test_each_way_brings_everything_back() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.drill", "--short"], capture_output=True, text=True, check=False, timeout=2400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^\| [^|]+ \|(?: [^|]* \|){5}$", done.stdout, re.MULTILINE)
    # With the head and its rule.
    assert len(rows) == len(WAYS) + 1
    assert f"Everything came back, by each of {len(WAYS)} ways." in done.stdout
