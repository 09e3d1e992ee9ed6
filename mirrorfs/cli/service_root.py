"""What `install` and `uninstall` have in common: the system that they are about, and the settings of a name in it."""

from __future__ import annotations

import os

import click

from mirrorfs.cli.errors import Failure
from mirrorfs.cli.settings_file import SettingsFile, is_name, path_of, read_settings_file

root_option = click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, resolve_path=True),
    default="/",
    metavar="DIR",
    help="Where the system lies whose service it is to be; another one than / is a system that does not run now.",
)


def below(root: str, path: str) -> str:
    """Return an absolute path of the system whose root lies at `root`."""
    return os.path.join(root, path.lstrip("/"))


def settings_path(root: str, name: str) -> str:
    """Return the path of the settings file of this name. Raises Failure if none can be called so."""
    if not is_name(name):
        raise Failure(
            f"{name} is no name: letters, digits, dots, dashes and underscores make one, as store1 is in "
            f"{path_of('store1')}"
        )
    return below(root, path_of(name))


def settings_of(root: str, name: str) -> SettingsFile | None:
    """Read the settings file of a name; None if there is none. Raises Failure, and UsageError for a wrong one."""
    path = settings_path(root, name)
    return read_settings_file(path) if os.path.lexists(path) else None


def datastore_of(file: SettingsFile) -> str:
    """Return the datastore that a settings file is about. Raises Failure if it does not say that."""
    if file.datastore is None:
        raise Failure(
            f'the settings file {file.path} does not say which datastore it is about: add datastore = "/PATH" to it, '
            "before the first [table]"
        )
    return file.datastore
