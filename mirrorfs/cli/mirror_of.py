"""Where a datastore is mirrored to, for commands that read its mirror: as its mount does, or is told to."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import click

from mirrorfs.cli import mount
from mirrorfs.cli.mounted import locate
from mirrorfs.cli.options import StoreURL
from mirrorfs.cli.settings_file import file_settings, is_name, named_datastore, path_of, settings_file
from mirrorfs.filesystem.mount_table import real_path
from mirrorfs.objectstore.url import StoreAddress, StoreOptions
from mirrorfs.replication.questions import ask
from mirrorfs.supervision.registry import find, state_directory_of

_KNOWN_ADDRESS = "mirrorfs.address"
_ANSWER_SECONDS = 10.0
_STORE_OPTIONS = frozenset(field.name for field in dataclasses.fields(StoreOptions))


class MirrorURL(StoreURL):
    """The URL of a mirror, or the datastore of which it is one, in a MirrorCommand: its name, or its path."""

    def convert(
        self, value: str | StoreAddress, param: click.Parameter | None, ctx: click.Context | None
    ) -> StoreAddress:
        """Take what the command knows of the datastore, or parse the URL."""
        return super().convert(value if ctx is None else ctx.meta.get(_KNOWN_ADDRESS, value), param, ctx)


class MirrorCommand(click.Command):
    """A command about a mirror whose argument `address` (MirrorURL) may be a datastore, and the options of a store.

    Where it is one, these options are what its mount uses, or else what its settings file says; options that are given
    win over that.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Find out where the mirror is before the arguments are checked."""
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        text = given.get("address")
        if isinstance(text, str) and (text.startswith("/") or (is_name(text) and os.path.lexists(path_of(text)))):
            known = _known_of(text)
            if "address" not in known:
                raise click.UsageError(f"{text} has no mirror that is known here: give its URL, s3://BUCKET/NAME")
            ctx.meta[_KNOWN_ADDRESS] = known.pop("address")
            ctx.default_map = {**(ctx.default_map or {}), **known}
        return super().parse_args(ctx, args)


class MirrorOfDatastore(click.Command):
    """A command about a DATASTORE with an option for the `address` of its mirror, and the options of a store.

    Where the address is not given, all of these are what the mount of the datastore uses, or else what its settings
    file says; options that are given win over that.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Find out where the mirror is before the arguments are checked."""
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        datastore = given.get("datastore")
        if isinstance(datastore, str) and not isinstance(given.get("address"), str):
            ctx.default_map = {**(ctx.default_map or {}), **_known_of(datastore)}
        return super().parse_args(ctx, args)


class SettingsOfDatastore(click.Command):
    """A command with an option for the `datastore` that does without its mount, but takes what the settings file of the
    datastore says; options that are given win over that.

    Where another `address` is given than the file has, the file's store is not the one that is meant. An address that
    need not be given is not taken from there: that none is given has a meaning of its own.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the settings file before the arguments are checked."""
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        datastore = given.get("datastore")
        if isinstance(datastore, str):
            file = settings_file(real_path(named_datastore(datastore)))
            known = {} if file is None else file_settings(file, mount.command)
            ctx.default_map = {**(ctx.default_map or {}), **self._of_use(known, given.get("address"))}
        return super().parse_args(ctx, args)

    def _of_use(self, known: dict[str, Any], address: object) -> dict[str, Any]:
        takes = {parameter.name: parameter for parameter in self.params}
        if address is not None and address != known.get("address"):
            takes = {name: parameter for name, parameter in takes.items() if name not in _STORE_OPTIONS}
        return {
            name: value
            for name, value in known.items()
            if name in takes and (name != "address" or takes[name].required)
        }


def _known_of(datastore: str) -> dict[str, Any]:
    try:
        path = locate(named_datastore(datastore))
        return _asked(path) or _configured(path)
    except PermissionError:
        # Only root sees what is mounted: the command itself says so.
        return {}


def _asked(path: str) -> dict[str, Any]:
    """What the mount at a path uses, if one answers."""
    if find(path) is None:
        return {}
    try:
        status = ask(state_directory_of(path).control_socket, "status", _ANSWER_SECONDS)
    except (ConnectionError, FileNotFoundError, TimeoutError):
        return {}
    if "store_options" not in status:
        # Of a version that did not tell, which has not been mounted anew since.
        return {}
    options = {name: value for name, value in status["store_options"].items() if value is not None}
    return {"address": f"s3://{status['bucket']}/{status['prefix']}", **options}


def _configured(path: str) -> dict[str, Any]:
    """What the settings file of a datastore says."""
    mounted = find(path)
    file = settings_file(real_path(path) if mounted is None else mounted.datastore)
    settings = {} if file is None else file_settings(file, mount.command)
    return {name: value for name, value in settings.items() if name == "address" or name in _STORE_OPTIONS}


def understood(datastore: str) -> click.Context:
    """Understand the settings of a datastore, given by its real path, as its mount would now. Raises UsageError.

    The environment is that of this process.
    """
    entry = find(datastore)
    arguments = [datastore] if entry is None or not entry.arguments else [*entry.arguments]
    directory = ["--show-settings", entry.directory] if entry is not None and entry.directory else []
    return mount.command.make_context("mount", [*arguments, *directory], auto_envvar_prefix="MIRRORFS_MOUNT")
