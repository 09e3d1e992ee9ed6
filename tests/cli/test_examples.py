"""The examples in each command's help are calls that the command understands, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from mirrorfs.cli import settings_file
from tests.cli.command_lines import COMMANDS, understand


def examples() -> list[str]:
    found = [
        example
        for command in COMMANDS.values()
        for example in re.findall(r"mirrorfs [^\n]*", help_of_examples(command))
    ]
    assert len(found) > len(COMMANDS)
    return sorted(set(found))


def help_of_examples(command: click.Command) -> str:
    """What stands below "Example:" or "Examples:"."""
    _, _, rest = re.sub(r"\bExamples?:\n", "\0", command.help or "").partition("\0")
    return rest.partition("\n\n")[0]


@pytest.mark.parametrize("example", examples())
def test_an_example_is_understood(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_file, "SETTINGS_BASE", str(tmp_path))
    understand(example, tmp_path)


@pytest.mark.parametrize("path", [path for path, command in COMMANDS.items() if not isinstance(command, click.Group)])
def test_each_command_has_an_example_of_its_own(path: tuple[str, ...]) -> None:
    assert re.search(rf"mirrorfs {' '.join(path)}\b", help_of_examples(COMMANDS[path])), path
