"""`mirrorfs config`: writing the settings of a datastore, and telling what holds."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import click
from click.core import ParameterSource

from mirrorfs import own_files
from mirrorfs.cli import mount
from mirrorfs.cli import settings_file as files
from mirrorfs.cli.config_check import check
from mirrorfs.cli.durations import Duration, shown_duration
from mirrorfs.cli.errors import Failure, require_root
from mirrorfs.cli.limit_options import Schedule
from mirrorfs.cli.listening import ListenAddress, shown_address
from mirrorfs.cli.mirror_of import understood
from mirrorfs.cli.options import store_of
from mirrorfs.cli.rates import Rate, shown_rate
from mirrorfs.cli.setting import Setting, TakesEffect, settings_of
from mirrorfs.cli.settings_file import DATASTORE
from mirrorfs.cli.settings_text import commented_file
from mirrorfs.filesystem.mount_table import real_path
from mirrorfs.output import say, say_json

_ASKED_FOR = ("to", "endpoint-url", "region", "profile")
_SOURCES = {
    ParameterSource.COMMANDLINE: "command line of the mount",
    ParameterSource.ENVIRONMENT: "environment",
    ParameterSource.DEFAULT_MAP: "file",
    ParameterSource.DEFAULT: "default",
}


@click.group("config")
def command() -> None:
    """Write, test and show the settings of a datastore, which stand in /etc/mirrorfs/NAME.toml.

    \b
    Example:
      mirrorfs config init /mnt/datastore/store1 --to s3://backups/store1 --endpoint-url https://s3.example.com
      mirrorfs config check store1
      mirrorfs config show store1
      mirrorfs mount store1

    docs/settings.md has every key with its unit, default and range.
    """


class _InitCommand(click.Command):
    """Takes what the settings file may hold as options, and keeps them as they were written."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        ctx.meta[files.ARGUMENTS] = given
        return super().parse_args(ctx, args)


@command.command("init", cls=_InitCommand)
@click.argument("datastore", metavar="DATASTORE")
@click.option("--name", metavar="NAME", help="What to call the datastore. Default: the last part of its path.")
@click.option("--force", is_flag=True, help="Write the file though there is one of this name.")
@click.pass_context
def init(context: click.Context, /, datastore: str, name: str | None, force: bool, **_: object) -> None:
    """Write a commented settings file for DATASTORE, the path of a datastore, to /etc/mirrorfs/NAME.toml (mode 0600).

    What options give stands in it, all else as comments. On a terminal you are asked for what is missing.

    \b
    Example:
      mirrorfs config init /mnt/datastore/store1 --to s3://backups/store1 --retention-delete-after 30d

    Exit codes: 0 written; 1 not written; 2 wrong usage.
    """
    require_root("write settings")
    path = real_path(datastore)
    name = os.path.basename(path) if name is None else name
    if not files.is_name(name):
        raise click.UsageError(f"{name!r} cannot be a name: give --name, letters, digits, '.', '_' and '-'")
    settings = settings_of(mount.command)
    given = _given(settings, context.meta[files.ARGUMENTS])
    if "to" not in given:
        given |= _answers(settings, given)
    target = files.path_of(name)
    _refuse_another(path, target, force=force)
    try:
        text = commented_file(path, name, settings.values(), given)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    _check(target, path, text)
    _write(target, text)
    say(f"{target} is written: test it with 'mirrorfs config check {name}', then 'mirrorfs mount {name}'")


def _given(settings: Mapping[str, Setting], given: Mapping[str, Any]) -> dict[str, list[str]]:
    """Take what stands on the command line, as it was written, by long option."""
    found = {long: given[setting.name] for long, setting in settings.items() if setting.name in given}
    texts = {long: value if isinstance(value, list) else [value] for long, value in found.items()}
    return {
        long: ["true" if value is True else str(value) for value in values]
        for long, values in texts.items()
        if values and all(isinstance(value, str) or value is True for value in values)
    }


def _answers(settings: Mapping[str, Setting], given: dict[str, list[str]]) -> dict[str, list[str]]:
    """Ask for what a mirror needs; an empty answer leaves a setting out."""
    if not sys.stdin.isatty():
        raise click.UsageError("where to mirror to is missing: give --to s3://BUCKET/NAME")
    answers = {}
    for long in _ASKED_FOR:
        setting = settings[long]
        if long in given:
            continue
        answer = click.prompt(
            f"{setting.help} ({setting.metavar})", default=None if setting.required else "", type=setting.type
        )
        if str(answer):
            answers[long] = [str(answer)]
    return answers


def _refuse_another(datastore: str, target: str, *, force: bool) -> None:
    existing = files.settings_file(datastore)
    if existing is not None and existing.path != target:
        raise Failure(f"{existing.path} is about {datastore} already: change that, or take it away first")
    if os.path.lexists(target) and not force:
        raise Failure(f"{target} is there already: change it by hand, or say --force to write it anew")


def _check(target: str, datastore: str, text: str) -> None:
    """Understand what is to be written as a mount would. Raises UsageError."""
    settings = files.file_settings(files.as_settings_file(target, text.encode()), mount.command)
    context = click.Context(mount.command, info_name="mount", default_map=settings)
    click.Command.parse_args(mount.command, context, [datastore])
    store_of(context.params)


def _write(target: str, text: str) -> None:
    """Put the file there whole or not at all."""
    new = f"{target}.new"
    try:
        own_files.make_directory(files.SETTINGS_BASE)
        with os.fdopen(own_files.new_file(new), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, target)
    except own_files.NotOwn:
        raise
    except OSError as error:
        raise Failure(f"cannot write {target}: {error.strerror}") from error


command.add_command(check)


def _with_settings(command: click.Command) -> None:
    """Give `init` the settings of `mount`, none of which is required here: one is asked for."""
    for setting in settings_of(mount.command).values():
        if setting.takes_effect is not TakesEffect.ONCE:
            command.params.append(setting.optional())


_with_settings(init)


@command.command("show")
@click.argument("datastore", type=DATASTORE)
@click.option(
    "--json", "as_json", envvar="MIRRORFS_CONFIG_SHOW_JSON", is_flag=True, help="One JSON object: key to value, source."
)
def show(datastore: str, as_json: bool) -> None:
    """Print every setting of DATASTORE that holds, and where its value comes from.

    Of a mount that is up its own command line counts too. The environment is that of this command. No
    setting is a secret: credentials are boto3's, and 'mirrorfs config check' tries them.

    \b
    Example:
      mirrorfs config show store1
      mirrorfs config show store1 --json | jq '.parallel'

    Exit codes: 0 printed; 1 the file is not one that root may use; 2 the settings are wrong.
    """
    require_root("read settings")
    path = real_path(datastore)
    context = understood(path)
    file = files.settings_file(path)
    rows = {setting.full_key: _value_and_source(setting, context) for setting in settings_of(mount.command).values()}
    if as_json:
        say_json({key: {"value": value, "source": source} for key, (value, source) in rows.items()}, indent=1)
        return
    say(f"datastore  {path}", f"file       {'none' if file is None else file.path}", "")
    width = max(map(len, rows))
    shown = {
        key: ("-" if value is None else str(value).lower() if isinstance(value, bool) else value, source)
        for key, (value, source) in rows.items()
    }
    length = max(len(value) for value, _ in shown.values())
    say(*(f"{key:{width}}  {value:{length}}  {source}" for key, (value, source) in shown.items()))


def _value_and_source(setting: Setting, context: click.Context) -> tuple[str | bool | None, str]:
    assert setting.name is not None
    source = context.get_parameter_source(setting.name)
    return _shown(setting, context.params[setting.name]), _SOURCES.get(source, "default") if source else "default"


def _shown(setting: Setting, value: Any) -> str | bool | None:  # noqa: ANN401
    if value is None or isinstance(value, bool):
        return value
    match setting.type:
        case Duration():
            return shown_duration(value)
        case Rate():
            return shown_rate(value)
        case Schedule() as schedule:
            return schedule.shown(value)
        case ListenAddress():
            return shown_address(*value)
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
