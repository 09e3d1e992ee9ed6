"""The state directory that a command is about: of a datastore, mounted or not, or as it was given."""

from __future__ import annotations

import os

import click

from mirrorfs.cli.mounted import locate
from mirrorfs.cli.settings_file import is_name, named_datastore, path_of, settings_file
from mirrorfs.database.directory import StateDirectory
from mirrorfs.supervision.registry import find, state_directory_of


class _StateDirectory(click.ParamType[str]):
    """A state directory by its path, or by the name of the settings file of its datastore; the value is the path."""

    name = "directory"

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Find out the path, which is not looked at."""
        given = os.fspath(value)
        if not is_name(given) or not os.path.lexists(path_of(given)):
            return given
        return state_directory(locate(named_datastore(given))).path


STATE_DIRECTORY = _StateDirectory()


def state_directory(path: str) -> StateDirectory:
    """Find that of the mount at `path`, or of the one that the settings file of the datastore `path` would make."""
    file = settings_file(path) if find(path) is None else None
    given = None if file is None else file.values.get("state-dir")
    return StateDirectory(given) if isinstance(given, str) else state_directory_of(path)
