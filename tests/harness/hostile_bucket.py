"""Somebody else who may write to the bucket, and puts below the mirror's prefix what costs a reader who believes it."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Mapping

from tests.harness.accidents import accident, some_operations
from tests.harness.deleted import DELETED, RECORD_NAME, STAGING
from tests.harness.formats import MANIFEST_NAME
from tests.harness.world import World
from tests.hostile_documents import DOCUMENTS, MIB, blobs, index_header

CLAIM = ".mirrorfs/claim.json"
_TIME = "2026-01-01T00:00:00Z"
_UNTIL_IT_IS_GONE = 120.0
_LOOK_EVERY = 1.0

Planted = Mapping[str, bytes]


@accident(weight=3)
def hostile_bucket(world: World, choice: random.Random) -> None:
    """A new state reads the bucket as it is: nothing of it may end the uploader, be kept, or keep PBS's own from there.

    In a bucket that keeps versions it would be found again by a look into the past, and rightly.
    """
    if world.keeps_versions:
        some_operations(world, choice)
        return
    # What is looked at here must not be what another accident has left.
    world.quieten_store()
    world.disarm_step()
    planted = hostile_objects(world, choice)
    with world.without_mirror():
        world.let_late_requests_end()
        world.plant(planted)
        if choice.random() < 0.5:
            _try_a_hostile_claim(world, choice)
        shutil.rmtree(world.mirror.state / "state", ignore_errors=True)
        world.administrator.forget()
    some_operations(world, choice)
    if not _goes(world, planted):
        world.statistics.violate([f"P2 {key}: others have put it there, and it stays" for key in _left(world, planted)])
    world.statistics.count_fault("hostile bucket: objects", len(planted))
    some_operations(world, choice)


def hostile_objects(world: World, choice: random.Random) -> Planted:
    """Some that mirrorfs reads when it gets to know a bucket, by key below the prefix."""
    kinds: list[Callable[[], Planted]] = [
        lambda: _manifests(choice),
        lambda: _deleted(choice),
        lambda: {f".cnt/host/planted/{name}": _zeros(choice, 70_000, 2 * MIB) for name in ("owner", "notes")},
        lambda: {f"{STAGING}{choice.randbytes(32).hex()}": _zeros(choice, MIB, 20 * MIB)},
        lambda: _owners(world, choice),
    ]
    objects: dict[str, bytes] = {}
    for kind in choice.sample(kinds, choice.randint(1, len(kinds))):
        objects.update(kind())
    # Each is another content than any that belongs there.
    return {key: body + choice.randbytes(8) for key, body in objects.items()}


def _zeros(choice: random.Random, least: int, most: int) -> bytes:
    return bytes(choice.randint(least, most))


def _manifests(choice: random.Random) -> Planted:
    """Of snapshots that nobody has made, some with files beside them."""
    objects: dict[str, bytes] = {}
    for number in range(choice.randint(1, 4)):
        directory = f".cnt/{choice.choice(('vm', 'ct', 'ns/planted/host'))}/planted-{number}/{_TIME}"
        body = choice.choice([*blobs().values(), _zeros(choice, 5 * MIB, 9 * MIB)])
        objects[f"{directory}/{MANIFEST_NAME}"] = body
        if choice.random() < 0.5:
            objects[f"{directory}/a.img.fidx"] = index_header(bytes(32), 2**48) + _zeros(choice, 0, MIB)
    return objects


def _deleted(choice: random.Random) -> Planted:
    directory = f"{DELETED}vm/planted/{_TIME}"
    return {
        f"{directory}/{MANIFEST_NAME}": choice.choice(list(blobs().values())),
        f"{directory}/{RECORD_NAME}": choice.choice([*DOCUMENTS.values(), _zeros(choice, 2 * MIB, 4 * MIB)]),
    }


def _owners(world: World, choice: random.Random) -> Planted:
    """In the place of what the mirror has put there."""
    groups = sorted({path.rpartition("/")[0] for path in world.look().finished})
    if not groups:
        return {}
    return {f".cnt/{choice.choice(groups)}/owner": _zeros(choice, 70_000, MIB)}


def _try_a_hostile_claim(world: World, choice: random.Random) -> None:
    """A mirror that cannot read whose the name is mounts, says so, and leaves all alone until it can."""
    documents = [*DOCUMENTS.values(), _zeros(choice, 100_000, MIB), json.dumps({"epoch": "x" * 70_000}).encode()]
    before = world.read_object(CLAIM)
    document = choice.choice(documents)
    world.plant({CLAIM: document})
    done = world.mirror.run(*world.mirror.mount_arguments())
    if done.returncode or CLAIM not in done.stderr:
        world.statistics.violate([f"P2 a mirror with a claim that it cannot read says: {done.stderr}"])
    if world.read_object(CLAIM) != document:
        world.statistics.violate(["P2 a claim that could not be read was written over"])
    world.mirror.umount()
    world.mirror.detach_dead()
    world.unplant(CLAIM, before)
    world.statistics.count_fault("hostile bucket: claim")


def _goes(world: World, planted: Planted) -> bool:
    deadline = time.monotonic() + _UNTIL_IT_IS_GONE
    while _left(world, planted):
        if time.monotonic() > deadline:
            return False
        world.mount()
        world.mount_as_asked_for(world.mirror.wait(_LOOK_EVERY))
    return True


def _left(world: World, planted: Planted) -> list[str]:
    """Those that still stand there as they were put."""
    return [key for key, body in planted.items() if world.read_object(key) == body]
