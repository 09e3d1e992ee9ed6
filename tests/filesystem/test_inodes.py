"""The table of inodes: counts, names, paths, numbers that come from elsewhere or are used again."""

import os
import stat

import pytest

from mirrorfs.filesystem.inodes import ROOT_NUMBER, InodeTable

DEVICE = 7


def _status(number: int, kind: int = stat.S_IFREG, device: int = DEVICE) -> os.stat_result:
    return os.stat_result((kind | 0o644, number, device, 1, 0, 0, 0, 0, 0, 0))


def test_counts_lookups() -> None:
    table = InodeTable(DEVICE)
    inode = table.remember(table.root, b"f", _status(10))
    assert table.remember(table.root, b"f", _status(10)) is inode
    assert inode.number == 10
    assert table.forget(10, 1) == []
    assert table[10] is inode
    assert table.forget(10, 1) == [inode]
    with pytest.raises(OSError, match="Stale"):
        table[10]
    assert len(table) == 1
    assert table.root.children == 0


def test_keeps_directories_for_the_paths_of_what_is_in_them() -> None:
    table = InodeTable(DEVICE)
    outer = table.remember(table.root, b"outer", _status(10, stat.S_IFDIR))
    inner = table.remember(outer, b"inner", _status(11, stat.S_IFDIR))
    file = table.remember(inner, b"f", _status(12))
    assert table.forget(10, 1) == []
    assert table.forget(11, 1) == []
    assert table.paths(file) == [b"outer/inner/f"]
    assert table.forget(12, 1) == [file, inner, outer]
    assert len(table) == 1


def test_a_renamed_directory_takes_everything_along() -> None:
    table = InodeTable(DEVICE)
    directory = table.remember(table.root, b"d", _status(10, stat.S_IFDIR))
    file = table.remember(directory, b"f", _status(12))
    other = table.remember(table.root, b"e", _status(11, stat.S_IFDIR))
    table.add_name(directory, other, b"new")
    table.remove_name(directory, table.root, b"d")
    assert table.paths(file) == [b"e/new/f"]
    assert (table.root.children, other.children) == (1, 1)


def test_several_names() -> None:
    table = InodeTable(DEVICE)
    directory = table.remember(table.root, b"d", _status(10, stat.S_IFDIR))
    file = table.remember(table.root, b"a", _status(12))
    table.remember(directory, b"b", _status(12))
    table.remember(directory, b"c", _status(12))
    assert sorted(table.paths(file)) == [b"a", b"d/b", b"d/c"]
    table.remove_name(file, table.root, b"a")
    table.remove_name(file, table.root, b"a")
    assert sorted(table.paths(file)) == [b"d/b", b"d/c"]
    table.remove_name(file, directory, b"c")
    table.remove_name(file, directory, b"b")
    assert table.paths(file) == []
    assert directory.children == 0
    assert table.forget(12, 3) == [file]


def test_no_path_below_what_was_removed() -> None:
    table = InodeTable(DEVICE)
    directory = table.remember(table.root, b"d", _status(10, stat.S_IFDIR))
    table.remove_name(directory, table.root, b"d")
    assert table.path(directory, b"f") is None
    assert table.paths(directory) == []
    assert table.paths(table.root) == [b""]


@pytest.mark.parametrize(("number", "device"), [(ROOT_NUMBER, DEVICE), (10, DEVICE + 1), (ROOT_NUMBER, DEVICE + 1)])
def test_numbers_that_mean_something_else_here(number: int, device: int) -> None:
    table = InodeTable(DEVICE)
    ours = table.remember(table.root, b"ours", _status(10))
    status = _status(number, device=device)
    foreign = table.remember(table.root, b"foreign", status)
    assert foreign.number not in (ROOT_NUMBER, 10)
    assert foreign.number < 1 << 63
    assert table.remember(table.root, b"foreign", status) is foreign
    assert table.find(status) is foreign
    assert table[foreign.number] is foreign
    assert not table.is_same(ours, status)
    assert table.forget(foreign.number, 2) == [foreign]
    again = table.remember(table.root, b"foreign", status)
    assert again.number != foreign.number


def test_number_used_again_for_another_kind() -> None:
    table = InodeTable(DEVICE)
    old = table.remember(table.root, b"old", _status(10))
    assert table.generation(old) == 0
    new = table.remember(table.root, b"new", _status(10, stat.S_IFDIR))
    assert table.generation(new) == 1
    assert table.paths(new) == [b"new"]
    assert new.is_directory
    table.forget(10, 2)
    assert len(table) == 1
    assert table.root.children == 0


def test_number_used_again_after_it_vanished() -> None:
    table = InodeTable(DEVICE)
    old = table.remember(table.root, b"old", _status(10))
    table.remove_name(old, table.root, b"old")
    table.vanish(old)
    table.note_lacking(old, frozenset({b"security.capability"}))
    new = table.remember(table.root, b"new", _status(10))
    assert not table.lacks(new.number, b"security.capability")
    assert table.generation(new) == 1
    assert table.paths(new) == [b"new"]
    assert table.generation(table.remember(table.root, b"new", _status(10))) == 1
