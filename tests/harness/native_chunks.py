"""What a native chunk store has to cope with: events that nobody reads, and chunks that change while nothing is mounted
over them. Accidents, entered among the others."""

from __future__ import annotations

import os
import random
from pathlib import Path

from tests.harness.accidents import accident, some_operations
from tests.harness.content import EncodedChunk, Encoder
from tests.harness.names import chunk_path
from tests.harness.world import NATIVE_CHUNKS, World

# Of each name two are told; the kernel's queue holds 16,384.
_BEYOND_THE_QUEUE = 8_500
_PATIENCE = 300.0
_PLAIN = Encoder(compress=False)


def is_native(world: World) -> bool:
    """Whether PBS reaches its chunks past the mount just now."""
    chunk_store = world.mirror.status().get("chunk_store", {})
    return bool(chunk_store.get("in_use") == "native")


@accident(weight=2, needs=NATIVE_CHUNKS)
def overflow_of_events(world: World, choice: random.Random) -> None:
    """Thousands of chunks come and go while nobody reads what the kernel tells, and some of them count."""
    if not is_native(world):
        return
    gone, new = _chunks(choice, 3), _chunks(choice, 3)

    def work() -> None:
        for chunk in gone:
            _insert(world.backing, chunk)
        if choice.random() < 0.5:
            world.mirror.wait(20)
        with world.filesystem_process_stopped():
            _overflow(world.backing, choice)
            for chunk in new:
                _insert(world.backing, chunk)
            for chunk in gone:
                os.unlink(world.backing / chunk_path(chunk.digest))

    if world.perform("chunks changed beyond the queue", [], work, patience=_PATIENCE):
        world.statistics.count_fault("queue of events overflown")
    some_operations(world, choice)


@accident(weight=3, needs=NATIVE_CHUNKS)
def killed_with_events_unread(world: World, choice: random.Random) -> None:
    """What the filesystem process had not read yet is lost with it; PBS goes on writing chunks while it is dead."""
    if not is_native(world):
        return
    gone, unread, later = _chunks(choice, 3), _chunks(choice, 3), _chunks(choice, 3)

    def work() -> None:
        for chunk in gone:
            _insert(world.backing, chunk)
        with world.filesystem_process_stopped():
            for chunk in unread:
                _insert(world.backing, chunk)
            world.kill_mount()
        for chunk in later:
            _insert(world.backing, chunk)
        for chunk in gone:
            os.unlink(world.backing / chunk_path(chunk.digest))

    if world.perform("chunks changed around a kill", [], work):
        world.statistics.count_fault("kill -9 with events unread")
    world.mount()
    some_operations(world, choice)


def remove_a_chunk_directory(world: World, choice: random.Random) -> None:
    """As the beginning of a datastore's end: `.chunks` goes back to FUSE for as long as it is mounted."""
    taken = set(os.listdir(world.backing / ".chunks"))
    free = [name for number in range(0x10000) if (name := f"{number:04x}") not in taken]
    if free:
        directory = world.backing / ".chunks" / choice.choice(free)
        directory.mkdir()
        directory.rmdir()


def _chunks(choice: random.Random, count: int) -> list[EncodedChunk]:
    return [_PLAIN.encode_chunk(choice.randbytes(300)) for _ in range(count)]


def _insert(datastore: Path, chunk: EncodedChunk) -> None:
    """As PBS does, whose path to chunks is native: beneath or in the mount is the same."""
    path = datastore / chunk_path(chunk.digest)
    path.parent.mkdir(exist_ok=True)
    with open(f"{path}.tmp_aB3dE6", "wb") as file:
        file.write(chunk.raw)
        os.rename(file.name, path)


def _overflow(datastore: Path, choice: random.Random) -> None:
    directory = datastore / ".chunks" / "0000"
    directory.mkdir(exist_ok=True)
    stem = choice.randbytes(26).hex()
    for number in range(_BEYOND_THE_QUEUE):
        path = directory / f"0000{stem}{number:08x}"
        path.touch()
        path.with_suffix(".0.bad").touch()
        path.unlink()
        path.with_suffix(".0.bad").unlink()
