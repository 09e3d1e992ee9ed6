"""Calls of mirrorfs as people type them, taken by its commands as far as to say whether they are understood."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from mirrorfs.cli.main import main

# What ends a command on a line of a shell.
_END = re.compile(r" (?:\||>|&&) ")
SETTINGS_OF_EXAMPLES = 'datastore = "/mnt/datastore/store1"\nto = "s3://backups/store1"\n'


def _commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from _commands(command, (*path, name))


COMMANDS = dict(_commands(main))


def words_of(line: str) -> list[str]:
    """The words behind `mirrorfs` in a line of a shell, up to a pipe, a redirection or the next command."""
    return shlex.split(_END.split(line)[0], comments=True)[1:]


def command_of(words: Sequence[str]) -> tuple[click.Command, list[str]]:
    """The command that these words call, and the words that are left for it. Raises KeyError for a word too few."""
    command: click.Command = main
    path: tuple[str, ...] = ()
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        path = (*path, rest.pop(0))
        command = COMMANDS[path]
    return command, rest


def options_of(command: click.Command) -> set[str]:
    """The names of all options that a command has."""
    context = click.Context(command)
    return {name for parameter in command.get_params(context) for name in (*parameter.opts, *parameter.secondary_opts)}


def understand(line: str, settings: Path) -> None:
    """Have the command of a line take its words, with settings of `store1` in the directory `settings`.

    Nothing is done but that. Raises click's UsageError where a word is not understood.
    """
    (settings / "store1.toml").write_text(SETTINGS_OF_EXAMPLES)
    command, words = command_of(words_of(line))
    with command.make_context(command.name, words, parent=click.Context(main, info_name="mirrorfs")) as context:
        assert not context.args
