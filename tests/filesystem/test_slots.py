"""Nobody can fill the requests that are served at a time while a disk is stuck."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pyfuse3
import pytest
import trio
import trio.testing

from mirrorfs.filesystem.shares import Shares
from mirrorfs.filesystem.slots import MOST_REQUESTS, Slots, Traffic
from tests.filesystem.conftest import PassThroughProcess
from tests.filesystem.slow_backing_process import SlowBackingProcess

_HOSTILE = 61001
_CALLS = 600
_OF_ONE = 96
# Any interpreter that another user may run: the one of the tests may lie where only root may go.
_PYTHON = os.path.realpath(sys.executable)
_PROGRAM = f"""
import errno, os, sys, threading
threading.stack_size(128 * 1024)
def ask(number):
    try:
        os.getxattr(f"slow{{number}}", "user.a")
    except OSError as error:
        os.write(1, (errno.errorcode[error.errno] + "\\n").encode())
threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range({_CALLS})]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_one_user_does_not_take_all_requests(slow: tuple[PassThroughProcess, SlowBackingProcess]) -> None:
    mount, backing = slow
    place = mount.mountpoint / "place"
    place.mkdir()
    for number in range(_CALLS):
        (place / f"slow{number}").touch()
    backing.hold("getxattr")
    with subprocess.Popen(
        [_PYTHON, "-I", "-S", "-c", _PROGRAM],
        cwd=place,
        user=_HOSTILE,
        group=_HOSTILE,
        extra_groups=[],
        stdout=subprocess.PIPE,
        text=True,
    ) as asking:
        try:
            assert asking.stdout is not None
            backing.wait_until_held(_OF_ONE)
            refused = [asking.stdout.readline().strip() for _ in range(_CALLS - _OF_ONE)]
            assert set(refused) == {"EAGAIN"}
            # Others are served meanwhile, with what has to be asked of the disk.
            (place / "by root").write_bytes(b"content")
            assert (place / "by root").read_bytes() == b"content"
        finally:
            backing.go()
        answers = [asking.stdout.readline().strip() for _ in range(_OF_ONE)]
        # They are answered as ever: there is no such attribute.
        assert set(answers) == {"ENODATA"}


def test_the_event_loop_knows_when_all_requests_are_stuck(slow_base: tuple[Path, SlowBackingProcess]) -> None:
    base, backing = slow_base
    place = base / "backing"
    for number in range(_CALLS):
        (place / f"slow{number}").touch()
    assert not backing.is_full()
    backing.hold("getxattr")
    with subprocess.Popen([_PYTHON, "-I", "-S", "-c", _PROGRAM], cwd=place, stdout=subprocess.PIPE) as asking:
        assert asking.stdout is not None
        try:
            backing.wait_until_held(MOST_REQUESTS)
            assert backing.is_full()
        finally:
            backing.go()
        assert asking.stdout.read().split() == [b"ENODATA"] * _CALLS
    assert not backing.is_full()


class _Held(pyfuse3.Operations):
    def __init__(self) -> None:
        super().__init__()
        self.go = trio.Event()
        self.under_way = 0

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return inode

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        self.under_way += 1
        await self.go.wait()

    async def releasedir(self, fh: int) -> None:
        await trio.lowlevel.checkpoint()


def test_requests_with_a_handle_are_those_of_who_opened_it() -> None:
    trio.run(_ask_by_handle)


async def _ask_by_handle() -> None:
    held, traffic = _Held(), Traffic()
    Slots(Shares(lambda: {34}, 20, 8), traffic).bound(held)
    context = pyfuse3.RequestContext()
    assert context.uid == 0
    async with trio.open_nursery() as nursery:
        await held.opendir(3, context)
        for _ in range(20):
            nursery.start_soon(held.fsyncdir, 3, False)
        await trio.testing.wait_all_tasks_blocked()
        assert (held.under_way, traffic.under_way) == (20, 20)
        with pytest.raises(pyfuse3.FUSEError) as refused:
            await held.fsyncdir(3, False)
        assert refused.value.errno == errno.EAGAIN
        # What gives something back is never refused.
        await held.releasedir(3)
        # Of these, the first was opening, one was refused, and one gave back.
        assert traffic == Traffic(under_way=20, done=3)
        held.go.set()
    await held.fsyncdir(3, False)
    assert traffic == Traffic(under_way=0, done=24)
