"""Which files and links make a datastore's mirror a service, and what stands in them. Pure but for the templates."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources

SYSTEM = "etc/systemd/system"
PACKAGED = "usr/lib/systemd/system"
DEFAULTS = "etc/default/mirrorfs"
MOUNT_HELPER = "usr/sbin/mount.mirrorfs"
MOUNT = "mirrorfs@.service"
TIMERS = ("mirrorfs-drill@.timer", "mirrorfs-verify@.timer")
TEMPLATES = (MOUNT, *TIMERS, "mirrorfs-drill@.service", "mirrorfs-verify@.service")
PBS_UNITS = ("proxmox-backup.service", "proxmox-backup-proxy.service")

# What systemd takes for itself in a line of a unit: blanks, quotes, backslashes, and % for specifiers.
_path = re.compile(r"/[^\s\"'\\%]*")


class Unnameable(Exception):
    """A path that cannot stand in a unit; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Service:
    """The mirror of a datastore as a service: `name` is that of its settings file and of the units' instances.

    It has nothing but letters, digits, dots, dashes and underscores, none of which means anything to systemd.
    """

    name: str
    datastore: str

    def __post_init__(self) -> None:
        """Raise Unnameable for what systemd would take for something else."""
        if not _path.fullmatch(self.datastore) or not self.datastore.isprintable():
            raise Unnameable(
                f"the path {self.datastore} cannot stand in a unit of systemd: it has blanks, quotes, backslashes or "
                "percent signs. Mount the datastore under another path (a bind mount), and tell PBS that one"
            )


def template(name: str, program: str) -> str:
    """Return a unit that serves all datastores, with the path of the command `mirrorfs`."""
    return _read(name).replace("@PROGRAM@", program)


def defaults() -> str:
    """Return the file of the services' environment as it is before somebody changes it."""
    return _read("default")


def files_of(service: Service) -> dict[str, str]:
    """Return what stands in the files of one datastore, by path below the root; the last ones have PBS depend on it."""
    files = {f"{SYSTEM}/{instance(MOUNT, service.name)}.d/datastore.conf": "datastore.conf"}
    files |= {_drop_in(unit, service.name): "proxmox-backup.conf" for unit in PBS_UNITS}
    return {path: _filled(_read(name), service) for path, name in files.items()}


def paths_of(name: str) -> list[str]:
    """Return the paths of all files and links of one datastore, below the root: those of PBS first."""
    own = f"{SYSTEM}/{instance(MOUNT, name)}.d/datastore.conf"
    return [*(_drop_in(unit, name) for unit in PBS_UNITS), *links_of(name), own]


def links_of(name: str) -> dict[str, str]:
    """Return the links that enable the units of one datastore, and the units that they lead to."""
    return {
        f"{SYSTEM}/multi-user.target.wants/{instance(MOUNT, name)}": MOUNT,
        **{f"{SYSTEM}/timers.target.wants/{instance(timer, name)}": timer for timer in TIMERS},
    }


def instance(unit: str, name: str) -> str:
    """Return the unit of one datastore: `mirrorfs@.service`, `store1` makes `mirrorfs@store1.service`."""
    return unit.replace("@", f"@{name}")


def is_link_of_any(file_name: str) -> bool:
    """Tell whether this is the name of a link that enables the mount of some datastore."""
    before, _, after = MOUNT.partition("@")
    return file_name.startswith(f"{before}@") and file_name.endswith(after) and file_name != MOUNT


def _drop_in(unit: str, name: str) -> str:
    return f"{SYSTEM}/{unit}.d/mirrorfs-{name}.conf"


def _filled(text: str, service: Service) -> str:
    return text.replace("@NAME@", service.name).replace("@DATASTORE@", service.datastore)


def _read(name: str) -> str:
    return (resources.files("mirrorfs.service") / "templates" / name).read_text(encoding="utf-8")
