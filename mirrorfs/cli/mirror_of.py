"""Where a datastore is mirrored to, for commands that read its mirror: as its mount does, or is told to."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from mirrorfs.cli import mount
from mirrorfs.cli.mounted import locate
from mirrorfs.cli.settings_file import file_settings, named_datastore, settings_file
from mirrorfs.filesystem.mount_table import real_path
from mirrorfs.objectstore.url import StoreOptions
from mirrorfs.replication.control import ask
from mirrorfs.supervision.registry import find, state_directory_of

_ANSWER_SECONDS = 10.0
_STORE_OPTIONS = frozenset(field.name for field in dataclasses.fields(StoreOptions))


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
