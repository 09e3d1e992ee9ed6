"""Damage in the bucket below a running mirror: found by the scrub or by `heal --bucket`, and made good or named."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

from tests.end_to_end.mirrors import MirrorUnderTest
from tests.end_to_end.test_bad_input import eventually
from tests.end_to_end.test_damage import PLAN
from tests.harness.auditor import Auditor
from tests.harness.backup import WrittenSnapshot
from tests.harness.bucket import Bucket
from tests.harness.mutation import SCRUB_IN_A_HURRY, environment_of
from tests.harness.names import chunk_path
from tests.harness.writer import DatastoreWriter

_SECONDS = 240.0


def back_up(mirror: MirrorUnderTest) -> WrittenSnapshot:
    with DatastoreWriter(mirror.datastore, seed=9, default_plan=PLAN) as writer:
        snapshot = writer.backup("vm/1")
        mirror.wait()
        return snapshot


def spoil(mirror: MirrorUnderTest, path: str) -> bytes:
    """Change one bit of an object, as a rotten disk does."""
    whole = read(mirror, path)
    body = whole[:-1] + bytes([whole[-1] ^ 1])
    mirror.store.access.client().put_object(Bucket=mirror.bucket, Key=f"{mirror.name}/{path}", Body=body)
    return whole


def remove(mirror: MirrorUnderTest, path: str) -> None:
    mirror.store.access.client().delete_object(Bucket=mirror.bucket, Key=f"{mirror.name}/{path}")


def read(mirror: MirrorUnderTest, path: str) -> bytes:
    client, key = mirror.store.access.client(), f"{mirror.name}/{path}"
    body: bytes = client.get_object(Bucket=mirror.bucket, Key=key)["Body"].read()
    return body


def state_files(mirror: MirrorUnderTest) -> dict[str, bytes]:
    """What stands in the databases of a state directory."""
    return {str(path): path.read_bytes() for path in mirror.state.rglob("data.mdb")}


def problems(mirror: MirrorUnderTest) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = mirror.status()["problems"]
    return found


def violations(mirror: MirrorUnderTest) -> list[Any]:
    bucket = Bucket(mirror.store.access.client(), mirror.bucket, mirror.name)
    return list(Auditor(bucket, deep=True).audit_bucket())


def test_the_scrub_makes_good_what_the_bucket_has_lost(mirror: MirrorUnderTest) -> None:
    mirror.mount_options = (*mirror.mount_options, "--verify-percent-per-day", "100", "--nice", "0")
    mirror.extra_environment.update(environment_of(SCRUB_IN_A_HURRY))
    mirror.mount()
    snapshot = back_up(mirror)
    first, second = sorted(snapshot.chunks)[:2]
    spoil(mirror, chunk_path(first))
    remove(mirror, chunk_path(second))
    spoil(mirror, f".cnt/{snapshot.path}/disk.img.fidx")
    eventually(lambda: mirror.status()["scrub"]["sent_again"] >= 3, _SECONDS)
    assert violations(mirror) == []
    assert mirror.status()["problems"] == []


def test_healing_the_bucket_tells_what_neither_side_has(mirror: MirrorUnderTest) -> None:
    mirror.mount()
    snapshot = back_up(mirror)
    kept, lost = map(chunk_path, sorted(snapshot.chunks)[:2])
    whole = spoil(mirror, kept)
    spoilt = read(mirror, kept)
    remove(mirror, lost)
    (mirror.datastore / lost).unlink()
    path = str(mirror.datastore)
    other = mirror.run("heal", path, "--bucket", "--from", f"s3://{mirror.bucket}/other", *mirror.store_options())
    assert other.returncode == 1
    assert f"is mirrored to {mirror.url}, and" in other.stderr
    told = json.loads(mirror.run("heal", path, "--bucket", "--dry-run", "--json").stdout)
    assert ([one["path"] for one in told["healed"]], told["good"]) == ([kept], False)
    assert read(mirror, kept) == spoilt

    done = mirror.run("heal", path, "--bucket")
    assert done.returncode == 1
    assert f"sent again: {kept}" in done.stderr
    assert f"LOST: {lost}" in done.stderr
    assert f"it costs {snapshot.path}" in done.stderr
    assert read(mirror, kept) == whole
    name = f"in the bucket: {lost}"
    eventually(lambda: any(found["name"] == name and snapshot.path in found["reason"] for found in problems(mirror)))
    selected = mirror.run("heal", path, "--bucket", "--snapshot", snapshot.path, "--json")
    assert json.loads(selected.stdout)["lost"][0]["snapshots"] == [snapshot.path]


def test_without_a_mount_the_bucket_is_healed_and_nothing_removed(mirror: MirrorUnderTest) -> None:
    # Nothing tells a repair of this option.
    mirror.mount("--retention-delete-after", "30d")
    snapshot = back_up(mirror)
    with DatastoreWriter(mirror.datastore, seed=10, default_plan=PLAN) as writer:
        gone = writer.backup("vm/1")
        mirror.wait()
        # It hears no more of what the journal says.
        os.kill(mirror.uploader_pid(), signal.SIGSTOP)
        writer.forget(gone.name)
    mirror.kill_all()
    mirror.detach_dead()
    kept, lost = map(chunk_path, sorted(snapshot.chunks)[:2])
    whole = spoil(mirror, kept)
    remove(mirror, lost)
    (mirror.datastore / lost).unlink()
    mirror.extra_environment["MIRRORFS_MOUNT_STATE_DIR"] = str(mirror.state)
    arguments = ("heal", str(mirror.datastore), "--bucket", "--from", mirror.url, *mirror.store_options())
    before = state_files(mirror)
    spoilt = read(mirror, kept)
    foreseen = mirror.run(*arguments, "--json", "--dry-run")
    assert state_files(mirror) == before
    assert read(mirror, kept) == spoilt
    told = mirror.run(*arguments, "--json")
    for answered in (foreseen, told):
        answer = json.loads(answered.stdout)
        assert [one["path"] for one in answer["healed"]] == [kept], answered.stderr
        assert [(one["path"], one["snapshots"]) for one in answer["lost"]] == [(lost, [snapshot.path])]
        assert "missing in the datastore" in answer["lost"][0]["reason"]
    assert read(mirror, kept) == whole
    assert mirror.published() == sorted([snapshot.path, gone.path])
