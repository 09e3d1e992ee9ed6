"""Somebody meddles with the bucket, or state and journal are lost or damaged: all of it is found and made good."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.end_to_end.mirrors import MirrorUnderTest
from tests.end_to_end.test_crashes import TINY
from tests.harness.writer import DatastoreWriter
from tests.stores.fault_proxy import FaultProxy

_PAGE = 4096
_NOBODYS_CHUNK = f".chunks/0000/{'00' * 32}"
_FOREIGN = (".cnt/vm/1/photo of a cat", "readme.txt")


def back_up(mirror: MirrorUnderTest, group: str) -> str:
    with DatastoreWriter(mirror.datastore, seed=21, default_plan=TINY) as writer:
        return writer.backup(group).path


def keys(mirror: MirrorUnderTest) -> list[str]:
    """Everything of the mirror but its own records, relative to its name."""
    found = (key.removeprefix(f"{mirror.name}/") for key in mirror.store.access.keys(mirror.bucket, f"{mirror.name}/"))
    return sorted(key for key in found if not key.startswith(".mirrorfs/"))


def test_what_somebody_did_to_the_bucket_is_found_and_mended(mirror: MirrorUnderTest) -> None:
    mirror.mount()
    snapshots = [back_up(mirror, "vm/1"), back_up(mirror, "ct/2")]
    mirror.wait()
    client, path = mirror.store.access.client(), str(mirror.datastore)
    whole = keys(mirror)
    chunk = next(key for key in whole if key.startswith(".chunks/"))
    gone = [chunk, f".cnt/{snapshots[0]}/index.json.blob", f".cnt/{snapshots[1]}/qemu-server.conf.blob"]
    for key in gone:
        client.delete_object(Bucket=mirror.bucket, Key=f"{mirror.name}/{key}")
    for key in (_NOBODYS_CHUNK, *_FOREIGN):
        client.put_object(Bucket=mirror.bucket, Key=f"{mirror.name}/{key}", Body=b"meddling")
    meddled = keys(mirror)

    dry = mirror.run("reconcile", path, "--deep", "--dry-run")
    assert dry.returncode == 3, dry.stderr
    for key in gone:
        assert f"send     {mirror.name}/{key}: " in dry.stdout
    assert f"delete   {mirror.name}/{_NOBODYS_CHUNK}: " in dry.stdout
    for key in _FOREIGN:
        assert f"foreign  {mirror.name}/{key}: " in dry.stdout
    assert len(dry.stdout.splitlines()) == 8
    assert keys(mirror) == meddled

    answer = json.loads(mirror.succeed("reconcile", path, "--deep", "--json"))
    assert answer["differences"] == {"send": 3, "compare": 0, "delete": 1, "none": 0}
    assert answer["foreign_objects"]["count"] == 2
    assert keys(mirror) == sorted([*whole, *_FOREIGN])
    clean = mirror.run("reconcile", path, "--deep", "--dry-run")
    assert clean.returncode == 0, clean.stdout
    assert len(clean.stdout.splitlines()) == 4
    for key in _FOREIGN:
        client.delete_object(Bucket=mirror.bucket, Key=f"{mirror.name}/{key}")
    assert mirror.audit() == []


def test_a_chunk_that_only_the_bucket_had(mirror: MirrorUnderTest) -> None:
    mirror.mount()
    snapshot = back_up(mirror, "vm/1")
    mirror.wait()
    path = str(mirror.datastore)
    chunk = next(key for key in keys(mirror) if key.startswith(".chunks/"))
    aside = mirror.base / "chunk"
    shutil.copy2(mirror.datastore / chunk, aside)
    os.unlink(mirror.datastore / chunk)
    mirror.wait()
    mirror.store.access.client().delete_object(Bucket=mirror.bucket, Key=f"{mirror.name}/{chunk}")
    result = mirror.run("reconcile", path, "--deep")
    assert result.returncode == 1
    assert f"{snapshot}: its copy in the bucket is incomplete" in result.stderr
    assert [problem["name"] for problem in mirror.status()["problems"]] == [snapshot]
    shutil.copy2(aside, mirror.datastore / f"{chunk}.tmp_1")
    os.rename(mirror.datastore / f"{chunk}.tmp_1", mirror.datastore / chunk)
    mirror.wait()
    assert mirror.audit() == []


def test_without_a_mount_it_says_what_to_do(mirror: MirrorUnderTest) -> None:
    result = mirror.run("reconcile", str(mirror.datastore), "--deep")
    assert result.returncode == 1
    assert "mount it first" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def _overwrite(state: Path, start: int) -> None:
    data = state / "data.mdb"
    with open(data, "r+b") as file:
        file.seek(start)
        file.write(b"\xa5" * max(_PAGE, data.stat().st_size - start))


def _spoil_all_but_the_head(state: Path) -> None:
    _overwrite(state, 2 * _PAGE)


LOSSES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "state's pages overwritten": ("state", _spoil_all_but_the_head),
    "state deleted": ("state", shutil.rmtree),
    "journal's pages overwritten": ("journal", _spoil_all_but_the_head),
    "journal deleted": ("journal", shutil.rmtree),
}


def test_lost_and_damaged_states_and_journals_are_rebuilt_and_nothing_is_sent_again(
    proxied_mirror: MirrorUnderTest, fault_proxy: FaultProxy
) -> None:
    mirror = proxied_mirror
    mirror.mount()
    made = [back_up(mirror, "vm/1")]
    mirror.wait()
    for number, (what, (name, spoil)) in enumerate(LOSSES.items()):
        mirror.umount()
        before, puts = set(keys(mirror)), _puts(mirror, fault_proxy)
        spoil(mirror.state / name)
        made.append(back_up(mirror, f"vm/{2 + number}"))
        done = mirror.run(*mirror.mount_arguments())
        assert done.returncode == 0, f"{what}: {done.stderr}"
        if name == "state" and spoil is not shutil.rmtree:
            assert "was set aside as" in done.stderr, what
            assert "was set aside as" in mirror.log, what
        mirror.wait()
        # As after a power cut, when the disk may have forgotten: the state is compared before anything relies on it.
        compared = sum(name == "journal" for name, _ in list(LOSSES.values())[: number + 1])
        assert mirror.log.count("comparing the bucket") == compared, what
        sent = _puts(mirror, fault_proxy)[len(puts) :]
        assert set(sent).isdisjoint(before), what
        assert mirror.published() == sorted(made), what
    assert mirror.audit() == []


def test_a_state_that_is_damaged_while_it_is_used(proxied_mirror: MirrorUnderTest, fault_proxy: FaultProxy) -> None:
    mirror = proxied_mirror
    mirror.mount()
    made = [back_up(mirror, "vm/1")]
    mirror.wait()
    before, puts = set(keys(mirror)), _puts(mirror, fault_proxy)
    _spoil_all_but_the_head(mirror.state / "state")
    made.append(back_up(mirror, "vm/2"))
    mirror.wait()
    assert "was set aside as" in mirror.log
    assert set(_puts(mirror, fault_proxy)[len(puts) :]).isdisjoint(before)
    assert mirror.published() == sorted(made)
    assert mirror.audit() == []


def _puts(mirror: MirrorUnderTest, proxy: FaultProxy) -> list[str]:
    """What was sent so far, but for the mirror's own records."""
    sent = (seen.key.removeprefix(f"{mirror.name}/") for seen in proxy.requests("PUT", "?*"))
    return [key for key in sent if not key.startswith(".mirrorfs/")]
