"""The documentation keeps to what is so: names of code, commands and their options, links; and to short lines."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest

from mirrorfs.cli import settings_file
from tests.cli.command_lines import COMMANDS, command_of, options_of, understand
from tests.documents import ROOT, Document, documents

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

LONGEST_LINE = 100
# Options of other programs that documents speak of in a span of their own.
OTHERS_OPTIONS = {
    "--overwrite-in-use",
    "--reuse-datastore",
    "--destroy-data",
    "--port",
    # scripts/demo
    "--keep",
    "--keep-etag",
}
# What these say of options is about scripts.
OF_SCRIPTS = {"docs/performance.md", "docs/reliability.md"}
ALL_OPTIONS = {option for command in COMMANDS.values() for option in options_of(command)}


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


each_document = pytest.mark.parametrize("document", documents(), ids=lambda document: document.name)


@each_document
def test_lines_are_short(document: Document) -> None:
    """But for code, rows of tables, and what has no blank at which it could be broken."""
    too_long = [
        f"{document.name}:{line.number}"
        for line in document.lines
        if len(line.text) > LONGEST_LINE
        and not line.is_code
        and not line.text.lstrip().startswith("|")
        and " " in re.sub(r"^\s*([-*]|\d+\.)?\s*", "", line.text)
    ]
    assert too_long == []


@pytest.mark.parametrize(
    ("name", "line"), [(document.name, line) for document in documents() for line in document.commands]
)
def test_a_command_in_a_document_is_understood(
    name: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings_file, "SETTINGS_BASE", str(tmp_path))
    try:
        understand(line, tmp_path)
    except click.UsageError as error:
        pytest.fail(f"{name}: {line}: {error.format_message()}")


def test_commands_are_found_in_blocks_of_each_kind() -> None:
    found = {document.name: len(document.commands) for document in documents()}
    assert found["README.md"] >= 5, "indented, with a prompt"
    assert found["docs/getting-started.md"] >= 8, "indented, without one"
    assert found["docs/disaster-recovery.md"] >= 12, "in lists"


@pytest.mark.parametrize("picture", sorted((ROOT / "docs" / "pictures").glob("*.svg")), ids=lambda path: path.name)
def test_a_picture_stands_alone_and_is_seen_in_the_dark(picture: Path) -> None:
    text = picture.read_text()
    root = ElementTree.fromstring(text)
    assert [root.find(f"{{http://www.w3.org/2000/svg}}{name}") is None for name in ("title", "desc")] == [False] * 2
    assert "prefers-color-scheme: dark" in text
    assert set(re.findall(r"https?://[^\"]*", text)) == {"http://www.w3.org/2000/svg"}


@each_document
def test_commands_that_the_text_names_are_there_with_their_options(document: Document) -> None:
    for span in document.spans:
        words = span.split()
        if words[0] != "mirrorfs" or len(words) == 1:
            continue
        try:
            command, rest = command_of(words[1:])
        except KeyError:
            pytest.fail(f"{document.name}: there is no command like `{span}`")
        options = {word.partition("=")[0] for word in rest if word.startswith("-")}
        assert options <= options_of(command) | {"--help", "--version"}, f"{document.name}: `{span}`"


@pytest.mark.parametrize(
    "document",
    [document for document in documents() if document.name not in OF_SCRIPTS],
    ids=lambda document: document.name,
)
def test_options_that_the_text_names_are_there(document: Document) -> None:
    named = {re.split(r"[ =]", span)[0] for span in document.spans if span.startswith("--")}
    assert named - ALL_OPTIONS <= OTHERS_OPTIONS


@each_document
def test_links_lead_somewhere(document: Document) -> None:
    for link in document.links:
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.path.parent / path).resolve() if path else document.path
        assert target.exists(), f"{document.name}: {link}"
        if anchor:
            assert anchor in Document(target).anchors, f"{document.name}: {link}"


@pytest.mark.parametrize("document", documents()[1:], ids=lambda document: document.name)
def test_the_readme_leads_to_each_document(document: Document) -> None:
    assert document.name in {link.partition("#")[0] for link in documents()[0].links}


def test_documents_that_the_code_names_are_there() -> None:
    named: dict[str, str] = {}
    for folder in ("mirrorfs", "tests", "scripts", "contrib", "docs"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix in ("", ".py", ".json", ".yml", ".sh", ".toml", ".service"):
                named |= dict.fromkeys(re.findall(r"\bdocs/[a-z-]+\.[a-z.]+[a-z]", path.read_text()), path.name)
    assert len(named) > 5
    assert {name: where for name, where in named.items() if not (ROOT / name).is_file()} == {}
