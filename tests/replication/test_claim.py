"""Whose mirror a prefix is."""

from __future__ import annotations

import json
from typing import cast

import pytest

from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.journal.state import Identity
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.replication.claim import Claim, ClaimRefused, claim_prefix
from tests.replication.world import FakeStore

pytestmark = pytest.mark.trio

CLAIM = "name/.mirrorfs/claim.json"
IN_USE = "name/.in-use"
PBS = json.dumps({"hostname": "pbs1"}).encode()
OWN = Identity("/mnt/datastore", "bucket", "name", "own")


async def claim(store: FakeStore, identity: Identity = OWN, *, take_over: bool = False) -> Claim:
    return await claim_prefix(cast(ObjectStore, store), BucketLayout("name"), identity, take_over=take_over)


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    be_on("here", monkeypatch)


def be_on(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirrorfs.replication.claim.socket.gethostname", lambda: machine)
    monkeypatch.setattr("mirrorfs.replication.claim._machine_id", lambda: f"id of {machine}")


async def test_a_fresh_prefix_is_claimed() -> None:
    store = FakeStore()
    claimed = await claim(store)
    assert claimed.mirror_id == "own"
    assert list(store.objects) == [CLAIM]
    assert json.loads(store.objects[CLAIM])["hostname"] == "here"


async def test_ones_own_claim_is_left_as_it_is() -> None:
    store = FakeStore()
    first = await claim(store)
    store.requests.clear()
    assert await claim(store) == first
    assert store.keys_of("put") == []


async def test_a_lost_state_of_the_same_datastore_goes_on() -> None:
    store = FakeStore()
    await claim(store)
    found = await claim(store, Identity("/mnt/datastore", "bucket", "name", "new"))
    assert found.mirror_id == "own"
    assert json.loads(store.objects[CLAIM])["mirror_id"] == "own"


async def test_a_machine_that_was_renamed_keeps_its_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    store = FakeStore()
    await claim(store)
    be_on("renamed", monkeypatch)
    assert (await claim(store)).hostname == "renamed"
    assert json.loads(store.objects[CLAIM])["hostname"] == "renamed"


@pytest.mark.parametrize(("machine", "datastore"), [("there", "/mnt/datastore"), ("here", "/mnt/other")])
async def test_another_mirror_is_refused_unless_taken_over(
    machine: str, datastore: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FakeStore()
    await claim(store)
    before = dict(store.objects)
    be_on(machine, monkeypatch)
    other = Identity(datastore, "bucket", "name", "other")
    with pytest.raises(ClaimRefused, match=r"mirror of /mnt/datastore on here.*--take-over"):
        await claim(store, other)
    assert store.objects == before
    assert (await claim(store, other, take_over=True)).mirror_id == "other"
    assert (await claim(store, other)).mirror_id == "other"
    be_on("here", monkeypatch)
    with pytest.raises(ClaimRefused, match=f"mirror of {datastore} on {machine}"):
        await claim(store)


@pytest.mark.parametrize(("content", "name"), [(PBS, "pbs1"), (b"", "unknown name"), (b"[]", "unknown name")])
async def test_a_prefix_of_a_live_server_is_refused_unless_taken_over(content: bytes, name: str) -> None:
    store = FakeStore({IN_USE: content})
    with pytest.raises(ClaimRefused, match=f"{name}.*--take-over"):
        await claim(store)
    assert store.objects == {IN_USE: content}
    await claim(store, take_over=True)
    assert (await claim(store)).mirror_id == "own"
    assert store.objects[IN_USE] == content


async def test_another_server_that_moves_in_later_is_refused() -> None:
    store = FakeStore({IN_USE: PBS})
    await claim(store, take_over=True)
    store.objects[IN_USE] = json.dumps({"hostname": "pbs2"}).encode()
    with pytest.raises(ClaimRefused, match="pbs2"):
        await claim(store)


@pytest.mark.parametrize("content", [b"", b"null", b"[1]", b"{}", b'{"mirror_id": "own"}', b"\xff\xfe", b'{"new": 1}'])
@pytest.mark.parametrize("take_over", [False, True])
async def test_a_claim_that_cannot_be_read_is_never_overwritten(content: bytes, take_over: bool) -> None:
    store = FakeStore({CLAIM: content})
    with pytest.raises(ClaimRefused, match=r"claim\.json.*not a claim.*delete it"):
        await claim(store, take_over=take_over)
    assert store.objects == {CLAIM: content}
