"""The examples in each command's help are calls that the command understands, as they stand there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from mirrorfs.cli import settings_file
from mirrorfs.cli.main import main


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


COMMANDS = dict(commands(main))


def examples() -> list[str]:
    found = [example for command in COMMANDS.values() for example in re.findall(r"mirrorfs [^\n]*", _help(command))]
    assert len(found) > len(COMMANDS)
    return sorted(set(found))


def _help(command: click.Command) -> str:
    """What stands below "Example:" or "Examples:"."""
    _, _, rest = re.sub(r"\bExamples?:\n", "\0", command.help or "").partition("\0")
    return rest.partition("\n\n")[0]


@pytest.mark.parametrize("example", examples())
def test_an_example_is_understood(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_file, "SETTINGS_BASE", str(tmp_path))
    (tmp_path / "store1.toml").write_text('datastore = "/mnt/datastore/store1"\nto = "s3://backups/store1"\n')
    own = re.split(r" (?:\||>|&&) ", example)[0]
    words = shlex.split(own, comments=True)[1:]
    command: click.Command = main
    parent = click.Context(main, info_name="mirrorfs")
    while isinstance(command, click.Group):
        found = command.get_command(parent, words.pop(0))
        assert found is not None, example
        command = found
    with command.make_context(command.name, words, parent=parent) as context:
        assert not context.args


@pytest.mark.parametrize("path", [path for path, command in COMMANDS.items() if not isinstance(command, click.Group)])
def test_each_command_has_an_example_of_its_own(path: tuple[str, ...]) -> None:
    assert re.search(rf"mirrorfs {' '.join(path)}\b", _help(COMMANDS[path])), path
