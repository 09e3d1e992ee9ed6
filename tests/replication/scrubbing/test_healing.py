"""What is asked for once more is told once more, until it is sound in the bucket."""

from __future__ import annotations

import pytest

from tests.replication.datastore import FIRST, INDEX, MANIFEST, chunk_path, content_key, digest_of
from tests.replication.world import World

pytestmark = pytest.mark.trio


async def test_what_could_not_be_sent_is_not_good_when_it_is_asked_for_again(world: World) -> None:
    world.datastore.back_up(FIRST, ["a", "b"])
    assert await world.converge() == {}
    path = f"{FIRST}/{MANIFEST}"
    whole = world.store.objects[content_key(path)]
    world.store.watches = False
    world.store.objects[content_key(path)] = whole[:-1]
    index = world.datastore.root / FIRST / INDEX
    right = index.read_bytes()
    index.write_bytes(b"spoilt")
    async with world.running(reconciles=False) as running:
        for dry_run in (False, False, True):
            healing = await running.mirror.heal_bucket([path], dry_run=dry_run)
            assert list(healing.lost) == [path]
            assert (healing.healed, healing.good) == ([], [])
        index.write_bytes(right)
        healing = await running.mirror.heal_bucket([path], dry_run=False)
        assert healing.healed == [path]
        assert world.store.objects[content_key(path)] == whole
        healing = await running.mirror.heal_bucket([path], dry_run=False)
        assert healing.good == [path]


async def test_without_the_bucket_it_is_foreseen_what_healing_would_do(world: World) -> None:
    world.datastore.back_up(FIRST, ["a", "b"])
    assert await world.converge() == {}
    manifest, index = f"{FIRST}/{MANIFEST}", f"{FIRST}/{INDEX}"
    (world.datastore.root / index).write_bytes(b"spoilt")
    (world.datastore.root / chunk_path(digest_of("b"))).unlink()
    damages = dict.fromkeys((manifest, index, "host/x/owner", *map(chunk_path, map(digest_of, "abc"))), "it is gone")
    async with world.running(reconciles=False) as running:
        healing = await running.mirror.foresee_healing(damages)
    assert healing.healed == [manifest, chunk_path(digest_of("a"))]
    assert list(healing.lost) == [index, chunk_path(digest_of("b"))]
    assert all(reason.startswith("it is gone; ") for reason in healing.lost.values())
    assert healing.good == ["host/x/owner", chunk_path(digest_of("c"))]
