"""Directories below a target have the mode and owner that PBS gives them, whatever the kernel would do."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mirrorfs.recovery.files import Files
from mirrorfs.recovery.ownership import Owner

OWNER = Owner(34, 34) if os.geteuid() == 0 else Owner(os.geteuid(), os.getegid())
MODE = 0o750
NAMES = ("0000", "0001", "0002", "0003")


@contextmanager
def files_in(path: Path) -> Iterator[tuple[Files, int]]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield Files(path, descriptor, OWNER), descriptor
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("mask", [0o022, 0o077])
@pytest.mark.parametrize("parent", [0o755, 0o2755], ids=["usual", "setgid"])
def test_directories_are_made_alike(tmp_path: Path, mask: int, parent: int) -> None:
    tmp_path.chmod(parent)
    # A chunk has come before.
    (tmp_path / "0002").mkdir(0o750)
    os.chown(tmp_path / "0002", OWNER.user, OWNER.group)
    before = os.umask(mask)
    try:
        with files_in(tmp_path) as (files, descriptor):
            files.make_directories(descriptor, iter(NAMES), MODE)
    finally:
        os.umask(before)
    made = {path.name: path.stat() for path in tmp_path.iterdir() if path.name != "0002"}
    assert sorted(made) == ["0000", "0001", "0003"]
    for found in made.values():
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (MODE, OWNER.user, OWNER.group)


@pytest.mark.parametrize("name", NAMES[:2])
def test_a_link_in_the_place_of_one_is_not_followed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/tmp")
    with files_in(tmp_path) as (files, descriptor), pytest.raises(OSError, match=name):
        files.make_directories(descriptor, iter(NAMES), MODE)
