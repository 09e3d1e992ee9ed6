"""The root's access control list is asked for once, not at each path, and never shown as it was before a change."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pyfuse3
import pytest
import trio
import trio.testing

from mirrorfs.filesystem.inodes import ROOT_NUMBER
from mirrorfs.filesystem.operations import PassThrough
from mirrorfs.filesystem.root_attributes import RootAttributes
from tests.filesystem.test_observer import CALLER

pytestmark = pytest.mark.trio

_LIST = b"system.posix_acl_access"
_NOBODY = 0xFFFFFFFF
# Version 2: owner rwx, user 34 r, group r, mask r, others nothing; each entry is tag, permissions, id.
_VALUE = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in ((1, 7, _NOBODY), (2, 4, 34), (4, 4, _NOBODY), (16, 4, _NOBODY), (32, 0, _NOBODY))
)


class _Reads:
    """Counts reads, each of which gives `value`, or that there is none; they wait while `gate` is shut."""

    def __init__(self) -> None:
        self.value: bytes | None = None
        self.count = 0
        self.gate = trio.Event()
        self.gate.set()

    async def __call__(self) -> bytes:
        self.count += 1
        value = self.value
        await self.gate.wait()
        if value is None:
            raise OSError(errno.ENODATA, "none")
        return value


async def _get(attributes: RootAttributes, reads: _Reads, name: bytes = _LIST) -> bytes | None:
    try:
        return await attributes.get(name, reads)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return None


async def test_it_is_read_once_also_if_there_is_none() -> None:
    attributes, reads = RootAttributes(), _Reads()
    for value in (None, b"list"):
        reads.value, reads.count = value, 0
        assert [await _get(attributes, reads) for _ in range(3)] == [value] * 3
        assert reads.count == 1
        with attributes.changing(True):
            pass


async def test_what_is_no_list_is_read_each_time() -> None:
    attributes, reads = RootAttributes(), _Reads()
    for _ in range(2):
        assert await _get(attributes, reads, b"user.note") is None
    assert reads.count == 2


async def test_a_change_of_another_inode_is_none() -> None:
    attributes, reads = RootAttributes(), _Reads()
    await _get(attributes, reads)
    with attributes.changing(False):
        assert await _get(attributes, reads) is None
    assert reads.count == 1


@pytest.mark.parametrize("begins", ["before", "meanwhile"])
async def test_what_was_read_beside_a_change_is_not_remembered(begins: str) -> None:
    attributes, reads = RootAttributes(), _Reads()
    reads.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        if begins == "before":
            nursery.start_soon(_get, attributes, reads)
            await trio.testing.wait_all_tasks_blocked()
        with attributes.changing(True):
            if begins == "meanwhile":
                nursery.start_soon(_get, attributes, reads)
                await trio.testing.wait_all_tasks_blocked()
            reads.value = b"new"
        reads.gate.set()
    assert await _get(attributes, reads) == b"new"


async def _shown(operations: PassThrough) -> bytes | None:
    try:
        return await operations.getxattr(ROOT_NUMBER, _LIST, CALLER)
    except pyfuse3.FUSEError as error:
        if error.errno != errno.ENODATA:
            raise
        return None


async def test_changes_through_the_mount_are_shown(operations: PassThrough, tmp_path: Path) -> None:
    if not operations.enable_acl:
        pytest.skip("this file system has no access control lists")
    assert await _shown(operations) is None
    await operations.setxattr(ROOT_NUMBER, _LIST, _VALUE, CALLER)
    assert await _shown(operations) == _VALUE
    attributes, fields = await operations.getattr(ROOT_NUMBER, CALLER), pyfuse3.SetattrFields()
    # Nothing else than the kernel can ask for a change of the mode: its fields cannot be set here.
    os.chmod(tmp_path, 0o770)
    await operations.setattr(ROOT_NUMBER, attributes, fields, None, CALLER)
    assert await _shown(operations) == os.getxattr(tmp_path, _LIST) != _VALUE
    await operations.removexattr(ROOT_NUMBER, _LIST, CALLER)
    assert await _shown(operations) is None
