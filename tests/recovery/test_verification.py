"""Verifying a bucket: what is good is called good, each kind of damage is found, named, and told what it costs."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from mirrorfs.cli import bucket_reading, verify
from mirrorfs.datastore.names import GroupId, SnapshotId
from mirrorfs.objectstore.errors import StoreUnavailable
from mirrorfs.objectstore.retry import AT_ONCE
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.recovery.inventory import ChunkInventory
from mirrorfs.recovery.selection import Selection
from mirrorfs.recovery.source import View
from mirrorfs.recovery.verification import Damage, Depth, VerificationReport, verify_bucket
from tests.harness.formats import encode_blob
from tests.recovery.mirror import Mirror, Objects, Tampering, breaks_off_after, upload
from tests.recovery.test_restore import (
    ALL,
    ENCRYPTED,
    FIRST,
    SECOND,
    THIRD,
    WEB,
    chunk_key,
    chunks_of,
    delete,
    snapshots_with_chunk,
    some_chunk,
)

DEEP = Depth(100.0)


def verified(
    mirror: Mirror,
    depth: Depth = Depth(),  # noqa: B008 - immutable
    *,
    selection: Selection | None = None,
    view: View = View(),  # noqa: B008 - immutable
    tampering: Tampering | None = None,
    resume: Path | None = None,
    parallelism: int = 8,
) -> VerificationReport:
    async def run() -> VerificationReport:
        return await verify_bucket(
            mirror.store(tampering),
            mirror.address,
            selection=selection or Selection(),
            view=view,
            depth=depth,
            resume=resume,
            parallelism=parallelism,
        )

    return trio.run(run)


def only_damage(report: VerificationReport) -> Damage:
    assert not report.is_good
    assert len(report.damages) == 1, report.damages
    return report.damages[0]


def costs(damage: Damage) -> list[str]:
    return [snapshot.path for snapshot in damage.snapshots]


def put(mirror: Mirror, key: str, body: bytes) -> None:
    upload(mirror.access, mirror.bucket, mirror.prefix, {key: body})


def needed_chunks(objects: Objects) -> set[str]:
    return {chunk_key(digest) for snapshot in ALL for digest in chunks_of(snapshot, objects)}


@pytest.mark.parametrize("depth", [Depth(), DEEP])
def test_a_good_bucket_is_good(shared_mirror: Mirror, objects: Objects, depth: Depth) -> None:
    tampering = Tampering()
    report = verified(shared_mirror, depth, tampering=tampering)
    assert report.is_good
    assert not report.damaged_snapshots
    assert {found.group.path: (found.snapshots, found.damaged) for found in report.groups} == {
        "host/web": (1, 0),
        "vm/100": (3, 0),
        "ns/a/ns/b/ct/200": (2, 0),
    }
    chunks = {key: body for key, body in objects.items() if key.startswith(".chunks/")}
    assert report.chunks == len(chunks)
    assert report.chunk_bytes == sum(map(len, chunks.values()))
    assert report.chunks_needed == len(needed_chunks(objects))
    read = [key for key in tampering.gets if "/.chunks/" in key]
    assert len(read) == len(set(read)) == report.chunks_read == (report.chunks_needed if depth.percent else 0)
    assert report.bytes_read == sum(len(objects[key.partition("/")[2]]) for key in read)


@pytest.mark.parametrize("depth", [Depth(), DEEP])
def test_a_chunk_that_is_missing(own_mirror: Mirror, objects: Objects, depth: Depth) -> None:
    key = some_chunk(objects, FIRST, but_not_of=ENCRYPTED)
    delete(own_mirror, key)
    damage = only_damage(report := verified(own_mirror, depth))
    assert damage.path == key
    assert "missing" in damage.reason
    assert costs(damage) == snapshots_with_chunk(key, objects)
    assert {snapshot.path for snapshot in report.damaged_snapshots} == set(snapshots_with_chunk(key, objects))


@pytest.mark.parametrize("size", [0, 11])
def test_a_chunk_that_is_too_small_is_seen_in_the_listing(own_mirror: Mirror, objects: Objects, size: int) -> None:
    key = some_chunk(objects, FIRST, but_not_of=ENCRYPTED)
    put(own_mirror, key, objects[key][:size])
    damage = only_damage(verified(own_mirror))
    assert (damage.path, costs(damage)) == (key, snapshots_with_chunk(key, objects))
    assert f"{size} bytes" in damage.reason


def flipped(body: bytes) -> bytes:
    return body[:-1] + bytes([body[-1] ^ 1])


@pytest.mark.parametrize("kind", ["flipped", "of other content", "not encrypted", "wrongly encrypted"])
def test_a_chunk_that_is_not_sound_is_found_by_reading(own_mirror: Mirror, objects: Objects, kind: str) -> None:
    plain = some_chunk(objects, FIRST, but_not_of=ENCRYPTED)
    encrypted = some_chunk(objects, ENCRYPTED, but_not_of=FIRST)
    key, body = {
        "flipped": (plain, flipped(objects[plain])),
        "of other content": (plain, encode_blob(b"something else")),
        "not encrypted": (encrypted, objects[plain]),
        "wrongly encrypted": (plain, objects[encrypted]),
    }[kind]
    put(own_mirror, key, body)
    assert verified(own_mirror).is_good, "the listing cannot tell"
    damage = only_damage(verified(own_mirror, DEEP))
    assert (damage.path, costs(damage)) == (key, snapshots_with_chunk(key, objects))
    assert "damaged" in damage.reason


def test_what_is_damaged_on_its_way_only_is_no_damage(shared_mirror: Mirror, objects: Objects) -> None:
    seen = set()

    def on_get(key: str, body: bytes) -> bytes:
        if key in seen or key.endswith("owner"):
            return body
        seen.add(key)
        return flipped(body) if "/.chunks/" in key else body

    assert verified(shared_mirror, DEEP, tampering=Tampering(on_get)).is_good
    assert seen


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("index.json.blob", flipped),
        ("index.json.blob", lambda body: b""),
        ("drive-scsi0.img.fidx", flipped),
        ("qemu-server.conf.blob", flipped),
        ("qemu-server.conf.blob", lambda body: encode_blob(b"other")),
    ],
)
def test_a_file_that_is_not_sound(own_mirror: Mirror, objects: Objects, name: str, spoil: object) -> None:
    assert callable(spoil)
    key = f".cnt/{SECOND}/{name}"
    put(own_mirror, key, spoil(objects[key]))
    damage = only_damage(report := verified(own_mirror))
    assert (damage.path, costs(damage)) == (f"{SECOND}/{name}", [SECOND])
    assert [snapshot.path for snapshot in report.damaged_snapshots] == [SECOND]
    (group,) = [found for found in report.groups if found.group.path == "vm/100"]
    assert (group.snapshots, group.damaged) == (3, 1)


def test_a_file_that_is_missing(own_mirror: Mirror) -> None:
    delete(own_mirror, f".cnt/{SECOND}/drive-scsi0.img.fidx")
    damage = only_damage(verified(own_mirror))
    assert (damage.path, costs(damage)) == (f"{SECOND}/drive-scsi0.img.fidx", [SECOND])


def test_a_manifest_that_is_another_snapshots(own_mirror: Mirror, objects: Objects) -> None:
    for key, body in objects.items():
        if key.startswith(f".cnt/{FIRST}/"):
            put(own_mirror, key.replace(FIRST, SECOND), body)
    damage = only_damage(verified(own_mirror))
    assert (damage.path, costs(damage)) == (f"{SECOND}/index.json.blob", [SECOND])
    assert verified(own_mirror, selection=Selection(renamed=True)).is_good


def test_what_costs_no_snapshot(own_mirror: Mirror, objects: Objects) -> None:
    put(own_mirror, f".cnt/{FIRST}/client.log.blob", flipped(objects[f".cnt/{FIRST}/client.log.blob"]))
    delete(own_mirror, ".cnt/host/web/owner")
    report = verified(own_mirror)
    assert [damage.path for damage in report.damages] == ["host/web/owner", f"{FIRST}/client.log.blob"]
    assert not report.damaged_snapshots
    assert all(not damage.snapshots for damage in report.damages)


def test_only_what_is_selected_is_looked_at(own_mirror: Mirror, objects: Objects) -> None:
    delete(own_mirror, f".cnt/{FIRST}/drive-scsi0.img.fidx")
    assert verified(own_mirror, selection=Selection(groups=(GroupId.parse("host/web"),))).is_good
    assert verified(own_mirror, selection=Selection(latest=1)).is_good
    report = verified(own_mirror, DEEP, selection=Selection(snapshots=(SnapshotId.parse(THIRD),)))
    assert report.is_good
    assert report.chunks_read == len(chunks_of(THIRD, objects))
    with pytest.raises(RestoreError, match="holds no group vm/999"):
        verified(own_mirror, selection=Selection(groups=(GroupId.parse("vm/999"),)))


def test_deleted_snapshots(own_mirror: Mirror, objects: Objects) -> None:
    with pytest.raises(RestoreError, match="no deleted snapshots"):
        verified(own_mirror, view=View(deleted=True))
    moved = {key: body for key, body in objects.items() if key.startswith(f".cnt/{WEB}/")}
    for key, body in moved.items():
        put(own_mirror, key.replace(".cnt/", ".mirrorfs/deleted/"), body)
        delete(own_mirror, key)
    put(own_mirror, f".mirrorfs/deleted/{WEB}/deleted.json", json.dumps({"deleted": 1, "until": 2}).encode())
    report = verified(own_mirror, DEEP, view=View(deleted=True))
    assert [snapshot.snapshots for snapshot in report.groups] == [1]
    assert report.chunks_read == len(chunks_of(WEB, objects))
    assert report.is_good
    delete(own_mirror, key := some_chunk(objects, WEB, but_not_of=ENCRYPTED))
    assert key in {damage.path for damage in verified(own_mirror, view=View(deleted=True)).damages}


def test_nothing_there(own_mirror: Mirror) -> None:
    with pytest.raises(RestoreError, match="no datastore"):
        verified(Mirror(own_mirror.access, own_mirror.bucket, "nothing"))


# -- going on ------------------------------------------------------------------------------------------


def test_it_goes_on_where_it_was_interrupted(own_mirror: Mirror, objects: Objects, base: Path) -> None:
    needed = sorted(needed_chunks(objects))
    put(own_mirror, needed[0], flipped(objects[needed[0]]))
    file = base / "resume"
    half = len(needed) // 2
    interrupted = Tampering(breaks_off_after(half))
    with pytest.raises(StoreUnavailable):
        verified(own_mirror, DEEP, tampering=interrupted, resume=file, parallelism=3)
    saved = json.loads(file.read_text())
    assert list(saved["damaged"]) == [needed[0].rpartition("/")[2]]
    assert file.stat().st_mode & 0o777 == 0o600
    second = Tampering()
    report = verified(own_mirror, DEEP, tampering=second, resume=file, parallelism=3)
    again = {key.partition("/")[2] for key in second.gets if "/.chunks/" in key}
    # What was under way is read again, what was done before is not.
    assert set(needed[half:]) <= again
    assert len(again) <= len(needed) - half + 6
    damage = only_damage(report)
    assert (damage.path, costs(damage)) == (needed[0], snapshots_with_chunk(needed[0], objects))
    assert not file.exists()
    whole = verified(own_mirror, DEEP)
    assert whole.damages == report.damages


@settings(max_examples=5, deadline=None, derandomize=True)
@given(stops=st.lists(st.integers(1, 30), max_size=3), parallelism=st.integers(1, 5))
def test_however_often_it_is_interrupted_nothing_is_left_out(
    shared_mirror: Mirror, objects: Objects, scratch: Path, stops: list[int], parallelism: int
) -> None:
    file = scratch / "resume-often"
    file.unlink(missing_ok=True)
    read: set[str] = set()
    try:
        for stop in [*stops, None]:
            tampering = Tampering(None if stop is None else breaks_off_after(stop))
            try:
                report = verified(shared_mirror, DEEP, tampering=tampering, resume=file, parallelism=parallelism)
            except StoreUnavailable:
                continue
            finally:
                read |= {key.partition("/")[2] for key in tampering.gets if "/.chunks/" in key}
            assert report.is_good
            break
    finally:
        file.unlink(missing_ok=True)
    assert read == needed_chunks(objects)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no file that an interrupted"),
        (b"[1]", "no file that an interrupted"),
        (b'{"format": 1}', "no file that an interrupted"),
        (b'{"format": 1, "what": {}, "done_up_to": "xx"}', "no file that an interrupted"),
        (b'{"format": 2, "what": {}}', "another version"),
        (b'{"format": 1, "what": {"url": "s3://other/name"}}', "about another verification"),
    ],
)
def test_a_file_that_is_none_of_its_own(shared_mirror: Mirror, base: Path, content: bytes, why: str) -> None:
    file = base / "resume"
    file.write_bytes(content)
    with pytest.raises(RestoreError, match=why):
        verified(shared_mirror, DEEP, resume=file)
    assert file.read_bytes() == content


# -- what is chosen, and what is kept of it ------------------------------------------------------------


@settings(deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), percent=st.floats(0.1, 100), salt=st.integers(0, 2**64 - 1))
def test_a_sample_is_as_large_as_it_is_to_be(seed: int, percent: float, salt: int) -> None:
    digests = [random.Random(seed).randbytes(32) for _ in range(1)] + [
        random.Random(seed + number).randbytes(32) for number in range(1, 500)
    ]
    chosen = sum(Depth(percent).includes(digest, salt) for digest in digests)
    expected = len(digests) * percent / 100
    assert abs(chosen - expected) <= 6 * (expected**0.5) + 1
    assert all(DEEP.includes(digest, salt) for digest in digests)


@settings(deadline=None, derandomize=True)
@given(
    chunks=st.dictionaries(st.binary(min_size=32, max_size=32), st.integers(0, 2**40), max_size=60),
    plain=st.sets(st.binary(min_size=32, max_size=32), max_size=10),
    in_order=st.booleans(),
    data=st.data(),
)
def test_an_inventory_knows_what_there_is(
    chunks: dict[bytes, int], plain: set[bytes], in_order: bool, data: st.DataObject
) -> None:
    inventory = ChunkInventory()
    order = sorted(chunks) if in_order else data.draw(st.permutations(sorted(chunks)))
    for digest in order:
        inventory.add(digest, chunks[digest])
    inventory.complete()
    used = plain | set(data.draw(st.lists(st.sampled_from(sorted(chunks)), max_size=20)) if chunks else [])
    bad = dict(inventory.use(used, are_encrypted=False, most=1000).named)
    known = {digest[:8]: size for digest, size in chunks.items()}
    for digest in used:
        if digest[:8] in known:
            assert inventory.uses_of(digest) == (False,)
        else:
            assert "missing" in bad[digest]
            assert inventory.uses_of(digest) == ()
    assert inventory.bytes == sum(chunks.values())
    assert len(inventory) == len(chunks)


def test_an_inventory_takes_little_memory() -> None:
    count = 50_000
    choice = random.Random(1)
    tracemalloc.start()
    try:
        inventory = ChunkInventory()
        for _ in range(count):
            inventory.add(choice.randbytes(32), 4_000_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # 13 bytes each, and what growing takes: 300 MB would be 30 bytes for each of ten million.
    assert peak < 30 * count


# -- the command ---------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_reading, "_LISTING_PATIENCE", AT_ONCE)
    monkeypatch.setattr(bucket_reading, "_READING_PATIENCE", AT_ONCE)


def run(mirror: Mirror, *arguments: str) -> Result:
    endpoint = ("--endpoint-url", mirror.access.endpoint_url)
    result = CliRunner().invoke(verify.command, [str(mirror.address), *arguments, *endpoint])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_the_command_on_what_is_good(shared_mirror: Mirror) -> None:
    result = run(shared_mirror, "--deep")
    assert result.exit_code == 0, result.output
    assert "6 snapshots, 0 of them damaged." in result.stdout
    assert "ns/a/ns/b/ct/200" in result.stdout


def test_the_command_on_what_is_damaged(own_mirror: Mirror, objects: Objects) -> None:
    key = some_chunk(objects, FIRST, but_not_of=ENCRYPTED)
    delete(own_mirror, key)
    result = run(own_mirror)
    assert result.exit_code == 1
    cost = ", ".join(snapshots_with_chunk(key, objects))
    assert f"Damaged: {key}: it is missing in the bucket; it costs {cost}" in result.stderr
    answer = json.loads(run(own_mirror, "--json").stdout)
    assert answer["good"] is False
    assert answer["damaged_snapshots"] == snapshots_with_chunk(key, objects)
    assert [damage["path"] for damage in answer["damages"]] == [key]


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["--deep", "--sample", "5"], 2, "give one of them"),
        (["--resume", "/tmp/x"], 2, "--resume goes with"),
        (["--sample", "0"], 2, "not in the range"),
        (["--group", "../etc"], 2, ""),
        (["--latest", "0"], 2, ""),
        (["--group", "vm/999"], 1, "The bucket holds no group vm/999"),
        (["--deep", "--resume", "/nonexistent/file"], 1, "/nonexistent/file"),
        (["--deleted"], 1, "no deleted snapshots"),
    ],
)
def test_bad_input(shared_mirror: Mirror, arguments: list[str], code: int, why: str) -> None:
    result = run(shared_mirror, *arguments)
    assert result.exit_code == code, result.output
    assert why in result.output


def test_the_bucket_cannot_be_reached(shared_mirror: Mirror) -> None:
    result = CliRunner().invoke(verify.command, [str(shared_mirror.address), "--endpoint-url", "http://127.0.0.1:9"])
    assert result.exit_code == 1
    assert "Traceback" not in result.output
