"""`mirrorfs uninstall`."""

from __future__ import annotations

import os

import click

from mirrorfs import own_files
from mirrorfs.cli.errors import Failure, require_root
from mirrorfs.cli.mounted import locate
from mirrorfs.cli.service_root import below, datastore_of, root_option, settings_of, settings_path
from mirrorfs.cli.settings_file import SettingsFile, is_name, path_of
from mirrorfs.database.directory import StateDirectory, default_state_directory
from mirrorfs.database.errors import DatabaseError, StateDirectoryBusy
from mirrorfs.filesystem.mount_table import is_mounted, mountpoints, real_path
from mirrorfs.output import say
from mirrorfs.service import installation, manager
from mirrorfs.service.remains import take_state_away


@click.command("uninstall", short_help="Take a mirror's service away, and leave a plain datastore.")
@click.argument("name")
@click.option("--keep-state", is_flag=True, help="Leave journal, state and log, as a later install uses them.")
@click.option("--purge", is_flag=True, help="Remove the settings file too.")
@root_option
def command(name: str, keep_state: bool, purge: bool, root: str) -> None:
    """Take away what 'mirrorfs install NAME' has made, and journal, state and log of the mirror.

    The datastore must be unmounted, and is left as it is: a plain one, which PBS uses without mirrorfs. The bucket
    stays as it is too. The settings file stays unless --purge is given; reports of drills and credentials stay, and so
    does what 'systemctl edit' has added. Units of 'mirrorfs install' go, also those that were changed in place.

    \b
    Example:
      proxmox-backup-manager datastore update store1 --maintenance-mode type=offline
      mirrorfs umount --drain store1
      mirrorfs uninstall store1
      proxmox-backup-manager datastore update store1 --delete maintenance-mode

    Exit codes: 0 uninstalled, 1 not, or not whole (the reason is on standard error), 2 wrong usage.
    """
    require_root("take a service away")
    if keep_state and purge:
        raise click.UsageError("--keep-state and --purge contradict each other: give one of them")
    settings = _settings(root, name, is_needed=not keep_state)
    if settings is None and not installation.is_installed(root, name):
        raise Failure(f"there is no service {name}, and no settings file {settings_path(root, name)}")
    if root == "/":
        _refuse_mounted(name, settings)
    try:
        _take_away(root, name)
        if settings is None and not keep_state:
            say("Which datastore it was about is not known any more: see /var/lib/mirrorfs for its state directory.")
        elif settings is not None and not keep_state:
            _take_state_away(root, settings)
    except StateDirectoryBusy as error:
        raise Failure(f"{error}: end it first with 'mirrorfs umount', then run this again") from error
    except own_files.NotOwn:
        raise
    except (OSError, DatabaseError) as error:
        raise Failure(f"not everything was taken away: {error}. Run it again when that is mended") from error
    if settings is not None and purge:
        own_files.take_away(settings.path)
        say(settings.path)
    elif settings is not None:
        say(f"{settings.path} stays; --purge removes it too.")


def _settings(root: str, name: str, *, is_needed: bool) -> SettingsFile | None:
    """Read the settings; those that are wrong count as missing if they are not needed."""
    try:
        settings = settings_of(root, name)
        if settings is not None:
            datastore_of(settings)
    except (click.UsageError, Failure) as error:
        if is_needed or not is_name(name):
            raise
        say(f"{error.format_message()}. It is not needed for this", err=True)
        return None
    return settings


def _refuse_mounted(name: str, settings: SettingsFile | None) -> None:
    installed = installation.datastore_of("/", name)
    datastores = {datastore_of(settings)} if settings is not None else set()
    if installed is not None:
        datastores.add(installed)
    for path in map(locate, sorted(datastores)):
        if is_mounted(path):
            raise Failure(
                f"{path} is mounted: unmount it first, with 'mirrorfs umount --drain {path}'; nothing was changed"
            )
    if not datastores and (mounted := sorted(mountpoints())):
        raise Failure(
            f"which datastore {name} is about is not known, and {' and '.join(mounted)} is mounted: unmount it first, "
            f'or write datastore = "/PATH" into {path_of(name)}; nothing was changed'
        )


def _take_away(root: str, name: str) -> None:
    runs = root == "/" and manager.is_running()
    if runs and installation.is_installed(root, name):
        try:
            manager.stop_all_but_the_mount(name)
        except manager.ManagerFailed as error:
            # Such as one whose unit is gone already. What has PBS wait for the mount must go all the same.
            say(f"{error}. A timer or page that runs ends with the next boot", err=True)
    taken = installation.uninstall(root, name)
    if runs:
        try:
            manager.reload()
        except manager.ManagerFailed as error:
            raise Failure(f"{error}. Run 'systemctl daemon-reload'") from error
    for path in taken:
        say(f"/{path}")
    for path in installation.leftovers(root, name):
        say(f"{path} stays: mirrorfs has not made it", err=True)


def _take_state_away(root: str, settings: SettingsFile) -> None:
    path = str(settings.values.get("state-dir") or default_state_directory(real_path(datastore_of(settings))).path)
    directory = StateDirectory(below(root, path))
    if take_state_away(directory):
        say(path if not os.path.lexists(directory.path) else f"{path} stays: something else is in it too")
