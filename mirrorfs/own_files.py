"""Opening what is root's own: state, lock, log, notes, sockets and settings, and the way to a directory of root's.

A file that mirrorfs reads or writes as root is only what it should be if nobody else has put it there, or could put
something else in its place. So what stands under a name is looked at before it is opened (O_PATH has no effect on a
pipe, a device or a link), and then exactly that is opened, through its descriptor. What is something else is refused
with a sentence: nothing of it is followed, truncated, appended to or waited for.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection
from pathlib import PurePath

_REFERENCE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY_REFERENCE = _REFERENCE | os.O_DIRECTORY
_READ_SIZE = 1 << 20
_MOST_LINKS = 40
# Only another process of mirrorfs can make a file between our look and our making it, and it does so once.
_TRIES = 10
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISREG, "a file"),
)
_WHAT_TO_DO = "look who put it there, and take it away"


class NotOwn(PermissionError):
    """What stands under a name is not what root may use there; the text is a sentence that says why."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(errno.EPERM, why, path)

    def __str__(self) -> str:
        return f"cannot use {self.filename}: {self.strerror}"


def open_file(
    path: str,
    flags: int = os.O_RDONLY,
    *,
    directory: int | None = None,
    mode: int = 0o600,
    owners: Collection[int] = (),
) -> int:
    """Open a regular file of root's (or of the caller's, or of one of `owners`), relative to `directory` if given.

    O_CREAT makes it with `mode` where it is missing, O_TRUNC empties what has passed. Never waits.

    Raises:
        NotOwn: a link, a pipe, a device, a socket, a directory, a file with several names, or one that somebody else
            owns or may write to.
        OSError: as open(2).
    """
    for _ in range(_TRIES):
        try:
            return _open_existing(path, flags, directory, owners)
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise
        try:
            return os.open(path, flags | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=directory)
        except FileExistsError:
            continue
    raise NotOwn(path, "somebody makes and removes it again and again")


def read_file(path: str, *, directory: int | None = None, owners: Collection[int] = ()) -> bytes:
    """Read a file as `open_file` opens it. Raises NotOwn, OSError."""
    descriptor = open_file(path, directory=directory, owners=owners)
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def new_file(path: str) -> int:
    """Make an empty file (mode 0600) in place of whatever an interrupted run left under this name, for writing.

    Raises NotOwn if that is a directory.
    """
    take_away(path)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def take_away(path: str) -> None:
    """Remove whatever has this name, and not what it may lead to. Raises NotOwn if it is a directory."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        raise NotOwn(path, f"it is a directory: {_WHAT_TO_DO}") from None


def check_file(path: str, *, directory: int | None = None, owners: Collection[int] = ()) -> None:
    """Make sure that a name is free or stands for a file of root's, for those who open it by its name after that.

    Raises NotOwn as `open_file` does.
    """
    try:
        os.close(_checked_reference(path, directory, owners))
    except FileNotFoundError:
        return


def check_socket(path: str) -> None:
    """Make sure that a name is free or stands for a socket of root's. Raises NotOwn."""
    try:
        os.close(socket_reference(path))
    except FileNotFoundError:
        return


def socket_reference(path: str) -> int:
    """Open (O_PATH) a Unix socket of root's, to be connected to by its descriptor. Raises NotOwn, FileNotFoundError."""
    reference = os.open(path, _REFERENCE)
    try:
        status = os.fstat(reference)
        if not stat.S_ISSOCK(status.st_mode):
            raise NotOwn(path, f"it is {_kind(status)}, where a socket should be: {_WHAT_TO_DO}")
        _check_owner(path, status, ())
    except BaseException:
        os.close(reference)
        raise
    return reference


def make_directory(path: str, *, mode: int = 0o700) -> None:
    """Make a directory with this mode, and those above it, where they are missing, and check the way to it.

    Raises:
        NotOwn: it, or one above it, is no directory, or somebody else could put another one in its place, or it
            belongs to somebody else, or others may write to it.
        OSError: as open(2), mkdir(2).
    """
    descriptor = _Way(strict=True, mode=mode).walk(path)
    try:
        check_directory(path, descriptor)
    finally:
        os.close(descriptor)


def check_way(path: str) -> None:
    """Make sure of a directory, and of the way to it, as `make_directory` does, but make nothing.

    Raises NotOwn, OSError.
    """
    descriptor = _Way(strict=True).walk(path)
    try:
        check_directory(path, descriptor)
    finally:
        os.close(descriptor)


def check_directory(path: str, descriptor: int, *, owners: Collection[int] = (), groups: Collection[int] = ()) -> None:
    """Make sure that an open directory belongs to root (or the caller, or `owners`) and that no others may write to it.

    `groups` are those whose members may. Raises NotOwn.
    """
    _check_owner(path, os.fstat(descriptor), owners, groups)


def resolved(path: str) -> str:
    """Return the path without links, like realpath(3), also of what is not there yet.

    Raises NotOwn if somebody else could exchange what is on the way.
    """
    way = _Way(strict=True)
    try:
        os.close(way.walk(path))
    except FileNotFoundError:
        # What is missing has no links in it.
        return os.path.normpath(os.path.join(way.path, *way.missing))
    return way.path


def check_program(path: str) -> str:
    """Make sure that nobody else could exchange a program, or what it is called by; returns its path without links.

    It may have several names, as perl has in Debian. Raises NotOwn, OSError.
    """
    name = path
    for _ in range(_MOST_LINKS):
        directory = resolved(os.path.dirname(name))
        check_way(directory)
        name = os.path.join(directory, os.path.basename(name))
        status = os.stat(name, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            _check_owner(name, status, ())
            return name
        name = os.path.join(directory, os.readlink(name))
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def open_directory(path: str) -> int:
    """Open (O_RDONLY) a directory that may be inside one of somebody else's; made (0755) where it alone is missing.

    Links on the way are followed only where nobody else could have made them.

    Raises NotOwn, OSError.
    """
    reference = _Way(strict=False, mode=0o755, makes_parents=False).walk(path)
    try:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=reference)
    finally:
        os.close(reference)


def synchronize_directory(path: str) -> None:
    """Have the names in a directory on stable storage, of which somebody has made sure before. Raises OSError."""
    descriptor = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Way:
    """A walk along a path from the root, one name at a time, each seen before it is entered.

    Strict: nothing on the way may be such that somebody else can exchange it, so that the path means the same later.
    Else only links have to be so: who owns a directory may decide what is in it, but not lead us out of it.

    With `mode` the last component is made if it is missing, and with `makes_parents` those above it, as 0755.
    """

    def __init__(self, *, strict: bool, mode: int | None = None, makes_parents: bool = True) -> None:
        self._strict = strict
        self._mode = mode
        self._makes_parents = makes_parents
        self._links = 0
        self.path = "/"
        """The way so far, without links."""
        self.missing: list[str] = []
        """The components, the first of which was not found."""

    def walk(self, path: str) -> int:
        """Return the directory (O_PATH); the descriptor is the caller's to close."""
        self.missing = self._components(os.path.join(os.getcwd(), path))
        here = os.open("/", _DIRECTORY_REFERENCE)
        try:
            while self.missing:
                following = self._enter(here, self.missing[0])
                os.close(here)
                here = following
        except BaseException:
            os.close(here)
            raise
        return here

    @staticmethod
    def _components(path: str) -> list[str]:
        return [name for name in path.split("/") if name not in ("", ".")]

    def _enter(self, here: int, name: str) -> int:
        """Return a descriptor of where the walk goes on."""
        try:
            following = self._open(here, name)
        except NotADirectoryError:
            return self._follow(here, name)
        try:
            if self._strict and name != "..":
                self._refuse_exchangeable(here, os.fstat(following), name)
        except NotOwn:
            os.close(following)
            raise
        self.missing.pop(0)
        self.path = os.path.dirname(self.path) if name == ".." else os.path.join(self.path, name)
        return following

    def _open(self, here: int, name: str) -> int:
        try:
            return os.open(name, _DIRECTORY_REFERENCE, dir_fd=here)
        except FileNotFoundError:
            is_last = len(self.missing) == 1
            if self._mode is None or name == ".." or not (is_last or self._makes_parents):
                raise
        mode = self._mode if is_last else 0o755
        try:
            os.mkdir(name, mode, dir_fd=here)
        except FileExistsError:
            # Somebody else was faster, or a link leads nowhere.
            if not stat.S_ISDIR(os.stat(name, dir_fd=here, follow_symlinks=False).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
        return os.open(name, _DIRECTORY_REFERENCE, dir_fd=here)

    def _follow(self, here: int, name: str) -> int:
        path = os.path.join(self.path, name)
        status = os.stat(name, dir_fd=here, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        self._refuse_exchangeable(here, status, name)
        self._links += 1
        if self._links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink(name, dir_fd=here)
        self.missing = [*self._components(target), *self.missing[1:]]
        if not target.startswith("/"):
            return os.dup(here)
        self.path = "/"
        return os.open("/", _DIRECTORY_REFERENCE)

    def _refuse_exchangeable(self, here: int, entry: os.stat_result, name: str) -> None:
        parent = os.fstat(here)
        if not _is_ours(parent) or (_writable_by_others(parent) and not (parent.st_mode & stat.S_ISVTX)):
            raise NotOwn(
                os.path.join(self.path, name),
                f"others than root may change the directory {self.path}, and put something else in its place: "
                f"run 'chmod go-w {self.path}' or 'chown root {self.path}', or use another place",
            )
        if _writable_by_others(parent) and not _is_ours(entry):
            raise NotOwn(
                os.path.join(self.path, name),
                f"it belongs to uid {entry.st_uid}, who could put something else in its place: use another place",
            )


def _open_existing(path: str, flags: int, directory: int | None, owners: Collection[int]) -> int:
    reference = _checked_reference(path, directory, owners)
    try:
        # Exactly what was looked at, whatever has the name by now (proc(5)).
        again = flags & ~(os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW) | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(f"/proc/self/fd/{reference}", again)
    finally:
        os.close(reference)


def _checked_reference(path: str, directory: int | None, owners: Collection[int]) -> int:
    reference = os.open(path, _REFERENCE, dir_fd=directory)
    try:
        _check_regular(path, os.fstat(reference), owners)
    except BaseException:
        os.close(reference)
        raise
    return reference


def _check_regular(path: str, status: os.stat_result, owners: Collection[int]) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise NotOwn(path, f"it is a symbolic link, and what it leads to may be anything: {_WHAT_TO_DO}")
    if not stat.S_ISREG(status.st_mode):
        raise NotOwn(path, f"it is {_kind(status)}, where a file should be: {_WHAT_TO_DO}")
    if status.st_nlink > 1:
        raise NotOwn(
            path,
            f"it has {status.st_nlink} names (hard links), so it may be some other file: {_WHAT_TO_DO}, or copy it "
            f"('find {PurePath(path).parent} -xdev -inum {status.st_ino}' may show another name)",
        )
    _check_owner(path, status, owners)


def _check_owner(path: str, status: os.stat_result, owners: Collection[int], groups: Collection[int] = ()) -> None:
    if not _is_ours(status) and status.st_uid not in owners:
        raise NotOwn(path, f"it belongs to uid {status.st_uid}, not to root: {_WHAT_TO_DO}, or run 'chown root {path}'")
    if _writable_by_others(status, groups):
        mode = stat.S_IMODE(status.st_mode)
        raise NotOwn(path, f"others may write to it (mode {mode:04o}): see who did, and run 'chmod go-w {path}'")


def _is_ours(status: os.stat_result) -> bool:
    return status.st_uid in (0, os.geteuid())


def _writable_by_others(status: os.stat_result, groups: Collection[int] = ()) -> bool:
    by_group = bool(status.st_mode & stat.S_IWGRP) and status.st_gid != 0 and status.st_gid not in groups
    return by_group or bool(status.st_mode & stat.S_IWOTH)


def _kind(status: os.stat_result) -> str:
    if stat.S_ISLNK(status.st_mode):
        return "a symbolic link"
    return next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "something else")
