"""Single file system calls written as text, with the errno or value that they give, as in pjdfstest."""

import errno
import os
import re
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mirrorfs.filesystem.system_calls import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2

RENAME_FLAGS = {"0": 0, "NOREPLACE": RENAME_NOREPLACE, "EXCHANGE": RENAME_EXCHANGE, "BOTH": 3, "BAD": 64}
NAMES = {"n255": "n" * 255, "n256": "n" * 256, "l4095": ("l" * 9 + "/") * 409 + "lllll", "p4096": "./" * 2048}

ACCESS_CONTROL_LIST = "system.posix_acl_access"
# As in include/uapi/linux/posix_acl_xattr.h: a version, then entries of tag, permissions, id.
_LIST_VERSION = struct.pack("<I", 2)
_LIST_ENTRY = struct.Struct("<HHI")
_LIST_TAGS = {("u", False): 1, ("u", True): 2, ("g", False): 4, ("g", True): 8, ("m", False): 16, ("o", False): 32}
_NO_ID = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Caller:
    """The ids under which a call is made, written as uid:gid or uid:gid,group,..."""

    uid: int
    gid: int
    groups: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> "Caller":
        uid, _, groups = text.partition(":")
        numbers = [int(number) for number in groups.split(",")]
        return cls(int(uid), numbers[0], tuple(numbers))


@contextmanager
def acting_as(caller: Caller | None) -> Iterator[None]:
    """Takes on the effective ids of another user, and with them his want of privilege."""
    if caller is None:
        yield
        return
    groups = os.getgroups()
    os.setgroups(caller.groups)
    os.setegid(caller.gid)
    os.seteuid(caller.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def outcome(line: str) -> str:
    """Makes the call in `line`; "ok", its value, or the name of its errno."""
    caller = None
    first, _, rest = line.partition(" ")
    if re.fullmatch(r"\d+:[\d,]+", first):
        caller = Caller.parse(first)
        line = rest
    name, *arguments = line.split()
    arguments = [argument.format(**NAMES) for argument in arguments]
    with acting_as(caller):
        try:
            value = _CALLS[name](*arguments)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
    return "ok" if value is None else str(value)


def check(script: str) -> None:
    """Makes all calls of a script, of lines "[uid:gid[,groups]] call arguments [-> result]"; without result: ok."""
    for line in script.strip().splitlines():
        call, _, expected = line.partition("#")[0].partition("->")
        if not call.strip():
            continue
        found = outcome(call.strip())
        assert found == (expected.strip() or "ok"), line.strip()


def _create(path: str, mode: str = "0644") -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, int(mode, 8)))


def _open(path: str, flags: str, mode: str = "0644") -> None:
    value = os.O_NONBLOCK  # a fifo without its other end shall not stop the test
    for flag in flags.split("|"):
        value |= getattr(os, f"O_{flag}")
    os.close(os.open(path, value, int(mode, 8)))


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _read(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return repr(os.read(descriptor, 1 << 16))
    finally:
        os.close(descriptor)


def _bind(path: str) -> None:
    # The limit of 107 bytes does not matter here.
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)


def _mknod(path: str, kind: str, mode: str, major: str = "0", minor: str = "0") -> None:
    kinds = {"f": stat.S_IFREG, "p": stat.S_IFIFO, "c": stat.S_IFCHR, "b": stat.S_IFBLK, "s": stat.S_IFSOCK}
    os.mknod(path, kinds[kind] | int(mode, 8), os.makedev(int(major), int(minor)))


def _make(kind: str, path: str) -> None:
    """An object of any kind, by its letter."""
    makers: dict[str, Callable[[], None]] = {
        "f": lambda: _create(path),
        "d": lambda: os.mkdir(path),
        "l": lambda: os.symlink("target", path),
        "p": lambda: os.mkfifo(path),
        "s": lambda: _bind(path),
        "c": lambda: _mknod(path, "c", "0644", "1", "3"),
        "b": lambda: _mknod(path, "b", "0644", "7", "0"),
    }
    makers[kind]()


def _remove(path: str) -> None:
    if stat.S_ISDIR(os.lstat(path).st_mode):
        os.rmdir(path)
    else:
        os.unlink(path)


def _utimes(path: str, access: str, modification: str) -> None:
    """Times in seconds; both "now" for utimensat without times."""
    if access == "now":
        os.utime(path)
    else:
        os.utime(path, (int(access), int(modification)))


def _set_list(path: str, text: str) -> None:
    """An access control list as setfacl takes it, but all of it, with permissions as "r-x"."""
    value = _LIST_VERSION
    for entry in text.split(","):
        kind, number, letters = entry.split(":")
        permissions = sum(4 >> position for position, letter in enumerate(letters) if letter != "-")
        value += _LIST_ENTRY.pack(_LIST_TAGS[kind, bool(number)], permissions, int(number or _NO_ID))
    os.setxattr(path, ACCESS_CONTROL_LIST, value)


def _get_list(path: str) -> str:
    kinds = {tag: kind for (kind, _), tag in _LIST_TAGS.items()}
    entries = []
    for tag, permissions, number in _LIST_ENTRY.iter_unpack(
        os.getxattr(path, ACCESS_CONTROL_LIST)[len(_LIST_VERSION) :]
    ):
        letters = "".join(letter if permissions & 4 >> position else "-" for position, letter in enumerate("rwx"))
        entries.append(f"{kinds[tag]}:{'' if number == _NO_ID else number}:{letters}")
    return ",".join(entries)


_FIELDS: dict[str, Callable[[os.stat_result], object]] = {
    "mode": lambda status: f"{stat.S_IMODE(status.st_mode):04o}",
    "kind": lambda status: stat.filemode(status.st_mode)[0],
    "uid": lambda status: status.st_uid,
    "gid": lambda status: status.st_gid,
    "size": lambda status: status.st_size,
    "nlink": lambda status: status.st_nlink,
    "atime": lambda status: int(status.st_atime),
    "mtime": lambda status: int(status.st_mtime),
    "device": lambda status: f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}",
}


def _fields(status: os.stat_result, names: str) -> str:
    return ",".join(str(_FIELDS[name](status)) for name in names.split(","))


_CALLS: dict[str, Callable[..., object]] = {
    "create": _create,
    "open": _open,
    "write": _write,
    "read": _read,
    "mkdir": lambda path, mode="0755": os.mkdir(path, int(mode, 8)),
    "rmdir": os.rmdir,
    "unlink": os.unlink,
    "remove": _remove,
    "make": _make,
    "link": lambda old, new: os.link(old, new, follow_symlinks=False),
    "symlink": os.symlink,
    "readlink": os.readlink,
    "rename": os.rename,
    "renameat2": lambda old, new, flags: renameat2(-100, os.fsencode(old), -100, os.fsencode(new), RENAME_FLAGS[flags]),
    "chmod": lambda path, mode: os.chmod(path, int(mode, 8)),
    "chown": lambda path, uid, gid: os.chown(path, int(uid), int(gid)),
    "lchown": lambda path, uid, gid: os.lchown(path, int(uid), int(gid)),
    "truncate": lambda path, size: os.truncate(path, int(size)),
    "mkfifo": lambda path, mode="0644": os.mkfifo(path, int(mode, 8)),
    "mknod": _mknod,
    "bind": _bind,
    "utimes": _utimes,
    "list": lambda path: ",".join(sorted(os.listdir(path))),
    "chdir": os.chdir,
    "lstat": lambda path, names: _fields(os.lstat(path), names),
    "stat": lambda path, names: _fields(os.stat(path), names),
    "setxattr": lambda path, name, value: os.setxattr(path, name, value.encode()),
    "getxattr": lambda path, name: os.getxattr(path, name).decode(),
    "removexattr": os.removexattr,
    "listxattr": lambda path: ",".join(sorted(os.listxattr(path))) or "none",
    "setacl": _set_list,
    "getacl": _get_list,
    "umask": lambda mask: os.umask(int(mask, 8)) and None,
}
