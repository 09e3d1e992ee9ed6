"""The settings of a datastore in /etc/mirrorfs/NAME.toml, and NAME as what it is called on a command line."""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click
from click.core import ParameterSource

from mirrorfs import own_files
from mirrorfs.cli.limit_options import Schedule
from mirrorfs.cli.setting import Setting, TakesEffect
from mirrorfs.database.directory import escaped_name
from mirrorfs.datastore.quoting import quoted
from mirrorfs.filesystem.mount_table import real_path

SETTINGS_BASE = "/etc/mirrorfs"
ARGUMENTS = "mirrorfs.arguments"
"""Where a command's context has the arguments as they were given."""
DATASTORE_KEY = "datastore"
"""The key of the file that says which datastore it is about."""
_SUFFIX = ".toml"
_name = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
# How alike a key must be to be what was meant: below this, difflib names words that have nothing in common.
_LIKENESS = 0.5


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """A settings file that was read: `values` by long option, flat, without the datastore that it is about."""

    path: str
    datastore: str | None
    values: dict[str, Any]

    @property
    def name(self) -> str:
        """What the datastore is called by it."""
        return os.path.basename(self.path).removesuffix(_SUFFIX)


class KeyGivenTwice(ValueError):
    """A settings file has a key in two spellings, which TOML takes for two keys."""


class _Datastore(click.ParamType[str]):
    """A datastore by its path, or by the name of its settings file; the value is the path, which is not looked at."""

    name = "datastore"

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Find out the path."""
        return named_datastore(os.fspath(value))


DATASTORE = _Datastore()


class DatastoreCommand(click.Command):
    """A command about a DATASTORE whose options may also stand in that datastore's settings file.

    Its keys are the long options without their dashes (`endpoint-url = "https://…"`); those that begin with the same
    word may stand in a table of that name (`[retention]`, `delete-after = "30d"`). Flags win over the environment, the
    environment wins over the file.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the settings file before the arguments are checked, so that it can satisfy required options."""
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        if isinstance(given.get("show_settings"), str):
            os.chdir(given["show_settings"])
        ctx.meta[ARGUMENTS] = tuple(args)
        datastore = given.get("datastore")
        if not isinstance(datastore, str):
            return super().parse_args(ctx, args)
        file = settings_file(real_path(named_datastore(datastore)))
        if file is not None:
            ctx.default_map = {**(ctx.default_map or {}), **file_settings(file, self)}
        try:
            return super().parse_args(ctx, args)
        except click.BadParameter as error:
            parameter = error.param
            if file is None or not isinstance(parameter, click.Option) or not _stands_in_the_file(ctx, parameter):
                raise
            raise click.UsageError(
                f"the settings file {file.path} has a wrong value of {_shown_key(parameter)}: {error.message}"
            ) from error


def _stands_in_the_file(ctx: click.Context, parameter: click.Option) -> bool:
    return parameter.name is not None and ctx.get_parameter_source(parameter.name) is ParameterSource.DEFAULT_MAP


def _shown_key(parameter: click.Option) -> str:
    return quoted(parameter.full_key if isinstance(parameter, Setting) else parameter.opts[0].removeprefix("--"))


def is_name(text: str) -> bool:
    """Tell whether a settings file can be called so."""
    return _name.fullmatch(text) is not None


def path_of(name: str) -> str:
    """Return the path of the settings file of this name."""
    return os.path.join(SETTINGS_BASE, f"{name}{_SUFFIX}")


def named_datastore(given: str) -> str:
    """Return the path of a datastore that was given by its path or by the name of its settings file.

    A name is a word without a slash for which there is a file; a directory of that name is meant by `./NAME`.
    Raises UsageError if the file cannot be read, or does not say which datastore it is about.
    """
    path = path_of(given)
    if not is_name(given) or not os.path.lexists(path):
        return given
    file = read_settings_file(path)
    if file.datastore is None:
        raise click.UsageError(
            f'the settings file {path} does not say which datastore it is about: add datastore = "/PATH" to it, '
            "before the first [table]"
        )
    return file.datastore


def settings_file(datastore: str) -> SettingsFile | None:
    """Return the settings file of a datastore, given by its real path; None if there is none.

    It is the one that names the datastore, or has none named and is called as the datastore's state directory is
    (`mnt-datastore-store1.toml`). Raises UsageError where there are two, or where one cannot be read, since that one
    may be about this datastore.
    """
    escaped = escaped_name(datastore)
    found = [
        file
        for file in _settings_files()
        if (file.name == escaped if file.datastore is None else real_path(file.datastore) == datastore)
    ]
    if len(found) > 1:
        names = " and ".join(file.path for file in found)
        raise click.UsageError(f"{names} are both about {quoted(datastore)}: take one of them away")
    return found[0] if found else None


def _settings_files() -> Iterator[SettingsFile]:
    try:
        names = sorted(os.listdir(SETTINGS_BASE))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise click.UsageError(f"cannot look for settings files in {SETTINGS_BASE}: {error.strerror}") from error
    for name in names:
        path = os.path.join(SETTINGS_BASE, name)
        # One that somebody has just taken away is about nothing.
        if name.endswith(_SUFFIX) and (file := _read_settings_file(path)) is not None:
            yield file


def read_settings_file(path: str) -> SettingsFile:
    """Read a settings file. Raises UsageError, with a sentence that names it."""
    file = _read_settings_file(path)
    if file is None:
        raise click.UsageError(f"there is no settings file {path}")
    return file


def _read_settings_file(path: str) -> SettingsFile | None:
    try:
        return as_settings_file(path, own_files.read_file(path))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise click.UsageError(f"cannot read the settings file {path}: {error}") from error


def as_settings_file(path: str, data: bytes) -> SettingsFile:
    """Take the content of the file at `path`. Raises UsageError, and as `parse_settings`."""
    try:
        values = parse_settings(data)
    except KeyGivenTwice as error:
        raise click.UsageError(f"the settings file {path} has {error}: take one of them away") from error
    datastore = values.pop(DATASTORE_KEY, None)
    if datastore is not None and not (isinstance(datastore, str) and datastore.startswith("/")):
        raise click.UsageError(
            f"the settings file {path} has a wrong value of 'datastore': it must be the absolute path of a datastore"
        )
    return SettingsFile(path, datastore, values)


def file_settings(file: SettingsFile, command: click.Command) -> dict[str, Any]:
    """Tell what a settings file says of the parameters of `command`, by the names of these.

    Raises UsageError for what is no option of the command, or can have no such value.
    """
    options = _options_of(command)
    settings = {}
    for key, value in file.values.items():
        option = options.get(key)
        if option is None:
            raise click.UsageError(f"the settings file {file.path} has {_unknown(key, options, command)}")
        if isinstance(option, Setting) and option.takes_effect is TakesEffect.ONCE:
            raise click.UsageError(
                f"the settings file {file.path} has {quoted(key)}, which is for one start only: give --{key} on the "
                "command line of that start"
            )
        assert option.name is not None
        settings[option.name] = _as_given(value, option, f"the settings file {file.path} has a wrong value of")
    return settings


def _options_of(command: click.Command) -> dict[str, click.Option]:
    return {
        option.removeprefix("--"): parameter
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for option in parameter.opts
        if option.startswith("--") and not parameter.hidden
    }


def _unknown(key: str, options: dict[str, click.Option], command: click.Command) -> str:
    said = f"{quoted(key)}, which is no option of '{command.name}'"
    # Of a key that lacks its table, or has a wrong one, the last part is what was meant.
    known = options | {option.key: option for option in options.values() if isinstance(option, Setting)}
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=_LIKENESS)
    if not nearest:
        return f"{said}: docs/settings.md and 'mirrorfs mount --help' list what there is"
    return f"{said}: the nearest there is is {_shown_key(known[nearest[0]])}"


def _as_given(value: Any, option: click.Option, complaint: str) -> Any:  # noqa: ANN401
    """Return a value of the file as it would be given as an option's; click checks texts, not what TOML makes."""
    if isinstance(option.type, Schedule) and isinstance(value, list):
        return ", ".join(_as_text(one, option, complaint) for one in value)
    if option.multiple:
        values = value if isinstance(value, list) else [value]
        return [_as_text(one, option, complaint) for one in values]
    if option.is_flag:
        if not isinstance(value, bool):
            raise click.UsageError(f"{complaint} {_shown_key(option)}: it must be true or false")
        return value
    return _as_text(value, option, complaint)


def _as_text(value: Any, option: click.Option, complaint: str) -> str:  # noqa: ANN401
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise click.UsageError(f"{complaint} {_shown_key(option)}: it must be a text in quotation marks, or a number")
    return str(value)


def parse_settings(data: bytes) -> dict[str, Any]:
    """Read a settings file, flat.

    Raises KeyGivenTwice, UnicodeDecodeError, tomllib.TOMLDecodeError and RecursionError.
    """
    flat: dict[str, Any] = {}
    written: dict[str, str] = {}
    for words, value in _flattened(tomllib.loads(data.decode())):
        key = "-".join(words).replace("_", "-")
        if key in written:
            raise KeyGivenTwice(f"{quoted(key)} twice, as {written[key]} and as {quoted('.'.join(words))}")
        flat[key], written[key] = value, quoted(".".join(words))
    return flat


def _flattened(settings: dict[str, Any], *tables: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Name what stands in a table as the option that it is: `delete_after` in `[retention]`, retention-delete-after."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flattened(value, *tables, key)
        else:
            yield (*tables, key), value
