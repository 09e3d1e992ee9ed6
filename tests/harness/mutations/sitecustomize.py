"""Breaks or varies the product on purpose, to prove that the harness notices, or to have it reach more. Python imports
a module of this name at its start when the directory stands in PYTHONPATH; the product knows nothing of it. See
tests/harness/mutation.py.

MIRRORFS_MUTATION names what is broken. If what a mutation replaces is not there any more, the process ends at once, so
that no mutation ever comes to be harmless unnoticed; when it has taken place, standard error says so.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

VARIABLE = "MIRRORFS_MUTATION"
_FAILED = 70  # EX_SOFTWARE
_LOST_NAMES = 3
_SLOW_CHUNKS = 4
_FEW_CHUNKS = 3
_HURRIED_SECONDS = 0.003
_SLOW_CHUNK_SECONDS = 4.0

Method = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Replacement:
    """A method of a class in one of the product's modules, or, without an owner, a function of the module; make gets
    the original and gives what takes its place."""

    module: str
    owner: str
    method: str
    make: Callable[[Method], Method]


def _believe_every_put(original: Method) -> Method:
    async def confirm(self: object, *arguments: object, **more: object) -> bool:
        return True

    return confirm


def _take_all_for_proven(original: Method) -> Method:
    def proves(*arguments: object) -> bool:
        return True

    return proves


def _do_not_wait_for_chunk(original: Method) -> Method:
    async def ensure(self: object, digest: bytes) -> None:
        return None

    return ensure


def _take_all_for_confirmed(original: Method) -> Method:
    def unconfirmed(self: object, digests: object) -> list[bytes]:
        return []

    return unconfirmed


def _look_for_none(original: Method) -> Method:
    async def look_for_some(self: object, *arguments: object) -> None:
        return None

    return look_for_some


def _send_some_chunks_slowly(original: Method) -> Method:
    """Every fourth, by its name, as over a slow line: else they are often there before anybody can miss them."""

    async def settle(self: object, digest: bytes, **more: object) -> bool:
        import trio  # not before the product does: this runs at the start of every interpreter

        if digest[-1] % _SLOW_CHUNKS == 0:
            await trio.sleep(_SLOW_CHUNK_SECONDS)
        is_settled: bool = await original(self, digest, **more)
        return is_settled

    return settle


def _see_no_reference(original: Method) -> Method:
    def chunk(self: object, digest: bytes) -> object:
        known = original(self, digest)
        return None if known is None else replace(known, references=0)

    return chunk


def _see_no_quarantine(original: Method) -> Method:
    def chunk(self: object, digest: bytes) -> object:
        return replace(original(self, digest), is_quarantined=False)

    return chunk


def _lose_names(original: Method) -> Method:
    """Losing single records would often be made good by the next one of the same name: a third of all names is lost.
    The empty name asks for a reconcile and stays, or every start would hide the loss."""

    def append_all(self: object, paths: Sequence[bytes]) -> int:
        kept = [path for path in paths if path == b"" or zlib.crc32(path) % _LOST_NAMES]
        sequence: int = original(self, kept)
        return sequence

    return append_all


def _promise_durability(original: Method) -> Method:
    async def reach(self: object) -> None:
        return None

    return reach


def _see_nobody_else(original: Method) -> Method:
    def judge(self: object, *found: object) -> object:
        from mirrorfs.replication.ownership.watch import Verdict  # the module that is being mutated

        return Verdict()

    return judge


def _stumble(original: Method) -> Method:
    async def handle_tree(self: object) -> None:
        raise ValueError("stumbled on purpose")

    return handle_tree


def _count_few(original: Method) -> Method:
    def __init__(self: object, *arguments: object, **more: object) -> None:
        original(self, *arguments, **{**more, "chunks_a_commit": _FEW_CHUNKS})

    return __init__


def _hurry(original: Method) -> Method:
    def seconds_between(self: object) -> float:
        return _HURRIED_SECONDS

    return seconds_between


def _hand_on(original: Method) -> Method:
    """The product takes PYTHON* from its children; these are to be broken too."""

    def environment() -> dict[str, str]:
        return {**original(), "PYTHONPATH": os.environ["PYTHONPATH"]}

    return environment


_CHILDREN = Replacement("mirrorfs.interpreter", "", "environment", _hand_on)

_CHUNKS = "mirrorfs.replication.publishing.chunks"
_PUBLICATION = "mirrorfs.replication.publishing.publication"

MUTATIONS: dict[str, tuple[Replacement, ...]] = {
    "skip-confirmation": (
        Replacement("mirrorfs.objectstore.uploads", "Uploads", "_confirm", _believe_every_put),
        Replacement("mirrorfs.objectstore.uploads", "", "proves", _take_all_for_proven),
        Replacement(_PUBLICATION, "SnapshotPublication", "_look_for_some", _look_for_none),
    ),
    "publish-early": (
        Replacement("mirrorfs.state.chunks", "ChunkRecords", "unconfirmed", _take_all_for_confirmed),
        Replacement(_CHUNKS, "ChunkMirror", "ensure", _do_not_wait_for_chunk),
        Replacement("mirrorfs.replication.mirror", "Mirror", "_handle_if_listed", _do_not_wait_for_chunk),
        Replacement(_CHUNKS, "ChunkMirror", "settle", _send_some_chunks_slowly),
        Replacement(_PUBLICATION, "SnapshotPublication", "_look_for_some", _look_for_none),
    ),
    "delete-without-reference-check": (
        Replacement("mirrorfs.state.chunks", "ChunkRecords", "get", _see_no_reference),
        Replacement("mirrorfs.datastore.tree", "Tree", "chunk", _see_no_quarantine),
    ),
    "drop-journal-record": (Replacement("mirrorfs.journal.journal", "JournalWriter", "append_all", _lose_names),),
    "no-syncfs": (Replacement("mirrorfs.filesystem.interception", "Durability", "reach", _promise_durability),),
    "share-the-name": (
        Replacement("mirrorfs.replication.ownership.watch", "OwnershipWatch", "_judge", _see_nobody_else),
    ),
    "stumble": (Replacement("mirrorfs.replication.work.drain", "Drain", "handle_tree", _stumble),),
}


# What breaks nothing, and has code run that otherwise takes more data, or time, than a test has.
VARIATIONS: dict[str, tuple[Replacement, ...]] = {
    "count-in-small-parts": (
        Replacement("mirrorfs.replication.publishing.references", "References", "__init__", _count_few),
    ),
    "scrub-in-a-hurry": (Replacement("mirrorfs.replication.scrubbing.scrub", "Scrub", "_seconds_between", _hurry),),
}

_ACTIVE: set[Replacement] = set()


class _BreakingLoader(Loader):
    """Loads a module as its own loader does, and breaks it at once."""

    def __init__(self, original: Loader, mutation: str, replacements: Sequence[Replacement]) -> None:
        self._original, self._mutation, self._replacements = original, mutation, replacements

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._original.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._original.exec_module(module)
        for replacement in self._replacements:
            owner = getattr(module, replacement.owner, None) if replacement.owner else module
            original = getattr(owner, replacement.method, None)
            if original is None:
                _fail(self._mutation, f"{replacement.module} has no {replacement.owner}.{replacement.method}")
            setattr(owner, replacement.method, replacement.make(original))
        _ACTIVE.update(self._replacements)
        wanted = (MUTATIONS | VARIATIONS)[self._mutation]
        if _ACTIVE.issuperset(wanted) and not {*wanted}.isdisjoint(self._replacements):
            _say(f"mutation {self._mutation} is active")


class _BreakingFinder(MetaPathFinder):
    """Stands before all finders and lends the modules that are to be broken another loader."""

    def __init__(self, mutation: str, replacements: Sequence[Replacement]) -> None:
        self._mutation, self._replacements = mutation, replacements

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        mine = [replacement for replacement in self._replacements if replacement.module == fullname]
        if not mine:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _BreakingLoader(spec.loader, self._mutation, mine)
                return spec
        return None


def _check_source(mutation: str, replacement: Replacement) -> None:
    """At the start, without importing: a module that nobody imports any more would never be broken."""
    package, *rest = replacement.module.split(".")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        _fail(mutation, f"there is no package {package}")
    source = Path(spec.submodule_search_locations[0], *rest).with_suffix(".py")
    try:
        tree = ast.parse(source.read_bytes())
    except (OSError, SyntaxError) as error:
        _fail(mutation, f"cannot read {source}: {error}")
    methods = {
        (owner, method.name)
        for owner, body in (
            ("", tree.body),
            *((statement.name, statement.body) for statement in tree.body if isinstance(statement, ast.ClassDef)),
        )
        for method in body
        if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    if (replacement.owner, replacement.method) not in methods:
        _fail(mutation, f"{source} has no {replacement.owner}.{replacement.method}")


def _fail(mutation: str, reason: str) -> NoReturn:
    # Nobody sees an exception that is raised while the interpreter starts, and importers may catch one.
    _say(f"mutation {mutation} cannot be made: {reason}")
    os._exit(_FAILED)


def _say(line: str) -> None:
    os.write(2, f"{line}\n".encode())


def _mutate(mutation: str) -> None:
    known = MUTATIONS | VARIATIONS
    if mutation not in known:
        _fail(mutation, f"it is none of {', '.join(known)}")
    replacements = (*known[mutation], _CHILDREN)
    for replacement in replacements:
        _check_source(mutation, replacement)
    sys.meta_path.insert(0, _BreakingFinder(mutation, replacements))


if os.environ.get(VARIABLE):
    _mutate(os.environ[VARIABLE])
