"""The store loses or changes what it has acknowledged: the scrub finds it, and sends it again from the datastore."""

from __future__ import annotations

import random
import time

from tests.harness.accidents import accident, some_operations
from tests.harness.formats import MANIFEST_NAME
from tests.harness.mutation import SCRUB_IN_A_HURRY, environment_of
from tests.harness.names import chunk_path
from tests.harness.world import World

_UNTIL_IT_IS_WHOLE = 240.0
_LOOK_EVERY = 0.5
_MOST = 6


@accident(weight=3)
def rot_in_the_bucket(world: World, choice: random.Random) -> None:
    """Objects are spoilt or gone behind the mirror's back; nothing else happens until the scrub has had its time.

    Meanwhile the audits blame no manifest that stood before. In a bucket that keeps versions a look into the past would
    find the damage, and rightly.
    """
    if world.keeps_versions:
        some_operations(world, choice)
        return
    world.settle()
    world.disarm_step()
    whole = _victims(world, choice)
    own = dict(world.mirror.extra_environment)
    world.mirror.extra_environment.update(environment_of(SCRUB_IN_A_HURRY))
    try:
        with world.without_mirror():
            pass
        world.route.take(sorted(whole))
        world.plant({key: _spoilt(body, choice) for key, body in whole.items() if choice.random() < 0.7})
        left = _wait(world, whole)
    finally:
        world.mirror.extra_environment.clear()
        world.mirror.extra_environment.update(own)
    world.statistics.violate(
        f"P1 {key}: it was spoilt in the bucket, and the scrub has not sent it again" for key in left
    )
    world.forget_takings()
    world.statistics.checks["objects that rotted in the bucket, made good by the scrub"] += len(whole) - len(left)
    world.statistics.count_fault("objects that rotted in the bucket", len(whole))
    # The scrub goes on beside them, as fast as it can.
    some_operations(world, choice)


def _victims(world: World, choice: random.Random) -> dict[str, bytes]:
    """Some objects that the datastore has good, by key, with what they hold."""
    found = world.look()
    doubtful = {digest for damaged in found.lacking_chunks.values() for digest in damaged.chunks} | found.quarantined
    chunks = {chunk_path(digest) for snapshot in found.finished.values() for digest in snapshot.chunks - doubtful}
    files = {
        f".cnt/{path}/{name}"
        for path, snapshot in found.finished.items()
        for name in snapshot.files
        if name != MANIFEST_NAME
    }
    keys = [*_some(sorted(chunks), choice, _MOST), *_some(sorted(files), choice, 1)]
    bodies = {key: world.read_object(key) for key in keys}
    return {key: body for key, body in bodies.items() if body}


def _some(keys: list[str], choice: random.Random, most: int) -> list[str]:
    return choice.sample(keys, min(len(keys), choice.randint(0, most)))


def _spoilt(body: bytes, choice: random.Random) -> bytes:
    at = choice.randrange(len(body))
    return choice.choice((body[:at], body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :], body + b"x"))


def _wait(world: World, whole: dict[str, bytes]) -> list[str]:
    """Wait until all are whole again; returns those that are not after a time in which they must be."""
    deadline = time.monotonic() + _UNTIL_IT_IS_WHOLE
    left = sorted(whole)
    while left and time.monotonic() < deadline:
        left = [key for key in left if world.read_object(key) != whole[key]]
        if left:
            time.sleep(_LOOK_EVERY)
    return left
