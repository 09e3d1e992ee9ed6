"""No user can take from the others what there is only so much of: open files, open directories, memory for listings."""

from __future__ import annotations

import errno
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.filesystem import listing
from mirrorfs.filesystem.inodes import ROOT_NUMBER, Inode
from mirrorfs.filesystem.listing import Directories
from mirrorfs.filesystem.shares import Shares
from mirrorfs.filesystem.threads import Threads
from mirrorfs.filesystem.tree import Tree
from tests.filesystem.conftest import Mounter, PassThroughProcess
from tests.filesystem.limits import Grabber, limited

_OWNER = 34
_HOSTILE = 20001
_OTHERS = range(20002, 20008)
_LIMIT = 1024
# Of 1024: a quarter for the daemon itself, a quarter of the rest for what is unlinked, half of the rest for all users
# but root and the owner, a quarter of that for each.
_HANDLES = 576
_OF_OTHERS = 288
_OF_ONE = 72


def _owners() -> set[int]:
    return {_OWNER}


USERS = st.sampled_from([0, _OWNER, _HOSTILE, *_OTHERS])


@given(st.lists(st.tuples(USERS, st.integers(1, 60), st.booleans()), max_size=80))
def test_shares(steps: list[tuple[int, int, bool]]) -> None:
    shares = Shares(_owners, 200, 100)
    held: Counter[int] = Counter()
    for uid, amount, takes in steps:
        if not takes and held[uid]:
            given = min(amount, held[uid])
            shares.give_back(uid, given)
            held[uid] -= given
            continue
        others = sum(number for user, number in held.items() if user not in (0, _OWNER))
        wanted = amount if uid in (0, _OWNER) else min(amount, 25)
        refusal = None
        if uid not in (0, _OWNER) and held[uid] + wanted > 25:
            refusal = errno.EMFILE
        elif (uid not in (0, _OWNER) and others + wanted > 100) or held.total() + wanted > 200:
            refusal = errno.ENFILE
        if refusal is None:
            assert shares.take(uid, amount) == wanted
            held[uid] += wanted
        else:
            with pytest.raises(OSError, match=os.strerror(refusal)):
                shares.take(uid, amount)
        assert all(shares[user] == held[user] for user in (0, _OWNER, _HOSTILE, *_OTHERS))
    others = sum(number for user, number in held.items() if user not in (0, _OWNER))
    assert others <= 100
    assert held.total() <= 200
    assert all(number <= 25 for user, number in held.items() if user not in (0, _OWNER))


def test_one_thing_may_be_larger_than_a_share() -> None:
    shares = Shares(_owners, 1000, 100)
    assert shares.take(_HOSTILE, 500) == 25
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        shares.take(_HOSTILE, 1)
    shares.give_back(_HOSTILE, 25)
    assert shares.take(_HOSTILE, 25) == 25


def test_who_becomes_the_owner_is_no_other_any_more() -> None:
    owners: set[int] = set()
    shares = Shares(lambda: owners, 200, 100)
    for _ in range(25):
        shares.take(_OWNER)
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        shares.take(_OWNER)
    owners.add(_OWNER)
    shares.take(_OWNER)
    # What he holds is not taken from the others' part.
    for uid in range(20001, 20005):
        assert shares.take(uid, 25) == 25
    shares.give_back(_OWNER, 26)
    assert shares.take(_OWNER, 100) == 100


@pytest.fixture
def mount(memory_base: Path, mounter: Mounter) -> PassThroughProcess:
    """A mount over a directory of the user "backup", in which one directory is everybody's."""
    (memory_base / "backing").mkdir()
    os.chown(memory_base / "backing", _OWNER, _OWNER)
    everybody = memory_base / "backing" / "everybody"
    everybody.mkdir()
    everybody.chmod(0o1777)
    (everybody / "shared").write_bytes(b"data")
    return mounter(base=memory_base, prepare=limited(_LIMIT))


def _works(mount: PassThroughProcess, uid: int, most: int = 30) -> bool:
    """Whether a user can make, open and list files."""
    for kind in ("created", "opened", "listed"):
        with Grabber(mount.mountpoint / "everybody", kind, uid, most) as grabber:
            if grabber.held != most:
                return False
    return True


def _wait_until_idle(mount: PassThroughProcess) -> None:
    # The kernel releases what a process held after that has ended.
    deadline = time.monotonic() + 30
    while (held := mount.statistics())["files"] + held["directories"] > 0:
        assert time.monotonic() < deadline, held
        time.sleep(0.02)


@pytest.mark.parametrize("kind", ["created", "opened", "listed"])
def test_one_user_cannot_take_all_descriptors(mount: PassThroughProcess, kind: str) -> None:
    with Grabber(mount.mountpoint / "everybody", kind, _HOSTILE) as grabber:
        assert (grabber.held, grabber.refused) == (_OF_ONE, "EMFILE")
        assert _works(mount, 0)
        assert _works(mount, _OWNER)
        assert _works(mount, _OTHERS[0])
        # A thousand tries in vain cost nobody anything.
        with Grabber(mount.mountpoint / "everybody", kind, _HOSTILE, 1) as again:
            assert (again.held, again.refused) == (0, "EMFILE")
    _wait_until_idle(mount)
    with Grabber(mount.mountpoint / "everybody", kind, _HOSTILE) as grabber:
        assert grabber.held == _OF_ONE


def test_many_users_leave_root_and_the_owner_theirs(mount: PassThroughProcess) -> None:
    with ExitStack() as stack:
        directory = mount.mountpoint / "everybody"
        grabbers = [stack.enter_context(Grabber(directory, "opened", uid)) for uid in (_HOSTILE, *_OTHERS)]
        assert sum(grabber.held for grabber in grabbers) == _OF_OTHERS
        assert {grabber.refused for grabber in grabbers} == {"EMFILE", "ENFILE"}
        owner = stack.enter_context(Grabber(directory, "opened", _OWNER, 200))
        assert (owner.held, owner.refused) == (200, None)
        root = stack.enter_context(Grabber(directory, "created", 0))
        assert (root.held, root.refused) == (_HANDLES - _OF_OTHERS - 200, "ENFILE")
        # What is open goes on working, and names can be made, changed and taken away.
        (directory / "directory").mkdir()
        os.rename(directory / "directory", directory / "renamed")
        os.rmdir(directory / "renamed")
        assert (directory / "shared").stat().st_size == 4
    _wait_until_idle(mount)
    assert _works(mount, 0)


def test_whose_the_chunk_store_is_has_the_owners_part(memory_base: Path, mounter: Mounter) -> None:
    """PBS runs as "backup", and may have been given a directory of root's."""
    mount = mounter(base=memory_base, prepare=limited(_LIMIT))
    mount.mountpoint.chmod(0o1777)
    with Grabber(mount.mountpoint, "created", _OWNER) as grabber:
        assert grabber.refused == "EMFILE"
    _wait_until_idle(mount)
    (mount.mountpoint / ".chunks").mkdir()
    os.chown(mount.mountpoint / ".chunks", _OWNER, _OWNER)
    with Grabber(mount.mountpoint, "created", _OWNER, 400) as grabber:
        assert (grabber.held, grabber.refused) == (400, None)


def test_what_is_unlinked_is_bounded_too(mount: PassThroughProcess) -> None:
    """A descriptor keeps what is unlinked and still referred to: nobody needs many of these, and everybody may try."""
    with Grabber(mount.mountpoint / "everybody", "unlinked", _HOSTILE, 1500) as grabber:
        assert (grabber.held, grabber.refused) == (1500, None)
        assert mount.statistics()["descriptors"] < 100
        assert _works(mount, 0)
        assert _works(mount, _OTHERS[0])
    _wait_until_idle(mount)
    deadline = time.monotonic() + 30
    while mount.statistics()["descriptors"] > 10:
        assert time.monotonic() < deadline
        Path("/proc/sys/vm/drop_caches").write_text("2")


def test_the_limit_is_raised_as_far_as_it_may_be(memory_base: Path, mounter: Mounter) -> None:
    def lower() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))

    mount = mounter(base=memory_base, prepare=lower)
    limits = Path(f"/proc/{mount.pid}/limits").read_text()
    (line,) = (line for line in limits.splitlines() if line.startswith("Max open files"))
    soft, hard = line.split()[3:5]
    assert soft == hard
    assert int(soft) > 256


_MANY = 50_000


def test_a_listing_is_shared(memory_base: Path, mounter: Mounter) -> None:
    folder = memory_base / "backing" / "folder"
    folder.mkdir(parents=True)
    descriptor = os.open(folder, os.O_RDONLY)
    for number in range(_MANY):
        os.mknod(f"a-name-of-an-ordinary-length-{number:06d}", 0o600, dir_fd=descriptor)
    os.close(descriptor)
    mount = mounter(base=memory_base)
    with ExitStack() as stack:
        before = after = 0
        for number in range(40):
            opened = os.open(mount.mountpoint / "folder", os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, opened)
            entries = stack.enter_context(os.scandir(opened))
            assert next(entries).name
            if number == 1:
                before = _memory(mount.pid)
        after = _memory(mount.pid)
    # One listing of these is more than 4 MiB.
    assert after - before < 16 << 20


def _memory(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_a_shared_listing_is_never_out_of_date(mount: PassThroughProcess) -> None:
    folder = mount.mountpoint / "folder"
    folder.mkdir()
    with ExitStack() as stack:
        names: set[str] = set()
        for number in range(300):
            name = f"n{number}"
            match number % 4:
                case 0:
                    (folder / name).write_bytes(b"")
                case 1:
                    (folder / name).mkdir()
                case 2:
                    os.rename(folder / f"n{number - 2}", folder / name)
                    names.discard(f"n{number - 2}")
                case _:
                    os.rmdir(folder / f"n{number - 2}")
                    names.discard(f"n{number - 2}")
            if number % 4 != 3:
                names.add(name)
            opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            # Some stay open, with the listing of their time.
            if number % 10 == 0:
                stack.callback(os.close, opened)
            try:
                assert set(os.listdir(opened)) == names
            finally:
                if number % 10:
                    os.close(opened)


def test_a_change_behind_our_back_is_seen(mount: PassThroughProcess) -> None:
    (mount.mountpoint / "folder").mkdir()
    with os.scandir(mount.mountpoint / "folder") as entries:
        assert list(entries) == []
        (mount.backing / "folder" / "new").mkdir()
        os.utime(mount.backing / "folder", ns=(1, 1))
        assert os.listdir(mount.mountpoint / "folder") == ["new"]


class _Directories:
    """The table of open directories alone, over a real directory."""

    def __init__(self, path: Path, names: Shares, may_keep: Callable[[Inode], bool] = lambda _: True) -> None:
        self._root = os.open(path, os.O_RDONLY)
        self._threads = Threads()
        self.tree = Tree(self._root, self._threads, Shares(_owners, 1000, 1000))
        self.handles = Shares(_owners, 1000, 1000)
        self.directories = Directories(self.tree, self._threads, self.handles, names, may_keep)

    def changed(self, name: bytes) -> None:
        """Says that a name was made in the root, as the operations do."""
        os.mknod(name, 0o600, dir_fd=self._root)
        self.tree.appeared(self.tree.inodes.root, name, os.stat(name, dir_fd=self._root))

    def close(self) -> None:
        self.directories.close()
        self.tree.close()
        self._threads.close()
        os.close(self._root)


@pytest.fixture
def names() -> Shares:
    return Shares(_owners, sys.maxsize, 400)


@pytest.fixture
async def table(tmp_path: Path, names: Shares) -> AsyncIterator[_Directories]:
    for number in range(40):
        (tmp_path / f"{number}").touch()
    table = _Directories(tmp_path, names)
    yield table
    table.close()


@pytest.mark.trio
async def test_listings_of_a_directory_that_changes_are_bounded(table: _Directories, names: Shares) -> None:
    """Each time another listing: a user gets so many, in what all others see of it nothing changes."""
    root = table.tree.inodes[ROOT_NUMBER]
    refused = []
    opened = []
    for number in range(10):
        table.changed(b"new%d" % number)
        handle = await table.directories.open(root, _HOSTILE)
        opened.append(handle)
        try:
            assert len(await table.directories.names(handle, 0)) == 43 + number
        except OSError as error:
            refused.append(error.errno)
    # Shares of 100: two listings of 40 and more.
    assert refused == [errno.EMFILE] * 8
    other = await table.directories.open(root, _OTHERS[0])
    assert len(await table.directories.names(other, 0)) == 52
    owner = [await table.directories.open(root, _OWNER) for _ in range(30)]
    for number, handle in enumerate(owner):
        table.changed(b"more%d" % number)
        assert len(await table.directories.names(handle, 0)) == 53 + number
    for handle in (*opened, other, *owner):
        table.directories.release(handle.descriptor)
    assert names[_HOSTILE] == names[_OWNER] == table.handles[_HOSTILE] == 0


@pytest.mark.trio
async def test_a_listing_goes_on_as_it_began(table: _Directories) -> None:
    root = table.tree.inodes[ROOT_NUMBER]
    first, second = [await table.directories.open(root, uid) for uid in (_HOSTILE, _OTHERS[0])]
    begun = await table.directories.names(first, 0)
    assert await table.directories.names(second, 0) is begun
    table.changed(b"new")
    assert await table.directories.names(first, 7) is begun
    assert b"new" in await table.directories.names(second, 0)
    assert b"new" not in await table.directories.names(first, 7)
    assert b"new" in await table.directories.names(first, 0)


@pytest.mark.trio
async def test_many_who_list_at_once_read_it_once(table: _Directories, monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0
    list_names = listing._list

    def counted(path: bytes) -> list[bytes]:
        nonlocal read
        read += 1
        return list_names(path)

    monkeypatch.setattr(listing, "_list", counted)
    root = table.tree.inodes[ROOT_NUMBER]
    handles = [await table.directories.open(root, _HOSTILE) for _ in range(50)]
    found: list[list[bytes]] = []

    async def list_with(number: int) -> None:
        found.append(await table.directories.names(handles[number], 0))

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(list_with, number)
    assert read == 1
    assert all(names is found[0] for names in found)


class _Counted:
    """The reading of directories, counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = 0
        self._list = listing._list
        monkeypatch.setattr(listing, "_list", self)

    def __call__(self, path: bytes) -> list[bytes]:
        self.times += 1
        return self._list(path)


async def _names_of(directories: Directories, inode: Inode) -> list[bytes]:
    handle = await directories.open(inode, _HOSTILE)
    names = await directories.names(handle, 0)
    directories.release(handle.descriptor)
    return names


@pytest.mark.trio
async def test_a_small_listing_is_kept_until_the_directory_changes(
    table: _Directories, names: Shares, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = _Counted(monkeypatch)
    root = table.tree.inodes[ROOT_NUMBER]
    for _ in range(3):
        assert len(await _names_of(table.directories, root)) == 42
    assert read.times == 1
    # It is nobody's share while nobody lists it.
    assert names[_HOSTILE] == table.handles[_HOSTILE] == 0
    table.changed(b"new")
    for _ in range(3):
        assert b"new" in await _names_of(table.directories, root)
    assert read.times == 2


@pytest.mark.trio
async def test_only_so_many_names_are_kept(
    table: _Directories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_MOST_KEPT_NAMES", 60)
    (tmp_path / "sub").mkdir()
    for number in range(20):
        (tmp_path / "sub" / f"{number}").touch()
    read = _Counted(monkeypatch)
    root = table.tree.inodes[ROOT_NUMBER]
    sub = table.tree.appeared(root, b"sub", (tmp_path / "sub").stat())
    for _ in range(3):
        await _names_of(table.directories, root)
        await _names_of(table.directories, sub)
    # 43 and 22: each drives the other one out.
    assert read.times == 6
    monkeypatch.setattr(listing, "_MOST_KEPT_NAMES_OF_ONE", 30)
    for _ in range(3):
        await _names_of(table.directories, root)
        await _names_of(table.directories, sub)
    assert read.times == 9


@pytest.mark.trio
async def test_what_others_change_is_not_kept(tmp_path: Path, names: Shares, monkeypatch: pytest.MonkeyPatch) -> None:
    read = _Counted(monkeypatch)
    table = _Directories(tmp_path, names, may_keep=lambda _: False)
    for _ in range(3):
        await _names_of(table.directories, table.tree.inodes[ROOT_NUMBER])
    assert read.times == 3
    table.close()
