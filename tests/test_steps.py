"""Steps: each that is listed is reached somewhere, each that is reached is listed, and an armed one kills once."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mirrorfs
from mirrorfs.steps import STEPS
from tests.harness.steps import StepFile

_PACKAGE = Path(mirrorfs.__file__).parent


def reached_in(source: str) -> Iterator[str]:
    """Find the steps that are given to `reach` or `steps.reach`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and _is_reach(node.func):
            (argument,) = node.args
            assert isinstance(argument, ast.Constant), f"line {node.lineno}: the name of a step is a literal"
            assert isinstance(argument.value, str)
            yield argument.value


def _is_reach(function: ast.expr) -> bool:
    if isinstance(function, ast.Attribute):
        return function.attr == "reach" and isinstance(function.value, ast.Name) and function.value.id == "steps"
    return isinstance(function, ast.Name) and function.id == "reach"


def test_the_list_is_what_is_reached() -> None:
    reached = {step for path in _PACKAGE.rglob("*.py") for step in reached_in(path.read_text())}
    assert reached == set(STEPS)
    assert len(STEPS) == len(set(STEPS))


def run(step_file: StepFile | None, program: str) -> subprocess.CompletedProcess[str]:
    """Run a program that reaches steps, in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "MIRRORFS_STEP_FILE"}
    return subprocess.run(
        [sys.executable, "-c", f"import os\nfrom mirrorfs.steps import reach\n{program}"],
        env={**environment, **(step_file.environment if step_file is not None else {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


_THREE_TIMES = """
for number in (1, 2, 3):
    reach("another")
    reach("step")
    print(number, flush=True)
"""


@pytest.fixture
def step_file(tmp_path: Path) -> StepFile:
    """A step file that does not stand there yet."""
    return StepFile(tmp_path / "step")


@pytest.mark.parametrize(("number", "printed"), [(1, ""), (2, "1\n"), (3, "1\n2\n")])
def test_the_step_kills_at_the_number_and_only_once(step_file: StepFile, number: int, printed: str) -> None:
    step_file.arm("step", number)
    killed = run(step_file, f"print(os.getpid(), flush=True)\n{_THREE_TIMES}")
    pid, _, rest = killed.stdout.partition("\n")
    assert (killed.returncode, rest) == (-signal.SIGKILL, printed)
    assert step_file.fired == [("step", int(pid))]
    assert not step_file.path.exists()
    assert run(step_file, _THREE_TIMES).stdout == "1\n2\n3\n"


def test_a_number_that_is_not_reached_does_nothing(step_file: StepFile) -> None:
    step_file.arm("step", 4)
    assert run(step_file, _THREE_TIMES).returncode == 0
    assert step_file.path.exists()
    assert step_file.fired == []


def test_it_can_be_armed_at_any_time_and_counts_from_then(step_file: StepFile) -> None:
    arm = f"os.replace({str(step_file.path.with_name('later'))!r}, {str(step_file.path)!r})"
    step_file.path.with_name("later").write_text("step 2")
    killed = run(step_file, f"{_THREE_TIMES}\n{arm}\n{_THREE_TIMES}")
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, "1\n2\n3\n1\n")


def test_arming_anew_counts_anew(step_file: StepFile) -> None:
    step_file.path.with_name("later").write_text("step 3")
    step_file.arm("step", 3)
    arm = f"os.replace({str(step_file.path.with_name('later'))!r}, {str(step_file.path)!r})"
    killed = run(step_file, f"reach('step')\nreach('step')\n{arm}\n{_THREE_TIMES}")
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, "1\n2\n")


def test_without_the_variable_nobody_looks(step_file: StepFile) -> None:
    step_file.arm("step")
    assert run(None, _THREE_TIMES).stdout == "1\n2\n3\n"
    assert step_file.path.exists()
