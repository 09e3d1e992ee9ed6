"""What the documentation says of the code is so: the names that "A walk" gives exist, and lead to few files."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOW_IT_WORKS = (ROOT / "docs" / "how-it-works.md").read_text()
# `path/of/module.py: name` or `path/of/module.py: Class.member`
PLACE = re.compile(r"`(mirrorfs/[a-z0-9_/]+\.py): ([A-Za-z_][A-Za-z0-9_.]*)`")
MODULE = re.compile(r"`(?:mirrorfs/)?((?:[a-z0-9_]+/)+[a-z0-9_]+\.py)`")
CHAPTERS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", HOW_IT_WORKS, re.MULTILINE | re.DOTALL))
WALK = CHAPTERS["A walk"]
PARTS = dict(re.findall(r"^### (.+?)\n(.*?)(?=^### |\Z)", WALK, re.MULTILINE | re.DOTALL))
INDEX = PARTS.pop("Where to look")
QUESTIONS = re.findall(r"^\| (.+?\?) \| (.+) \|$", INDEX, re.MULTILINE)
STEP = re.compile(r"^\d+\. .*(?:\n(?!\d+\. |\n).*)*", re.MULTILINE)


@cache
def names_in(path: str) -> frozenset[str]:
    """The functions, classes and members that a module defines, members behind their class and a dot."""
    return frozenset(_defined(ast.parse((ROOT / path).read_text()).body, ""))


def _defined(body: list[ast.stmt], prefix: str) -> list[str]:
    names = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(prefix + node.name)
        if isinstance(node, ast.ClassDef):
            names += _defined(node.body, f"{prefix}{node.name}.")
    return names


@pytest.mark.parametrize(("path", "name"), sorted(set(PLACE.findall(HOW_IT_WORKS))))
def test_what_the_documentation_names_is_there(path: str, name: str) -> None:
    assert (ROOT / path).is_file()
    assert name in names_in(path)


@pytest.mark.parametrize("text", re.findall(r"`mirrorfs/[^`]*\.py\b[^`]*`", WALK))
def test_the_walk_names_places_in_one_way(text: str) -> None:
    assert PLACE.fullmatch(text), "write `mirrorfs/room/module.py: name`, or a test cannot see that it is there"


@pytest.mark.parametrize("part", PARTS)
def test_each_step_of_the_walk_says_where(part: str) -> None:
    steps = STEP.findall(PARTS[part])
    assert len(steps) > 5
    assert [step for step in steps if not PLACE.search(step)] == []


def test_the_index_has_every_row_read() -> None:
    rows = [line for line in INDEX.splitlines() if line.startswith("| ")]
    assert len(QUESTIONS) == len(rows) - 2 > 20


@pytest.mark.parametrize(("question", "answer"), QUESTIONS)
def test_a_question_is_answered_in_at_most_two_files(question: str, answer: str) -> None:
    assert 1 <= len({path for path, _ in PLACE.findall(answer)}) <= 2


@pytest.mark.parametrize("document", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_modules_that_are_mentioned_are_there(document: Path) -> None:
    mentioned = set(MODULE.findall(document.read_text()))
    missing = [name for name in mentioned if not ((ROOT / "mirrorfs" / name).is_file() or (ROOT / name).is_file())]
    assert missing == []
