"""The documents as tests look at them: their lines, blocks of code, spans of code, headings and links."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parent.parent
_FENCE = re.compile(r"\s*```")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_SPAN = re.compile(r"`([^`]+)`")
_HEADING = re.compile(r"#+ (.*)")
_ANCHOR = re.compile(r'<a id="([^"]+)"></a>')
_LIST_ITEM = re.compile(r" *([-*]|\d+\.) ")
# How blocks begin that nobody types: settings, formats, and what a program has answered.
_SHOWN = re.compile(r"\[|\{|ok |without |healthy: |location |NAME/|PBS ")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a document: its number, what stands there, and whether that is code."""

    number: int
    text: str
    is_code: bool


@dataclass(frozen=True)
class Document:
    """A Markdown file of the repository."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    @cached_property
    def lines(self) -> list[Line]:
        return list(self._read())

    def _read(self) -> Iterator[Line]:
        fenced = indented = False
        depth, before = 0, ""
        for number, text in enumerate(self.path.read_text().splitlines(), 1):
            blanks = len(text) - len(text.lstrip())
            fence = _FENCE.match(text) is not None
            if fence:
                fenced = not fenced
            elif not fenced and text:
                # In a list code is indented by four blanks more than the text of the item.
                item = _LIST_ITEM.match(text)
                if item and blanks < depth + 4:
                    depth = item.end()
                elif not blanks:
                    depth = 0
                indented = (indented or not before) and blanks >= depth + 4
            yield Line(number, text, fence or fenced or (indented and bool(text)))
            before = text

    @cached_property
    def blocks(self) -> list[str]:
        """The blocks of code, their lines without what they are indented by, joined where a backslash ends them."""
        # A blank line within a block is no code by itself; what follows says whether it was within one.
        code = "\n".join(
            "\0" if _FENCE.match(line.text) else line.text if line.is_code else "\0" * bool(line.text)
            for line in self.lines
        )
        found = [textwrap.dedent(part).strip("\n") for part in code.split("\0")]
        return [re.sub(r" *\\\n *", " ", block) for block in found if block]

    @cached_property
    def typed(self) -> list[str]:
        """The lines that are to be typed: those behind a prompt where a block has one, else all of it."""
        lines: list[str] = []
        for block in self.blocks:
            prompted = re.findall(r"^# (.*)", block, re.MULTILINE)
            if prompted or not _SHOWN.match(block):
                lines += prompted or block.splitlines()
        return lines

    @cached_property
    def commands(self) -> list[str]:
        """The lines to be typed that call mirrorfs."""
        return [line for line in self.typed if line.startswith("mirrorfs ")]

    @cached_property
    def spans(self) -> list[str]:
        """The spans of code in the text."""
        text = "\n".join("" if line.is_code else line.text for line in self.lines)
        return [" ".join(span.split()) for span in _SPAN.findall(text)]

    @cached_property
    def links(self) -> list[str]:
        text = "\n".join("" if line.is_code else line.text for line in self.lines)
        return _LINK.findall(text)

    @cached_property
    def anchors(self) -> set[str]:
        """What a link may name behind a `#`: the headings, in GitHub's way, and anchors that were put there."""
        headings = [found[1] for line in self.lines if not line.is_code and (found := _HEADING.match(line.text))]
        return {_slug(heading) for heading in headings} | set(_ANCHOR.findall(self.path.read_text()))


def _slug(heading: str) -> str:
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")


def documents() -> list[Document]:
    """README.md and all of docs/."""
    return [Document(ROOT / "README.md"), *map(Document, sorted((ROOT / "docs").glob("*.md")))]
