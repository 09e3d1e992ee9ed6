"""The house: who may import whom, and how large a module may be. docs/how-it-works.md says it, this holds it true.

A room is a package of mirrorfs; `mirrorfs` itself stands for the modules that lie directly in it.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent.parent
_DOCUMENT = _ROOT / "docs" / "how-it-works.md"
_ROOMS_HEAD = "| room | knows |"
_PACKAGES_HEAD = "| package | known to |"
_GROUND = "mirrorfs"
_LONGEST_MODULE = 500
# Each of these has an issue that is to split it; whoever has done so takes it out here.
_LONGER_MODULES: set[str] = set()


@dataclass(frozen=True, slots=True)
class Module:
    """A module of mirrorfs: its dotted name, the room it is in, and the dotted names of all that it imports."""

    name: str
    room: str
    path: Path
    imports: frozenset[str]
    docstring: str


@cache
def _modules() -> dict[str, Module]:
    paths = sorted((_ROOT / _GROUND).rglob("*.py"))
    names = {".".join(path.relative_to(_ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    return {name: _module(name, path, names) for name, path in names.items()}


def _module(name: str, path: Path, names: dict[str, Path]) -> Module:
    tree = ast.parse(path.read_bytes())
    # What is imported inside of a function, or for the type checker alone, is known as well.
    imports = frozenset(imported for node in ast.walk(tree) for imported in _imported(node, path, names))
    room = "/".join(path.parent.relative_to(_ROOT / _GROUND).parts) or _GROUND
    return Module(name, room, path, imports - {name}, ast.get_docstring(tree) or "")


def _imported(node: ast.AST, path: Path, names: dict[str, Path]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.module is not None, f"{path}: mirrorfs has no relative imports"
        assert node.level == 0, f"{path}: mirrorfs has no relative imports"
        members = [f"{node.module}.{alias.name}" for alias in node.names]
        # `from package import module` is about the module, `from module import name` about what it says.
        yield from (member if member in names else node.module for member in members)


def _table(head: str) -> dict[str, frozenset[str]]:
    """Read a table of the chapter "Who may know whom": the first column, and the names in the second."""
    lines = _DOCUMENT.read_text().splitlines()
    rows: dict[str, frozenset[str]] = {}
    for line in lines[lines.index(head) + 2 :]:
        if not line.startswith("|"):
            break
        name, known = (cell.strip() for cell in line.strip("|").split("|"))
        assert name not in rows, f"{name} stands twice in the table {head}"
        rows[name] = frozenset(filter(None, (entry.strip() for entry in known.split(","))))
    return rows


def _rooms() -> set[str]:
    return {module.room for module in _modules().values()}


def _known_rooms() -> dict[str, frozenset[str]]:
    known: dict[str, set[str]] = {room: set() for room in _rooms()}
    for module in _modules().values():
        known[module.room] |= {_modules()[name].room for name in module.imports if name in _modules()}
    return {room: frozenset(others - {room}) for room, others in known.items()}


def _third_party_packages() -> dict[str, frozenset[str]]:
    rooms = defaultdict(set)
    for module in _modules().values():
        for package in {name.partition(".")[0] for name in module.imports}:
            if package != _GROUND and package not in sys.stdlib_module_names:
                rooms[package].add(module.room)
    return {package: frozenset(known_to) for package, known_to in rooms.items()}


def test_each_import_within_mirrorfs_is_of_a_module_that_is_there() -> None:
    for module in _modules().values():
        inside = {name for name in module.imports if name.partition(".")[0] == _GROUND}
        assert inside <= _modules().keys(), f"{module.name} imports what is not there"


def test_rooms_know_what_the_table_says() -> None:
    known = {room: others - {_GROUND} for room, others in _known_rooms().items() if room != _GROUND}
    assert known == _table(_ROOMS_HEAD), f"{_DOCUMENT.name}, 'Who may know whom', and the imports differ"


def test_rooms_know_only_rooms_below_them_in_the_table() -> None:
    order = list(_table(_ROOMS_HEAD))
    for room, known in _table(_ROOMS_HEAD).items():
        above = known & set(order[: order.index(room)])
        assert not above, f"{room} knows {above}: imports go down only"


def test_what_everybody_may_know_knows_no_room() -> None:
    assert _known_rooms()[_GROUND] == frozenset()


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: {other for other in module.imports if other in _modules()} for name, module in _modules().items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' <- '.join(error.args[1])}")


def test_third_party_packages_are_known_where_the_table_says() -> None:
    assert _third_party_packages() == _table(_PACKAGES_HEAD), (
        f"{_DOCUMENT.name}, 'Who may know whom', and the imports of what others have written differ"
    )


def test_nothing_knows_the_tests() -> None:
    assert "tests" not in {name.partition(".")[0] for module in _modules().values() for name in module.imports}


def test_modules_are_short() -> None:
    lengths = {name: len(module.path.read_bytes().splitlines()) for name, module in _modules().items()}
    longer = {name for name, length in lengths.items() if length > _LONGEST_MODULE}
    assert longer == _LONGER_MODULES, f"at most {_LONGEST_MODULE} lines a module, and no exception without need"


def test_each_room_says_what_it_is_and_names_what_is_in_it() -> None:
    for module in _modules().values():
        room = _modules().get(_dotted(module.room))
        assert room is not None, f"{module.room} has no __init__.py that says what it does"
        name = module.name.rpartition(".")[2]
        assert module is room or room.name == _GROUND or name == "__main__" or _is_named(room, name), (
            f"the docstring of {room.name} is to name {name}: what it is for, and when to read it"
        )


def test_each_room_stands_in_the_docstring_of_the_one_around_it() -> None:
    for room in _rooms():
        around, _, name = room.rpartition("/")
        if around:
            assert _is_named(_modules()[_dotted(around)], name), f"the docstring of {around} is to name {name}"


def _dotted(room: str) -> str:
    return _GROUND if room == _GROUND else f"{_GROUND}.{room.replace('/', '.')}"


def _is_named(room: Module, name: str) -> bool:
    return re.search(rf"\b{name}\b", room.docstring) is not None
