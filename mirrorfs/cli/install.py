"""`mirrorfs install`."""

from __future__ import annotations

import os

import click

from mirrorfs import interpreter, own_files
from mirrorfs.cli.errors import Failure, require_root
from mirrorfs.cli.listening import ListenAddress
from mirrorfs.cli.service_root import datastore_of, root_option, settings_of, settings_path
from mirrorfs.cli.settings_file import SettingsFile
from mirrorfs.database.errors import DatabaseError
from mirrorfs.filesystem.mount_table import real_path
from mirrorfs.output import say
from mirrorfs.service import installation, manager, units
from mirrorfs.service.installation import Programs
from mirrorfs.service.units import Service, Unnameable

_PAGE_KEY = "web-listen"


@click.command("install", short_help="Make a mirror a service that starts before PBS.")
@click.argument("name")
@root_option
def command(name: str, root: str) -> None:
    """Make the mirror of the datastore in /etc/mirrorfs/NAME.toml a service of systemd; nothing is started.

    Enabled are mirrorfs@NAME.service, which starts before PBS, and the timers mirrorfs-verify@NAME.timer and
    mirrorfs-drill@NAME.timer; where web.listen is set in the file, mirrorfs-web@NAME.service too, the web page. PBS's
    units get a drop-in: PBS does not start without the mount. Run it again after an upgrade that was not made by a
    package. 'mirrorfs uninstall NAME' takes all of it away.

    \b
    Example:
      mirrorfs install store1
      proxmox-backup-manager datastore update store1 --maintenance-mode type=offline
      systemctl start mirrorfs@store1
      proxmox-backup-manager datastore update store1 --delete maintenance-mode

    Exit codes: 0 installed, 1 nothing was changed (the reason is on standard error), 2 wrong usage.
    """
    require_root("install a service")
    try:
        paths = installation.install(root, _service(root, name), _programs())
    except Unnameable as error:
        raise Failure(str(error)) from error
    except own_files.NotOwn:
        raise
    except (OSError, DatabaseError) as error:
        raise Failure(f"nothing was installed: {error}") from error
    for path in paths:
        say(path)
    for path in installation.hiding(root):
        say(f"{path} hides the unit of the package. Remove it, unless you want it so.", err=True)
    if manager.is_running() and root == "/":
        try:
            manager.reload()
        except manager.ManagerFailed as error:
            raise Failure(f"{error}. Run 'systemctl daemon-reload'") from error
    unit = units.instance(units.MOUNT, name)
    say(f"{unit} is enabled; nothing was started. PBS need not be stopped for 'systemctl start {unit}', but must let")
    say("go of the datastore meanwhile: 'mirrorfs install --help' has an example.")


def _service(root: str, name: str) -> Service:
    file = settings_of(root, name)
    if file is None:
        raise Failure(
            f"there is no settings file {settings_path(root, name)}: make it first, with 'mirrorfs config init'"
        )
    return Service(name, real_path(datastore_of(file)), has_page=_has_page(file))


def _has_page(file: SettingsFile) -> bool:
    """Tell whether a page is to be served. Raises UsageError where that could not be."""
    address = file.values.get(_PAGE_KEY)
    if address is None:
        return False
    try:
        ListenAddress().convert(str(address), None, None)
    except click.BadParameter as error:
        raise click.UsageError(
            f"the settings file {file.path} has a wrong value of 'web.listen': {error.message}"
        ) from error
    return True


def _programs() -> Programs:
    programs = Programs(interpreter.program("mirrorfs"), interpreter.program("mount.mirrorfs"))
    for path in (programs.mirrorfs, programs.mount_helper):
        if not os.path.exists(path):
            raise Failure(f"there is no {path}, which the units are to call: install mirrorfs by its package or by pip")
    # What root's services run must be nobody else's.
    own_files.check_way(os.path.dirname(programs.mirrorfs))
    return programs
