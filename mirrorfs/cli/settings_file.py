"""Settings that stand in /etc/mirrorfs/NAME.toml instead of on the command line."""

from __future__ import annotations

import os
import tomllib
from typing import Any

import click

from mirrorfs import own_files
from mirrorfs.database.directory import escaped_name
from mirrorfs.datastore.quoting import quoted
from mirrorfs.filesystem.mount_table import real_path

SETTINGS_BASE = "/etc/mirrorfs"
ARGUMENTS = "mirrorfs.arguments"
"""Where a command's context has the arguments as they were given."""


class DatastoreCommand(click.Command):
    """A command about a DATASTORE whose options may also stand in that datastore's settings file.

    The file is named after the datastore's path, as its state directory is: `mnt-datastore-store1.toml` for
    /mnt/datastore/store1. Its keys are the long options without their dashes (`endpoint-url = "https://…"`); those that
    begin with the same word may stand in a table of that name (`[retention]`, `delete_after = "30d"`). Flags win over
    the environment, the environment wins over the file.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the settings file before the arguments are checked, so that it can satisfy required options."""
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        if isinstance(given.get("show_settings"), str):
            os.chdir(given["show_settings"])
        ctx.meta[ARGUMENTS] = tuple(args)
        datastore = given.get("datastore")
        if isinstance(datastore, str):
            ctx.default_map = {**(ctx.default_map or {}), **read_settings(real_path(datastore), self)}
        return super().parse_args(ctx, args)


def read_settings(datastore: str, command: click.Command) -> dict[str, Any]:
    """What the settings file of a datastore, given by its real path, says of the parameters of `command`, by name.

    Raises UsageError for a file that cannot be read, or has what is no option of the command.
    """
    path = os.path.join(SETTINGS_BASE, f"{escaped_name(datastore)}.toml")
    try:
        settings = parse_settings(own_files.read_file(path))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise click.UsageError(f"cannot read the settings file {path}: {error}") from error
    names = {
        option.removeprefix("--"): parameter.name
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for option in parameter.opts
        if option.startswith("--")
    }
    defaults = {}
    for key, value in settings.items():
        name = names.get(key)
        if name is None:
            raise click.UsageError(
                f"the settings file {path} has {quoted(key)}, which is no option of '{command.name}'"
            )
        defaults[name] = value
    return defaults


def parse_settings(data: bytes) -> dict[str, Any]:
    """Read a settings file, flat. Raises UnicodeDecodeError, tomllib.TOMLDecodeError and RecursionError."""
    return _flattened(tomllib.loads(data.decode()))


def _flattened(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name what stands in a table as the option that it is: `delete_after` in `[retention]`, retention-delete-after."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat.update(_flattened(value, f"{prefix}{key}-"))
        else:
            flat[f"{prefix}{key}".replace("_", "-")] = value
    return flat
