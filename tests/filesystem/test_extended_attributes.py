"""What the kernel asks of each new file, to take it away or to check access: known without asking, and never wrong."""

from __future__ import annotations

import errno
import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pyfuse3
import pytest

from mirrorfs.filesystem.inodes import ROOT_NUMBER
from mirrorfs.filesystem.operations import PassThrough
from mirrorfs.filesystem.threads import Threads
from tests.filesystem.posix_calls import ACCESS_CONTROL_LIST
from tests.filesystem.test_observer import CALLER

_CAPABILITIES = "security.capability"
# include/uapi/linux/capability.h: VFS_CAP_REVISION_2, cap_net_raw permitted, nothing inheritable.
_NET_RAW = struct.pack("<5I", 0x02000000, 1 << 13, 0, 0, 0)
# As in include/uapi/linux/posix_acl_xattr.h; with a user of its own, or it would be nothing but the mode.
_LIST = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, number)
    for tag, permissions, number in (
        (0x01, 6, 0xFFFFFFFF),
        (0x02, 4, 1000),
        (0x04, 4, 0xFFFFFFFF),
        (0x10, 4, 0xFFFFFFFF),
        (0x20, 0, 0xFFFFFFFF),
    )
)


def _get(path: str, name: str) -> bytes | None:
    try:
        return os.getxattr(path, name)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            pytest.skip("the file system has no access control lists")
        if error.errno != errno.ENODATA:
            raise
        return None


def test_capabilities_are_there_once_set_and_a_write_takes_them_away(area: Path) -> None:
    Path("f").write_bytes(b"text")
    assert _get("f", _CAPABILITIES) is None
    os.link("f", "another")
    os.setxattr("another", _CAPABILITIES, _NET_RAW)
    assert _get("f", _CAPABILITIES) == _NET_RAW
    with open("f", "ab") as file:
        file.write(b"more")
    assert _get("f", _CAPABILITIES) is None
    assert _get("another", _CAPABILITIES) is None


def test_a_new_file_has_the_list_that_it_is_given_or_inherits(area: Path) -> None:
    Path("f").write_bytes(b"text")
    assert _get("f", ACCESS_CONTROL_LIST) is None
    os.setxattr("f", ACCESS_CONTROL_LIST, _LIST)
    assert _get("f", ACCESS_CONTROL_LIST) == _LIST
    os.removexattr("f", ACCESS_CONTROL_LIST)
    assert _get("f", ACCESS_CONTROL_LIST) is None
    os.mkdir("directory")
    os.setxattr("directory", "system.posix_acl_default", _LIST)
    os.close(os.open("directory/f", os.O_CREAT | os.O_WRONLY, 0o666))
    assert _get("directory/f", ACCESS_CONTROL_LIST) is not None


@pytest.mark.trio
@pytest.mark.parametrize("name", [_CAPABILITIES, ACCESS_CONTROL_LIST])
async def test_of_a_new_file_it_is_not_asked(
    operations: PassThrough, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    info, entry = await operations.create(ROOT_NUMBER, b"f", 0o644, os.O_WRONLY, CALLER)
    with monkeypatch.context() as patch:
        patch.setattr(Threads, "run", _refuse)
        with pytest.raises(pyfuse3.FUSEError) as answer:
            await operations.getxattr(entry.st_ino, name.encode(), CALLER)
        assert answer.value.errno == errno.ENODATA
    # Once it is set, or may have been, it is asked for.
    with suppress(pyfuse3.FUSEError):
        await operations.setxattr(entry.st_ino, name.encode(), b"of no sense", CALLER)
    monkeypatch.setattr(Threads, "run", _refuse)
    with pytest.raises(pyfuse3.FUSEError) as answer:
        await operations.getxattr(entry.st_ino, name.encode(), CALLER)
    assert answer.value.errno == errno.EIO
    monkeypatch.undo()
    await operations.release(info.fh)


async def _refuse(*_: object, **__: object) -> NoReturn:
    raise AssertionError("a thread is asked")
