"""The oldest finished backup that the bucket has not; what is unfinished, published or unreadable is none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorfs.datastore.tree import Tree
from mirrorfs.replication.recovery_point import MissingBackups, missing_backups


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield Tree(descriptor)
    os.close(descriptor)


def _backup(datastore: Path, path: str, finished: float | None) -> None:
    directory = datastore / path
    directory.mkdir(parents=True)
    if finished is not None:
        (directory / "index.json.blob").write_bytes(b"")
        os.utime(directory / "index.json.blob", (finished, finished))


def test_it_is_the_oldest_that_is_finished_and_not_published(tmp_path: Path, tree: Tree) -> None:
    first, second, third = (f"vm/100/2026-01-0{day}T00:00:00Z" for day in (1, 2, 3))
    inside = "ns/customers/ct/7/2026-01-01T12:00:00Z"
    assert missing_backups(tree, set()) == MissingBackups()
    for path, finished in ((first, 300.0), (second, 200.0), (third, None), (inside, 100.0)):
        _backup(tmp_path, path, finished)
    assert missing_backups(tree, set()) == MissingBackups(3, inside, 100.0)
    assert missing_backups(tree, {inside, first}) == MissingBackups(1, second, 200.0)
    assert missing_backups(tree, {inside, first, second}) == MissingBackups()


def test_what_cannot_be_looked_at_is_left_out(tmp_path: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in (1, 2):
        _backup(tmp_path, f"vm/100/2026-01-0{day}T00:00:00Z", day * 100.0)
    looked = Tree.modified

    def fail(self: Tree, path: str) -> float | None:
        if "-01T" in path:
            raise OSError(5, "sick")
        return looked(self, path)

    monkeypatch.setattr(Tree, "modified", fail)
    assert missing_backups(tree, set()) == MissingBackups(1, "vm/100/2026-01-02T00:00:00Z", 200.0)
