"""Putting the files of a service below a root, whole or not at all, and taking them away again."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from mirrorfs import own_files
from mirrorfs.service import units
from mirrorfs.service.units import Service

_FILE_MODE = 0o644
# Whatever is in the environment of a service may be a key.
_DEFAULTS_MODE = 0o600
_DIRECTORY_MODE = 0o755


@dataclass(frozen=True, slots=True)
class Programs:
    """The commands that the units and mount(8) call, by absolute paths."""

    mirrorfs: str
    mount_helper: str


def is_packaged(root: str) -> bool:
    """Tell whether a package of the system has brought the units that serve all datastores."""
    return os.path.exists(os.path.join(root, units.PACKAGED, units.MOUNT))


def install(root: str, service: Service, programs: Programs) -> list[str]:
    """Put everything there that makes the mirror a service, and enable it; what is there is brought up to date.

    Returns the paths. Raises OSError and NotOwn: then nothing of it is there that was not there before.
    """
    _hide_from_others(os.path.join(root, units.DEFAULTS))
    writing = _Writing(root)
    try:
        if not is_packaged(root):
            _install_common(writing, programs)
        base = units.PACKAGED if is_packaged(root) else units.SYSTEM
        for path, unit in units.links_of(service).items():
            writing.link(path, f"/{base}/{unit}")
        for path, text in units.files_of(service).items():
            writing.write(path, text)
        writing.synchronize()
    except OSError:
        writing.take_back()
        raise
    if not service.has_page:
        _take_away(root, units.link_of_page(service.name))
    return writing.paths


def hiding(root: str) -> list[str]:
    """Return the units of an installation without a package, or of an administrator, that hide a package's."""
    if not is_packaged(root):
        return []
    paths = [f"{units.SYSTEM}/{name}" for name in units.TEMPLATES]
    # A link is how systemd masks a unit: that is meant.
    return [f"/{path}" for path in paths if stat.S_ISREG(_mode_of(os.path.join(root, path)))]


def _mode_of(path: str) -> int:
    try:
        return os.lstat(path).st_mode
    except FileNotFoundError:
        return 0


def _install_common(writing: _Writing, programs: Programs) -> None:
    for name in units.TEMPLATES:
        writing.write(f"{units.SYSTEM}/{name}", units.template(name, programs.mirrorfs))
    writing.link(units.MOUNT_HELPER, programs.mount_helper)
    if not os.path.lexists(os.path.join(writing.root, units.DEFAULTS)):
        writing.write(units.DEFAULTS, units.defaults(), mode=_DEFAULTS_MODE)


def _hide_from_others(path: str) -> None:
    """Take from others than its owner and group what rights they have to a file; earlier versions made it 0644."""
    if os.path.islink(path):
        # The file is somewhere else, and somebody else's to look after.
        return
    try:
        descriptor = own_files.open_file(path)
    except FileNotFoundError:
        return
    with os.fdopen(descriptor):
        os.fchmod(descriptor, stat.S_IMODE(os.fstat(descriptor).st_mode) & ~stat.S_IRWXO)


def uninstall(root: str, name: str) -> list[str]:
    """Take everything away that `install` has put there, what serves all datastores with the last one of them.

    Returns the paths that were there. What somebody has added stays, and the environment of the services if it was
    changed; units that were changed in place go. Raises OSError, NotOwn.
    """
    paths = [*units.paths_of(name), *units.stamps_of(name)]
    taken = [path for path in paths if _take_away(root, path)]
    if not is_packaged(root) and not _installed_names(root):
        taken += [path for path in _common_paths(root) if _take_away(root, path)]
    return taken


def is_installed(root: str, name: str) -> bool:
    """Tell whether anything is there of what `install` puts there for this datastore."""
    return any(os.path.lexists(os.path.join(root, path)) for path in units.paths_of(name))


def leftovers(root: str, name: str) -> list[str]:
    """Return what somebody has added to the unit of a datastore, as `systemctl edit` does."""
    directory = f"{units.SYSTEM}/{units.instance(units.MOUNT, name)}.d"
    return [os.path.join("/", directory, entry) for entry in sorted(_entries(os.path.join(root, directory)))]


def datastore_of(root: str, name: str) -> str | None:
    """Return the datastore that was installed under this name; None if that is not known. Raises NotOwn, OSError."""
    try:
        text = own_files.read_file(os.path.join(root, units.own_drop_in(name)))
    except FileNotFoundError:
        return None
    return units.datastore_in(text.decode(errors="surrogateescape"))


def _installed_names(root: str) -> set[str]:
    """Return the names that need the units that serve all: those enabled, and those that PBS waits for, enabled or not.

    Raises OSError.
    """
    directory = os.path.join(root, units.SYSTEM)
    names = {units.name_of_link(entry) for entry in _entries(os.path.join(directory, "multi-user.target.wants"))}
    for unit in units.PBS_UNITS:
        names |= {units.name_of_drop_in(entry) for entry in _entries(os.path.join(directory, f"{unit}.d"))}
    return {name for name in names if name is not None}


def _entries(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _common_paths(root: str) -> list[str]:
    paths = [f"{units.SYSTEM}/{name}" for name in units.TEMPLATES]
    helper = os.path.join(root, units.MOUNT_HELPER)
    if os.path.islink(helper) and os.path.basename(os.readlink(helper)) == os.path.basename(units.MOUNT_HELPER):
        paths.append(units.MOUNT_HELPER)
    try:
        if own_files.read_file(os.path.join(root, units.DEFAULTS)) == units.defaults().encode():
            paths.append(units.DEFAULTS)
    except FileNotFoundError:
        return paths
    return paths


def _take_away(root: str, path: str) -> bool:
    whole = os.path.join(root, path)
    if not os.path.lexists(whole):
        return False
    own_files.take_away(whole)
    directory = os.path.dirname(whole)
    # A drop-in that came back with a power cut would have PBS wait for what is gone.
    own_files.synchronize_directory(directory)
    if directory.endswith((".d", ".wants")) and not os.listdir(directory):
        os.rmdir(directory)
    return True


class _Writing:
    """What has been written below a root so far, so that it can be taken back."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.paths: list[str] = []
        self._new: list[str] = []

    def write(self, path: str, text: str, *, mode: int = _FILE_MODE) -> None:
        """Write a file, in one step, so that systemd never reads a half of it, after a power cut neither."""
        whole = self._prepare(path)
        descriptor = own_files.new_file(f"{whole}.tmp")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, mode)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        os.replace(f"{whole}.tmp", whole)

    def link(self, path: str, target: str) -> None:
        """Make a symbolic link, in one step; one that is there leads to `target` from then on."""
        whole = self._prepare(path)
        if os.path.lexists(whole) and not os.path.islink(whole):
            raise own_files.NotOwn(whole, "it is no link: look who put it there, and take it away")
        own_files.take_away(f"{whole}.tmp")
        os.symlink(target, f"{whole}.tmp")
        os.replace(f"{whole}.tmp", whole)

    def synchronize(self) -> None:
        """Have the names on stable storage too: of all that was written, and of the directories made for it."""
        changed = [os.path.join(self.root, path.lstrip("/")) for path in self.paths]
        changed += [path for path in self._new if os.path.lexists(path)]
        for directory in {os.path.dirname(path) for path in changed}:
            own_files.synchronize_directory(directory)

    def take_back(self) -> None:
        """Remove what was not there before."""
        for path in reversed(self._new):
            if not os.path.lexists(path):
                continue
            if stat.S_ISDIR(os.lstat(path).st_mode):
                os.rmdir(path)
            else:
                os.unlink(path)

    def _prepare(self, path: str) -> str:
        whole = os.path.join(self.root, path)
        missing = []
        directory = os.path.dirname(whole)
        while not os.path.lexists(directory):
            missing.append(directory)
            directory = os.path.dirname(directory)
        self._new += reversed(missing)
        own_files.make_directory(os.path.dirname(whole), mode=_DIRECTORY_MODE)
        # Before the file, since it would be renamed to that last.
        self._new.append(f"{whole}.tmp")
        if not os.path.lexists(whole):
            self._new.append(whole)
        self.paths.append(f"/{path}")
        return whole
