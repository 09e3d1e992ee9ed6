"""Somebody else uses the mirror's name in the bucket: another mirror that takes it over while ours runs, and a PBS that
claims it, collects what it does not know, and leaves."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.harness.accidents import accident
from tests.harness.backup import WrittenSnapshot
from tests.harness.bucket import ObjectVersion
from tests.harness.elsewhere import HOST, run_elsewhere
from tests.harness.formats import MANIFEST_NAME
from tests.harness.mirror import Mirror
from tests.harness.names import chunk_path
from tests.harness.operations import run_backup
from tests.harness.world import World
from tests.harness.writer import DatastoreWriter

IN_USE = ".in-use"
_SERVER = "pbs1"
_CONTENT, _CHUNKS = ".cnt/", ".chunks/"
# More than the minute after which a mirror looks that nothing moves, on a machine that is busy.
_NOTICED_SECONDS = 240.0
_LARGEST_SEED = 2**31


# -- another mirror --------------------------------------------------------------------------------------------


@accident(weight=2)
def take_over_while_running(world: World, choice: random.Random) -> None:
    """Another machine takes the name over while ours runs: ours stops and says so, until it is taken back."""
    world.settle()
    base = world.older_state.parent / "elsewhere"
    stranger = f"host/elsewhere-{choice.randrange(_LARGEST_SEED)}"
    world.model.departures.open(stranger)
    try:
        other = world.other_mirror(base)
        other.datastore.mkdir(parents=True, exist_ok=True)
        made = _take_over(world, other, choice, stranger)
        owner = f"is the mirror of {other.datastore} on {HOST}"
        # Also in the words of an uploader that was begun after that, and is refused.
        _expect_that_it_stops(world, choice, owner, owner)
        if choice.random() < 0.3:
            other.kill_all()
            other.detach_dead()
    finally:
        _end(world, base)
    world.let_late_requests_end()
    _take_back(world, f"{base / 'datastore'} on {HOST}")
    _finish(world, made, stranger)
    world.statistics.count_fault("taken over while it ran")


def _take_over(world: World, other: Mirror, choice: random.Random, stranger: str) -> list[str]:
    """Mount elsewhere, perhaps with a backup of its own; gives its snapshots that are published then."""
    with DatastoreWriter(other.datastore, choice.randrange(_LARGEST_SEED)) as writer:
        writer.create(chunk_directories="when needed")
    taken = run_elsewhere(other, *other.mount_arguments("--take-over"))
    if taken.returncode != 0:
        world.statistics.violate([f"P5 --take-over fails: {taken.stderr.strip()}"])
        return []
    made: list[str] = []
    if choice.random() < 0.6:
        with DatastoreWriter(other.datastore, choice.randrange(_LARGEST_SEED)) as writer:
            made.append(writer.backup(stranger).path)
    answer = other.wait(_NOTICED_SECONDS)
    if answer is not None:
        world.statistics.violate([f"P2 the mirror that has taken over says: {answer}"])
    return made


def _end(world: World, base: Path) -> None:
    other = world.other_mirror(base)
    if other.is_alive():
        sentence = other.umount()
        if sentence is not None:
            world.statistics.violate([f"P4 the mount elsewhere does not end in order: {sentence}"])
    other.kill_all()
    if other.datastore.exists() or other.datastore.is_mount():
        other.detach_dead()
    shutil.rmtree(base, ignore_errors=True)


# -- a PBS -----------------------------------------------------------------------------------------------------


@accident(weight=2)
def server_that_claims_collects_and_leaves(world: World, choice: random.Random) -> None:
    """A PBS attaches the prefix, collects, may make a backup, and leaves or is overridden."""
    world.settle()
    stranger = f"host/server-{choice.randrange(_LARGEST_SEED)}"
    world.model.departures.open(stranger)
    server = _Server(world, choice, stranger)
    how: Callable[[World, random.Random, _Server], None] = choice.choice(
        (_seen_by_our_mirror, _between_two_looks, _while_not_mounted)
    )
    how(world, choice, server)
    _finish(world, server.made, stranger)
    # All is there again: from here on our mirror answers for what is missing.
    world.settle()
    world.forget_takings()
    world.statistics.count_fault(f"a PBS that claims, collects and leaves: {how.__name__.strip('_').replace('_', ' ')}")


class _Server:
    """Acts as PBS 4.2.3 was seen to: its cache knows the indexes that stood there when it came, or some of them."""

    def __init__(self, world: World, choice: random.Random, group: str) -> None:
        self._world, self._choice, self._group = world, choice, group
        self.made: list[str] = []

    def claim(self) -> None:
        self._world.route.put({IN_USE: json.dumps({"hostname": _SERVER}).encode()})

    def work(self) -> None:
        """Collect, and perhaps back up."""
        self._collect()
        if self._choice.random() < 0.5:
            self._back_up()

    def leave(self) -> None:
        """`datastore remove`."""
        self._world.route.put_back(IN_USE, None)

    def _collect(self) -> None:
        """Only chunks that our datastore has in good order: nobody could bring the others back."""
        snapshots = self._world.look().finished
        in_bucket = set(self._world.route.bucket().list(_CHUNKS))
        newest = sorted(snapshots, key=lambda path: snapshots[path].name.time)[len(snapshots) // 2 :]
        unknown = self._choice.choice((set(snapshots), set(newest)))
        known = {digest for path in set(snapshots) - unknown for digest in snapshots[path].chunks}
        chunks = {digest for path in unknown for digest in snapshots[path].chunks} - known
        taken = {chunk_path(digest) for digest in chunks} & in_bucket
        self._world.route.take(sorted(taken))
        self._world.statistics.count_fault("chunks that a PBS has collected", len(taken))

    def _back_up(self) -> None:
        """A whole snapshot: chunks, files, and the manifest last."""
        base = self._world.older_state.parent / "server"
        try:
            with DatastoreWriter(base, self._choice.randrange(_LARGEST_SEED)) as writer:
                writer.create(chunk_directories="when needed")
                written = writer.backup(self._group)
            self._world.route.put(_objects_of(base, written, self._world.route.bucket().list(_CHUNKS)))
            self.made.append(written.path)
        finally:
            shutil.rmtree(base, ignore_errors=True)


def _objects_of(base: Path, written: WrittenSnapshot, there: Mapping[str, ObjectVersion]) -> dict[str, bytes]:
    chunks = sorted(key for key in map(chunk_path, written.chunks) if key not in there)
    directory = base / written.path
    names = sorted(path.name for path in directory.iterdir() if path.name != MANIFEST_NAME)
    files = [f"{written.path}/{name}" for name in (*names, MANIFEST_NAME)]
    group = written.path.rpartition("/")[0]
    return {
        **{key: (base / key).read_bytes() for key in chunks},
        f"{_CONTENT}{group}/owner": (base / group / "owner").read_bytes(),
        **{f"{_CONTENT}{path}": (base / path).read_bytes() for path in files},
    }


def _seen_by_our_mirror(world: World, choice: random.Random, server: _Server) -> None:
    server.claim()
    _expect_that_it_stops(world, choice, f"in use by {_SERVER}", f"in use by {_SERVER}")
    server.work()
    if choice.random() < 0.5:
        server.leave()
        with world.without_mirror():
            pass
    else:
        _take_back(world, f"in use by {_SERVER}")


def _between_two_looks(world: World, choice: random.Random, server: _Server) -> None:
    server.claim()
    server.work()
    server.leave()
    run_backup(world, choice)
    answer = world.mirror.wait(_NOTICED_SECONDS)
    if answer is not None and _SERVER in answer:
        # It has looked in the meantime; then it waits to be mounted again.
        with world.without_mirror():
            pass


def _while_not_mounted(world: World, choice: random.Random, server: _Server) -> None:
    overridden = choice.random() < 0.3
    with _unmounted(world, take_back_from=f"in use by {_SERVER}" if overridden else None):
        server.claim()
        server.work()
        if not overridden:
            server.leave()


# -- what ours must do -----------------------------------------------------------------------------------------


def _expect_that_it_stops(world: World, choice: random.Random, reason: str, shown: str) -> None:
    """It must notice before it publishes anything, change nothing any more, and say so to whoever asks."""
    before = _content(world)
    for _ in range(choice.randint(1, 3)):
        run_backup(world, choice)
    _expect_to_hear(world, reason)
    stopped = _content(world)
    # Files without a manifest may have been on their way; it looks before it puts that.
    sent = {key for key in stopped.keys() - before.keys() if not key.endswith(f"/{MANIFEST_NAME}")}
    _expect_same(before, {key: version for key, version in stopped.items() if key not in sent}, world)
    if choice.random() < 0.3:
        world.mirror.kill_uploader()
    run_backup(world, choice)
    _expect_to_hear(world, reason)
    status = world.mirror.run("status", str(world.datastore))
    if status.returncode != 1 or shown not in status.stdout:
        world.statistics.violate([f"P5 status does not say whose the name is: {status.returncode} {status.stdout}"])
    if reason not in world.mirror.log:
        world.statistics.violate([f"P5 the log does not say whose the name is ({reason})"])
    _expect_same(stopped, _content(world), world)


def _expect_same(before: Mapping[str, ObjectVersion], after: Mapping[str, ObjectVersion], world: World) -> None:
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    world.statistics.violate(
        f"P5 {key}: changed by a mirror whose name in the bucket is somebody else's" for key in sorted(changed)
    )


def _expect_to_hear(world: World, reason: str) -> None:
    answer = world.mirror.wait(_NOTICED_SECONDS)
    if answer is None or reason not in answer:
        world.statistics.violate([f"P5 the name in the bucket is somebody else's ({reason}), and wait says: {answer}"])


def _content(world: World) -> dict[str, ObjectVersion]:
    return world.route.bucket().list(_CONTENT)


def _take_back(world: World, owner: str) -> None:
    with _unmounted(world, take_back_from=owner):
        pass


@contextmanager
def _unmounted(world: World, *, take_back_from: str | None) -> Iterator[None]:
    """Mounts again at its end; from somebody else only when that is said."""
    with world.without_mirror():
        yield
        if take_back_from is None:
            return
        refused = world.mirror.mount()
        if refused is None or take_back_from not in refused or "--take-over" not in refused:
            world.statistics.violate([f"P5 a name that is somebody else's is not refused: {refused}"])
        if refused is not None:
            taken = world.mirror.mount("--take-over")
            if taken is not None:
                world.statistics.violate([f"P5 the name cannot be taken back: {taken}"])


def _finish(world: World, made: list[str], stranger: str) -> None:
    """What others have made stays until somebody approves; of ours all is there, beside it."""
    answer = world.mirror.wait(_NOTICED_SECONDS)
    retention = world.mirror.status().get("retention")
    if made and retention is None:
        world.statistics.violate([f"P5 what others have made is not told as held by status, and wait says: {answer}"])
        return
    held = {removal["snapshot"]: removal["reason"] for removal in (retention or {"held": []})["held"]}
    for path in made:
        if world.read_object(f"{_CONTENT}{path}/{MANIFEST_NAME}") is None:
            world.statistics.violate(
                [f"P5 {_CONTENT}{path}: somebody else has made it, nobody has approved: it is gone"]
            )
        if held.get(path) != "stranger":
            sentence = f"somebody else has made it, and it is not held, though wait says {answer}: {held}"
            world.statistics.violate([f"P5 {_CONTENT}{path}: {sentence}"])
    world.audit_beside([stranger])
    world.statistics.checks["snapshots of others seen to stay"] += len(made)
