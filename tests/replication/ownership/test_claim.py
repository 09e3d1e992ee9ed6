"""Whose mirror a prefix is."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.objectstore.errors import ObjectChanged
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.replication.ownership.claim import Claim, ClaimRefused, ClaimUnreadable, claim_prefix
from mirrorfs.replication.work.bucket import Bucket
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.state.identity import Epochs, Identity
from mirrorfs.state.state import State
from tests.replication.world import FakeStore, Killed, die_at

pytestmark = pytest.mark.trio

CLAIM = "name/.mirrorfs/claim.json"
IN_USE = "name/.in-use"
CHUNK = bytes(32)
PBS = json.dumps({"hostname": "pbs1"}).encode()
OWN = Identity("/mnt/datastore", "bucket", "name", "own")


@dataclass(frozen=True, slots=True)
class Claimant:
    """A state directory that claims the prefix, as an uploader does at each start."""

    state: CommittedState

    async def claim(self, store: FakeStore, identity: Identity = OWN, *, take_over: bool = False) -> Claim:
        layout = BucketLayout("name")
        return await claim_prefix(Bucket(layout, cast(ObjectStore, store)), identity, self.state, take_over=take_over)

    async def know(self, digest: bytes) -> None:
        await self.state.apply(lambda transaction: transaction.chunks.confirm(digest, 1, 1))

    def has_strangers(self) -> bool:
        return self.state.view(lambda transaction: transaction.identity.has_strangers())

    def knows(self, digest: bytes) -> bool:
        return self.state.view(lambda transaction: transaction.chunks.get(digest)) is not None


@pytest.fixture
async def claimants(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[list[Claimant]]:
    """Three state directories."""
    made = []
    for name in "abc":
        made.append(Claimant(CommittedState(State(str(tmp_path / name)))))
        nursery.start_soon(made[-1].state.run)
    yield made
    nursery.cancel_scope.cancel()
    for claimant in made:
        claimant.state.close()


def standing(store: FakeStore) -> dict[str, Any]:
    claim: dict[str, Any] = json.loads(store.objects[CLAIM])
    return claim


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    be_on("here", monkeypatch)


def be_on(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirrorfs.replication.ownership.claim.socket.gethostname", lambda: machine)
    monkeypatch.setattr("mirrorfs.replication.ownership.claim._machine_id", lambda: f"id of {machine}")


async def test_a_fresh_prefix_is_claimed(claimants: list[Claimant]) -> None:
    store = FakeStore()
    assert (await claimants[0].claim(store)).mirror_id == "own"
    assert sorted(store.objects) == [IN_USE, CLAIM]
    assert json.loads(store.objects[IN_USE]) == {"hostname": "here (mirrorfs of /mnt/datastore)"}
    assert (standing(store)["mirror_id"], standing(store)["hostname"]) == ("own", "here")
    assert "id of here" not in store.objects[CLAIM].decode()


async def test_what_a_state_knows_stays_as_long_as_it_wrote_the_last_claim(claimants: list[Claimant]) -> None:
    store = FakeStore()
    await claimants[0].claim(store)
    await claimants[0].know(CHUNK)
    epoch = standing(store)["epoch"]
    await claimants[0].claim(store)
    assert claimants[0].knows(CHUNK)
    assert standing(store)["epoch"] != epoch


async def test_what_a_state_knows_is_forgotten_when_another_state_wrote_meanwhile(claimants: list[Claimant]) -> None:
    store = FakeStore()
    stale, other, _ = claimants
    await stale.claim(store)
    await stale.know(CHUNK)
    await other.claim(store)
    await stale.claim(store)
    assert not stale.knows(CHUNK)


async def test_an_old_copy_of_a_state_forgets_what_it_knows(claimants: list[Claimant]) -> None:
    store = FakeStore()
    state, old_copy, _ = claimants
    await state.claim(store)
    epochs = state.state.view(lambda transaction: transaction.identity.epochs())
    await old_copy.state.apply(lambda transaction: transaction.identity.set_epochs(epochs))
    await old_copy.know(CHUNK)
    await state.claim(store)
    await old_copy.claim(store)
    assert not old_copy.knows(CHUNK)


async def test_a_bucket_that_was_emptied_is_known_to_be_empty(claimants: list[Claimant]) -> None:
    store = FakeStore()
    await claimants[0].claim(store)
    await claimants[0].know(CHUNK)
    store.objects.clear()
    await claimants[0].claim(store)
    assert not claimants[0].knows(CHUNK)


async def test_a_crash_around_the_claim_costs_no_knowledge(claimants: list[Claimant]) -> None:
    store = FakeStore()
    state = claimants[0]
    await state.claim(store)
    await state.know(CHUNK)
    before = dict(store.objects)
    await state.claim(store)
    ours = Epochs(json.loads(before[CLAIM])["epoch"], standing(store)["epoch"])
    for objects in (before, dict(store.objects)):
        # As after a crash before, and after, the PUT: the state has noted both.
        await state.state.apply(lambda transaction: transaction.identity.set_epochs(ours))
        await state.claim(FakeStore(objects))
        assert state.knows(CHUNK)


async def test_a_lost_state_of_the_same_datastore_goes_on(claimants: list[Claimant]) -> None:
    store = FakeStore()
    await claimants[0].claim(store)
    found = await claimants[1].claim(store, Identity("/mnt/datastore", "bucket", "name", "new"))
    assert found.mirror_id == "own"
    assert standing(store)["mirror_id"] == "own"


@pytest.mark.parametrize("change", ["host name", "machine id", "path"])
async def test_a_copy_of_the_state_is_refused_elsewhere_until_it_is_said_that_it_only_moved(
    change: str, claimants: list[Claimant], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clone of the machine, and one that was renamed or moved, look the same."""
    store = FakeStore()
    await claimants[0].claim(store)
    await claimants[0].know(CHUNK)
    before, identity = dict(store.objects), OWN
    if change == "host name":
        monkeypatch.setattr("mirrorfs.replication.ownership.claim.socket.gethostname", lambda: "copy")
    elif change == "machine id":
        monkeypatch.setattr("mirrorfs.replication.ownership.claim._machine_id", lambda: "id of a copy")
    else:
        identity = replace(OWN, datastore="/mnt/copy")
    names = {
        "host name": "of /mnt/datastore on here, .*used for /mnt/datastore on copy",
        "machine id": "of /mnt/datastore on here, .*used for /mnt/datastore on here.*/etc/machine-id is another",
        "path": "of /mnt/datastore on here, .*used for /mnt/copy on here",
    }
    with pytest.raises(ClaimRefused, match=f"{names[change]}") as refused:
        await claimants[0].claim(store, identity)
    assert "mount once with --take-over" in str(refused.value)
    assert store.objects == before
    # It is asked once, and has lost nothing that it knew: nobody else wrote there.
    for take_over in (True, False):
        assert (await claimants[0].claim(store, identity, take_over=take_over)).mirror_id == "own"
    assert claimants[0].knows(CHUNK)
    assert not claimants[0].has_strangers()


async def test_a_clone_that_takes_over_forgets_what_the_original_did_since(
    claimants: list[Claimant], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FakeStore()
    original, clone, _ = claimants
    await original.claim(store)
    epochs = original.state.view(lambda transaction: transaction.identity.epochs())
    await clone.state.apply(lambda transaction: transaction.identity.set_epochs(epochs))
    await clone.know(CHUNK)
    await original.claim(store)
    be_on("there", monkeypatch)
    await clone.claim(store, take_over=True)
    assert not clone.knows(CHUNK)
    assert clone.has_strangers()
    be_on("here", monkeypatch)
    with pytest.raises(ClaimRefused, match="of /mnt/datastore on there, and this is its state directory"):
        await original.claim(store)


@pytest.mark.parametrize(("machine", "datastore"), [("there", "/mnt/datastore"), ("here", "/mnt/other")])
async def test_another_mirror_is_refused_unless_taken_over(
    machine: str, datastore: str, claimants: list[Claimant], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FakeStore()
    await claimants[0].claim(store)
    before = dict(store.objects)
    be_on(machine, monkeypatch)
    other = Identity(datastore, "bucket", "name", "other")
    with pytest.raises(ClaimRefused, match=r"mirror of /mnt/datastore on here.*--take-over"):
        await claimants[1].claim(store, other)
    assert store.objects == before
    assert (await claimants[1].claim(store, other, take_over=True)).mirror_id == "other"
    assert (await claimants[1].claim(store, other)).mirror_id == "other"
    be_on("here", monkeypatch)
    with pytest.raises(ClaimRefused, match=f"mirror of {datastore} on {machine}"):
        await claimants[0].claim(store)


@pytest.mark.parametrize(("content", "name"), [(PBS, "pbs1"), (b"", "unknown name"), (b"[]", "unknown name")])
async def test_a_prefix_of_a_live_server_is_refused_unless_taken_over(
    content: bytes, name: str, claimants: list[Claimant]
) -> None:
    store = FakeStore({IN_USE: content})
    with pytest.raises(ClaimRefused, match=f"{name}.*--take-over"):
        await claimants[0].claim(store)
    assert store.objects == {IN_USE: content}
    assert name in str((await claimants[0].claim(store, take_over=True)).taken_from)
    assert (await claimants[0].claim(store)).mirror_id == "own"
    assert json.loads(store.objects[IN_USE]) == {"hostname": "here (mirrorfs of /mnt/datastore)"}
    assert claimants[0].has_strangers()


async def test_another_server_that_moves_in_later_is_refused(claimants: list[Claimant]) -> None:
    store = FakeStore({IN_USE: PBS})
    await claimants[0].claim(store, take_over=True)
    store.objects[IN_USE] = json.dumps({"hostname": "pbs2"}).encode()
    with pytest.raises(ClaimRefused, match="pbs2"):
        await claimants[0].claim(store)


async def test_a_server_that_was_overridden_before_in_use_was_put_stays_overridden(claimants: list[Claimant]) -> None:
    """An earlier version left the server's object where it was, and noted its name in the claim."""
    store = FakeStore()
    await claimants[0].claim(store)
    await claimants[0].know(CHUNK)
    earlier = {**standing(store), "taken_from": "pbs1"}
    del earlier["in_use"]
    store.objects |= {CLAIM: json.dumps(earlier).encode(), IN_USE: PBS}
    await claimants[0].claim(store)
    assert json.loads(store.objects[IN_USE])["hostname"].startswith("here ")
    assert claimants[0].knows(CHUNK)


# --- what a PBS may have done


async def test_what_is_known_is_forgotten_when_in_use_is_gone(claimants: list[Claimant]) -> None:
    """A PBS used the prefix in between, and has left: `datastore remove` deletes the object."""
    store = FakeStore()
    await claimants[0].claim(store)
    await claimants[0].know(CHUNK)
    del store.objects[IN_USE]
    await claimants[0].claim(store)
    assert not claimants[0].knows(CHUNK)
    assert claimants[0].has_strangers()
    assert IN_USE in store.objects


async def test_a_new_state_knows_from_the_claim_that_in_use_is_gone(claimants: list[Claimant]) -> None:
    store = FakeStore()
    await claimants[0].claim(store)
    del store.objects[IN_USE]
    await claimants[1].claim(store, replace(OWN, mirror_id="new"))
    assert claimants[1].has_strangers()


async def test_a_mirror_of_an_earlier_version_that_put_none_goes_on(claimants: list[Claimant]) -> None:
    store = FakeStore()
    await claimants[0].claim(store)
    earlier = standing(store)
    del earlier["in_use"]
    store.objects = {CLAIM: json.dumps(earlier).encode()}
    epochs = claimants[0].state.view(lambda transaction: transaction.identity.epochs())
    await claimants[1].state.apply(lambda transaction: transaction.identity.set_epochs(epochs))
    await claimants[1].know(CHUNK)
    await claimants[1].claim(store)
    assert claimants[1].knows(CHUNK)
    assert not claimants[1].has_strangers()


async def test_a_start_that_was_refused_leaves_a_note_for_the_next(claimants: list[Claimant]) -> None:
    """The server has gone again by then, and what it has left looks like what was there before."""
    store = FakeStore()
    await claimants[0].claim(store)
    await claimants[0].know(CHUNK)
    own = store.objects[IN_USE]
    store.objects[IN_USE] = PBS
    with pytest.raises(ClaimRefused, match="pbs1"):
        await claimants[0].claim(store)
    assert claimants[0].knows(CHUNK)
    store.objects[IN_USE] = own
    await claimants[0].claim(store)
    assert not claimants[0].knows(CHUNK)
    assert claimants[0].has_strangers()
    await claimants[0].know(CHUNK)
    await claimants[0].claim(store)
    assert claimants[0].knows(CHUNK)


@pytest.mark.parametrize("step", ["claim.after-put", "claim.in-use-put", "claim.before-put"])
async def test_a_crash_on_the_way_is_no_sign_of_a_server(
    step: str, claimants: list[Claimant], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FakeStore()
    with monkeypatch.context() as patch:
        die_at(patch, step, 1)
        with pytest.raises(Killed):
            await claimants[0].claim(store)
    await claimants[0].know(CHUNK)
    await claimants[0].claim(store)
    assert claimants[0].knows(CHUNK)
    assert not claimants[0].has_strangers()


@pytest.mark.parametrize("content", [b"", b"null", b"[1]", b"{}", b'{"mirror_id": "own"}', b"\xff\xfe", b'{"new": 1}'])
@pytest.mark.parametrize("take_over", [False, True])
async def test_a_claim_that_cannot_be_read_is_never_overwritten(
    content: bytes, take_over: bool, claimants: list[Claimant]
) -> None:
    store = FakeStore({CLAIM: content})
    with pytest.raises(ClaimUnreadable, match=r"claim\.json is not a claim") as unreadable:
        await claimants[0].claim(store, take_over=take_over)
    assert "delete" not in str(unreadable.value)
    assert store.objects == {CLAIM: content}


# --- two at one moment


@pytest.mark.parametrize("raced", [IN_USE, CLAIM])
async def test_who_comes_second_at_one_moment_sees_the_first(
    claimants: list[Claimant], nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, raced: str
) -> None:
    store, refused = FakeStore(), trio.Event()
    slow, quick, _ = claimants
    gate = store.gate("put", raced)

    async def come_second() -> None:
        with pytest.raises(ClaimRefused, match="there"):
            await slow.claim(store)
        refused.set()

    nursery.start_soon(come_second)
    await gate.reached.wait()
    be_on("there", monkeypatch)
    # The one whose .in-use stands already is seen by it; it is overridden only when that is said.
    await quick.claim(store, replace(OWN, mirror_id="quick"), take_over=raced == CLAIM)
    first = dict(store.objects)
    be_on("here", monkeypatch)
    gate.opened.set()
    with trio.fail_after(30):
        await refused.wait()
    assert store.objects == first


async def test_a_take_over_that_was_raced_takes_over_all_the_same(
    claimants: list[Claimant], nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, taken = FakeStore(), trio.Event()
    slow, quick, _ = claimants
    gate = store.gate("put", CLAIM)

    async def take_over() -> None:
        await slow.claim(store, take_over=True)
        taken.set()

    nursery.start_soon(take_over)
    await gate.reached.wait()
    be_on("there", monkeypatch)
    await quick.claim(store, replace(OWN, mirror_id="quick"), take_over=True)
    be_on("here", monkeypatch)
    gate.opened.set()
    with trio.fail_after(30):
        await taken.wait()
    assert standing(store)["hostname"] == "here"
    assert json.loads(store.objects[IN_USE])["hostname"].startswith("here ")
    assert slow.has_strangers()


@dataclass(slots=True)
class RestlessStore(FakeStore):
    """Somebody else always comes first."""

    async def put_over(self, key: str, body: bytes, etag: str | None) -> None:
        raise ObjectChanged(f"store {key}", "something else stands there")


async def test_a_race_without_an_end_is_given_up(claimants: list[Claimant]) -> None:
    with pytest.raises(ClaimUnreadable, match="several mirrors are being started"):
        await claimants[0].claim(RestlessStore())
