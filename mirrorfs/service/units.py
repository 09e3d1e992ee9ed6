"""Which files and links make a datastore's mirror a service, and what stands in them. Pure but for the templates."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources

SYSTEM = "etc/systemd/system"
STAMPS = "var/lib/systemd/timers"
PACKAGED = "usr/lib/systemd/system"
DEFAULTS = "etc/default/mirrorfs"
MOUNT_HELPER = "usr/sbin/mount.mirrorfs"
MOUNT = "mirrorfs@.service"
TIMERS = ("mirrorfs-drill@.timer", "mirrorfs-verify@.timer")
PAGE = "mirrorfs-web@.service"
TEMPLATES = (MOUNT, PAGE, *TIMERS, "mirrorfs-drill@.service", "mirrorfs-verify@.service")
PBS_UNITS = ("proxmox-backup.service", "proxmox-backup-proxy.service")

# What systemd takes for itself in a line of a unit: blanks, quotes, backslashes, % for specifiers, $ for variables.
_path = re.compile(r"/[^\s\"'\\%$]*")


class Unnameable(Exception):
    """A path that cannot stand in a unit; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Service:
    """The mirror of a datastore as a service: `name` is that of its settings file and of the units' instances.

    It has nothing but letters, digits, dots, dashes and underscores, none of which means anything to systemd.
    `has_page`: its web page is served too.
    """

    name: str
    datastore: str
    has_page: bool = False

    def __post_init__(self) -> None:
        """Raise Unnameable for what systemd would take for something else."""
        if not _path.fullmatch(self.datastore) or not self.datastore.isprintable():
            raise Unnameable(
                f"the path {self.datastore} cannot stand in a unit of systemd: it has blanks, quotes, backslashes, "
                "percent or dollar signs. Mount the datastore under another path (a bind mount), and tell PBS that one"
            )


def template(name: str, program: str) -> str:
    """Return a unit that serves all datastores, with the path of the command `mirrorfs`."""
    return _read(name).replace("@PROGRAM@", program)


def defaults() -> str:
    """Return the file of the services' environment as it is before somebody changes it."""
    return _read("default")


def files_of(service: Service) -> dict[str, str]:
    """Return what stands in the files of one datastore, by path below the root; the last ones have PBS depend on it."""
    files = {own_drop_in(service.name): "datastore.conf"}
    files |= {_drop_in(unit, service.name): "proxmox-backup.conf" for unit in PBS_UNITS}
    return {path: _filled(_read(name), service) for path, name in files.items()}


def paths_of(name: str) -> list[str]:
    """Return the paths of all files and links of one datastore, below the root: those of PBS first."""
    links = links_of(Service(name, "/", has_page=True))
    return [*(_drop_in(unit, name) for unit in PBS_UNITS), *links, own_drop_in(name)]


def stamps_of(name: str) -> list[str]:
    """Return the paths of the files, below the root, in which systemd keeps when a timer of one datastore was up."""
    return [f"{STAMPS}/stamp-{instance(timer, name)}" for timer in TIMERS]


def links_of(service: Service) -> dict[str, str]:
    """Return the links that enable the units of one datastore, and the units that they lead to."""
    return {
        f"{SYSTEM}/multi-user.target.wants/{instance(MOUNT, service.name)}": MOUNT,
        **{f"{SYSTEM}/timers.target.wants/{instance(timer, service.name)}": timer for timer in TIMERS},
        **({link_of_page(service.name): PAGE} if service.has_page else {}),
    }


def link_of_page(name: str) -> str:
    """Return the link that enables the web page of one datastore."""
    return f"{SYSTEM}/multi-user.target.wants/{instance(PAGE, name)}"


def instance(unit: str, name: str) -> str:
    """Return the unit of one datastore: `mirrorfs@.service`, `store1` makes `mirrorfs@store1.service`."""
    return unit.replace("@", f"@{name}")


def name_of_link(file_name: str) -> str | None:
    """Return the name whose mount a link called like this enables; None if it is no such link."""
    before, _, after = MOUNT.partition("@")
    return _between(f"{before}@", file_name, after)


def name_of_drop_in(file_name: str) -> str | None:
    """Return the name whose mount PBS waits for by a drop-in called like this; None if it is no such drop-in."""
    return _between("mirrorfs-", file_name, ".conf")


def datastore_in(text: str) -> str | None:
    """Return the datastore that the drop-in of a mount names, as `files_of` has written it."""
    found = re.search(r'^RequiresMountsFor="([^"]+)" ', text, re.MULTILINE)
    return found and found[1]


def own_drop_in(name: str) -> str:
    """Return the path of the file that tells the mount of one datastore where that lies."""
    return f"{SYSTEM}/{instance(MOUNT, name)}.d/datastore.conf"


def _between(before: str, text: str, after: str) -> str | None:
    return (text.startswith(before) and text.endswith(after) and text[len(before) : -len(after)]) or None


def _drop_in(unit: str, name: str) -> str:
    return f"{SYSTEM}/{unit}.d/mirrorfs-{name}.conf"


def _filled(text: str, service: Service) -> str:
    return text.replace("@NAME@", service.name).replace("@DATASTORE@", service.datastore)


def _read(name: str) -> str:
    return (resources.files("mirrorfs.service") / "templates" / name).read_text(encoding="utf-8")
