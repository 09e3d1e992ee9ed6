"""What PBS does to a datastore, each time with a choice of details, and what its model learns of it."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from tests.harness.backup import AbortStage
from tests.harness.content import ArchivePlan, BackupPlan, BlobPlan, ImagePlan
from tests.harness.formats import decode_blob, encode_blob
from tests.harness.maintenance import UnlinkOrder
from tests.harness.names import GroupName, chunk_path, namespace_path, parse_snapshot_path
from tests.harness.world import World
from tests.harness.writer import DatastoreWriter

_KIBIBYTE = 1024
_CHUNK = 64 * _KIBIBYTE
_GROUPS = ("vm/100", "vm/101", "ct/200", "host/alpha", "host/beta.example")
_NAMESPACES = ("", "", "", "production", "production/databases", "lab")
_LARGEST_NUMBER = 2**31
# The first system call that is made after the answer: of the syncfs that ends a backup.
_AFTER_THE_LAST_RENAME = "datastore.open"


@dataclass(frozen=True, slots=True)
class Operation:
    """Something that PBS does: `run` does it once, as the random choices say."""

    name: str
    weight: int
    run: Callable[[World, random.Random], None]


OPERATIONS: dict[str, Operation] = {}


def operation(
    weight: int,
) -> Callable[[Callable[[World, random.Random], None]], Callable[[World, random.Random], None]]:
    """Enter a function into OPERATIONS, under its name in words; any module may."""

    def enter(run: Callable[[World, random.Random], None]) -> Callable[[World, random.Random], None]:
        name = run.__name__.replace("_", " ")
        OPERATIONS[name] = Operation(name, weight, run)
        return run

    return enter


def any_operation(world: World, choice: random.Random) -> None:
    """Do one operation, the frequent ones more often."""
    operations = list(OPERATIONS.values())
    (chosen,) = choice.choices(operations, [operation.weight for operation in operations])
    chosen.run(world, choice)


def _plan(choice: random.Random) -> BackupPlan:
    """Small backups with everything in them: many operations say more than many bytes."""
    images = choice.randint(0, 2)
    archives = choice.randint(0 if images else 1, 2)
    return BackupPlan(
        images=tuple(
            ImagePlan(f"drive-scsi{number}.img", choice.randint(1, 12) * _CHUNK - choice.choice((0, 1, 512)), _CHUNK)
            for number in range(images)
        ),
        archives=tuple(
            ArchivePlan(name, choice.randint(1, 400) * _KIBIBYTE, _CHUNK)
            for name in ("root.pxar", "catalog.pcat1")[:archives]
        ),
        blobs=(BlobPlan("qemu-server.conf", choice.randint(1, 3000)),) if choice.random() < 0.8 else (),
        changed_fraction=choice.choice((0.0, 0.2, 0.5, 1.0)),
    )


@dataclass(frozen=True, slots=True)
class _BackupChoice:
    """The details of one backup."""

    group: str
    namespace: str
    generation: int
    plan: BackupPlan
    is_encrypted: bool
    compress: bool
    data: str | None

    @property
    def group_path(self) -> str:
        return GroupName.parse(self.group, self.namespace).path


def _choose_backup(world: World, choice: random.Random, group: str | None = None) -> _BackupChoice:
    chosen = group or choice.choice(_GROUPS)
    namespace = choice.choice([name for name in _NAMESPACES if not name or name in world.model.namespaces])
    return _BackupChoice(
        chosen,
        namespace,
        world.next_generation(f"{namespace}:{chosen}"),
        _plan(choice),
        choice.random() < 0.2,
        choice.random() < 0.8,
        choice.choice((None, None, "shared data")),
    )


def _back_up(world: World, chosen: _BackupChoice, on_answer: Callable[[], None] | None = None) -> int:
    written = world.pbs(
        "backup",
        chosen.group,
        namespace=chosen.namespace,
        plan=chosen.plan,
        generation=chosen.generation,
        encrypted=chosen.is_encrypted,
        compress=chosen.compress,
        data=chosen.data,
        on_stop=on_answer,
        stop_at=_AFTER_THE_LAST_RENAME if on_answer else None,
    )
    world.model.wrote(written)
    return sum(file.listed.size for file in written.files)


@operation(weight=30)
def backup(world: World, choice: random.Random) -> None:
    """Back a group up, in full or incrementally."""
    run_backup(world, choice)


def run_backup(world: World, choice: random.Random, on_answer: Callable[[], None] | None = None) -> bool:
    """Back a group up; whether it was finished. `on_answer` is called when the last rename of the manifest has been
    answered, and before anything else is done."""
    chosen = _choose_backup(world, choice)
    return world.perform("backup", [chosen.group_path], lambda: _back_up(world, chosen, on_answer))


@operation(weight=6)
def several_backups_at_once(world: World, choice: random.Random) -> None:
    """Back different groups up at the same time, each with a writer of its own."""
    groups = choice.sample(_GROUPS, choice.randint(2, 4))
    chosen = [_choose_backup(world, choice, group) for group in groups]
    threads = [threading.Thread(target=_one_of_several, args=(world, order)) for order in chosen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _one_of_several(world: World, chosen: _BackupChoice) -> None:
    world.perform("backup beside others", [chosen.group_path], lambda: _back_up(world, chosen))


@operation(weight=6)
def aborted_backup(world: World, choice: random.Random) -> None:
    """A backup whose client goes away while indexing, or between the two manifests."""
    chosen = _choose_backup(world, choice)
    stage = choice.choice(get_args(AbortStage))

    def work() -> None:
        world.pbs(
            "abort_backup",
            chosen.group,
            stage=stage,
            namespace=chosen.namespace,
            plan=chosen.plan,
            generation=chosen.generation,
            data=chosen.data,
        )
        world.model.came_and_went(chosen.group_path)

    # Between its manifests it may have been published, and have been removed again.
    world.model.departures.open(chosen.group_path)
    world.perform(f"backup aborted {stage}", [chosen.group_path], work)


def any_snapshot(world: World, choice: random.Random) -> str | None:
    snapshots = sorted(world.model.snapshots)
    return choice.choice(snapshots) if snapshots else None


def any_group(world: World, choice: random.Random) -> GroupName | None:
    path = any_snapshot(world, choice)
    return None if path is None else parse_snapshot_path(path).group


@operation(weight=6)
def notes(world: World, choice: random.Random) -> None:
    """Set a snapshot's notes or its verify state: a replaced manifest."""
    path = any_snapshot(world, choice)
    if path is None:
        return
    number = choice.randrange(_LARGEST_NUMBER)

    def work() -> None:
        raw = (
            world.pbs("set_notes", path, f"note {number}") if number % 2 else world.pbs("set_verify_state", path, "ok")
        )
        world.model.changed_manifest(path, raw)

    world.perform("notes" if number % 2 else "verify state", [path], work)


@operation(weight=4)
def protection(world: World, choice: random.Random) -> None:
    """Protect a snapshot, or end it."""
    path = any_snapshot(world, choice)
    if path is None:
        return
    protect = choice.random() < 0.4

    def work() -> None:
        world.pbs("set_protected", path, protected=protect)
        world.model.changed(path, is_protected=protect)

    world.perform("protect" if protect else "unprotect", [path], work)


@operation(weight=4)
def client_log(world: World, choice: random.Random) -> None:
    """Add the client's log after the finish."""
    path = any_snapshot(world, choice)
    if path is None or world.model.snapshots[path].has_log:
        return
    text = choice.randbytes(choice.randint(0, 2000))

    def work() -> None:
        world.pbs("upload_log", path, text)
        world.model.changed(path, has_log=True)

    world.perform("client log", [path], work)


@operation(weight=3)
def group_notes_or_owner(world: World, choice: random.Random) -> None:
    """Change what belongs to a group."""
    group = any_group(world, choice)
    if group is None:
        return
    number = choice.randrange(_LARGEST_NUMBER)
    name = f"{group.backup_type}/{group.backup_id}"

    def work() -> None:
        if number % 2:
            world.pbs("set_group_notes", name, f"group note {number}", namespace=group.namespace)
        else:
            # Changed and changed back: the next backup comes from the first owner.
            world.pbs("change_owner", name, f"user{number}@pbs", namespace=group.namespace)
            world.pbs("change_owner", name, "root@pam", namespace=group.namespace)

    world.perform("group notes" if number % 2 else "change of owner", [group.path], work)


@operation(weight=10)
def forget(world: World, choice: random.Random) -> None:
    """Forget a snapshot, its files in one of the orders."""
    path = any_snapshot(world, choice)
    if path is None or world.model.snapshots[path].is_protected:
        return
    order = choice.choice(get_args(UnlinkOrder))

    def work() -> None:
        world.pbs("forget", path, order, seed=choice.randrange(_LARGEST_NUMBER))
        world.model.removed_below(path)

    world.perform(f"forget, {order}", [path], work, removes=True)


@operation(weight=4)
def prune(world: World, choice: random.Random) -> None:
    """Keep the last of a group."""
    group = any_group(world, choice)
    if group is None:
        return
    keep = choice.randint(1, 3)

    def work() -> None:
        name = f"{group.backup_type}/{group.backup_id}"
        for forgotten in world.pbs("prune", name, keep, namespace=group.namespace):
            world.model.removed_below(forgotten.path)

    world.perform("prune", [group.path], work, removes=True)


@operation(weight=4)
def forget_group(world: World, choice: random.Random) -> None:
    """Remove a group with all that is in it."""
    group = any_group(world, choice)
    if group is None or any(world.model.snapshots[path].is_protected for path in world.model.below(group.path)):
        return
    order = choice.choice(get_args(UnlinkOrder))

    def work() -> None:
        name = f"{group.backup_type}/{group.backup_id}"
        world.pbs("forget_group", name, namespace=group.namespace, order=order, seed=choice.randrange(_LARGEST_NUMBER))
        world.model.removed_below(group.path)

    world.perform("forget group", [group.path], work, removes=True)


@operation(weight=5)
def make_namespace(world: World, choice: random.Random) -> None:
    """Make a namespace that is not there."""
    missing = [name for name in _NAMESPACES if name and name not in world.model.namespaces]
    if not missing:
        return
    name = choice.choice(missing)

    def work() -> None:
        for count in range(1, name.count("/") + 2):
            part = "/".join(name.split("/")[:count])
            if part not in world.model.namespaces:
                world.pbs("create_namespace", part)
        world.model.made_namespace(name)

    world.perform("make namespace", [namespace_path(name.split("/")[0])], work)


@operation(weight=2)
def remove_namespace(world: World, choice: random.Random) -> None:
    """Remove a namespace with all groups in it."""
    if not world.model.namespaces:
        return
    name = choice.choice(sorted(world.model.namespaces))
    path = namespace_path(name)
    if any(world.model.snapshots[inner].is_protected for inner in world.model.below(path)):
        return

    def work() -> None:
        world.pbs("remove_namespace", name, delete_groups=True)
        world.model.removed_below(path)
        if (world.backing / path).exists():
            world.model.open_scopes.add(path)

    world.perform("remove namespace", [path], work, removes=True)


@operation(weight=3)
def move_group(world: World, choice: random.Random) -> None:
    """Rename a group's tree, within its namespace or into another."""
    group = any_group(world, choice)
    if group is None:
        return
    namespace = choice.choice(sorted({"", *world.model.namespaces}))
    name = f"{group.backup_type}/moved-{choice.randint(0, 3)}"
    target = GroupName.parse(name, namespace).path
    if (world.backing / target).exists():
        return

    def work() -> None:
        world.pbs(
            "move_group",
            f"{group.backup_type}/{group.backup_id}",
            name,
            namespace=group.namespace,
            target_namespace=namespace,
        )
        world.model.moved(group.path, target)

    world.perform("move group", [group.path, target], work)


@operation(weight=2)
def move_namespace(world: World, choice: random.Random) -> None:
    """Rename a namespace's tree."""
    tops = sorted(name for name in world.model.namespaces if "/" not in name)
    if not tops:
        return
    name, target = choice.choice(tops), f"renamed-{choice.randint(0, 3)}"
    if target in world.model.namespaces:
        return

    def work() -> None:
        world.pbs("move_namespace", name, target)
        world.model.moved(namespace_path(name), namespace_path(target))

    world.perform("move namespace", [namespace_path(name), namespace_path(target)], work)


@operation(weight=8)
def garbage_collection(world: World, choice: random.Random) -> None:
    """Touch every chunk that an index names and unlink every other."""

    def work() -> None:
        done = world.pbs("collect_garbage", age_seconds=0, safety_seconds=0)
        world.statistics.checks["chunks unlinked by garbage collections"] += len(done.removed)

    world.perform("garbage collection", [], work)


@operation(weight=3)
def rot_and_verify(world: World, choice: random.Random) -> None:
    """Let a chunk rot on the disk; verification renames it to .bad; a backup may bring it again later."""
    path = any_snapshot(world, choice)
    if path is None:
        return
    digest = rot_a_chunk(world, choice, path)
    if digest is None:
        return

    def work() -> None:
        world.pbs("verify", path)
        raw = (world.backing / path / "index.json.blob").read_bytes()
        world.model.changed_manifest(path, raw)

    world.perform("verify that finds a corrupt chunk", [path], work)
    if choice.random() < 0.7:
        bring_again(world, digest, recompress=choice.random() < 0.5)


def rot_a_chunk(world: World, choice: random.Random, path: str) -> str | None:
    """Change a byte of a chunk behind the mirror's back, as a disk does; gives its digest."""
    snapshot = world.look().finished.get(path)
    if snapshot is None or not snapshot.chunks:
        return None
    digest = choice.choice(sorted(snapshot.chunks))
    file = world.backing / chunk_path(digest)
    try:
        world.keep_good_chunk(digest, file.read_bytes())
        _rot_last_byte(file)
    except OSError:
        if world.has_power:
            raise
        return None  # on a disk without power nothing rots
    world.model.rotten.add(digest)
    world.model.healed.discard(digest)
    world.drop_cached_pages(chunk_path(digest))
    world.statistics.count_fault("bit rot in a chunk on the disk")
    return digest


def _rot_last_byte(file: Path) -> None:
    with open(file, "r+b") as chunk:
        position = os.fstat(chunk.fileno()).st_size - 1
        chunk.seek(position)
        byte = chunk.read(1)
        chunk.seek(position)
        chunk.write(bytes([byte[0] ^ 0x55]))


def bring_again(world: World, digest: str, *, recompress: bool = False) -> None:
    """What the next backup does about a quarantined chunk: it is inserted anew, perhaps by a client that compresses
    otherwise, so that the object in the bucket has to be replaced."""
    raw = world.good_chunk(digest)
    if recompress:
        raw = compressed_otherwise(raw)

    def work() -> None:
        # One that no verification has taken away is only touched: it has its size.
        if world.pbs("insert_chunk", digest, raw) == "inserted":
            world.model.healed.add(digest)

    kind = " with other bytes" if raw != world.good_chunk(digest) else ""
    world.perform(f"chunk uploaded again after quarantine{kind}", [], work)


def compressed_otherwise(raw: bytes) -> bytes:
    """The same chunk, compressed if it was not, and the reverse; itself where that cannot be (encrypted, or too little
    to be gained). Raises FormatError."""
    content = decode_blob(raw).content
    if content is None:
        return raw
    plain = encode_blob(content, compress=False)
    return plain if plain != raw else encode_blob(content, compress=True)


@operation(weight=5)
def sync_job(world: World, choice: random.Random) -> None:
    """Pull snapshots from another datastore; some are here already and have changed there."""
    source = world.sync_source
    name = choice.choice(("vm/900", "ct/901"))
    plan = _plan(choice)
    with DatastoreWriter(source, world.seed + 1) as writer:
        if not (source / ".chunks").exists():
            writer.create(chunk_directories="when needed")
        there = writer.snapshots(name) if (source / name).exists() else []
        if not there or choice.random() < 0.6:
            there.append(writer.backup(name, plan=plan, generation=world.next_generation(f"source:{name}")).name)
        else:
            writer.set_notes(there[-1], f"note {choice.randrange(_LARGEST_NUMBER)}")
    snapshot = there[-1]

    def work() -> None:
        world.pbs("pull", source, snapshot)
        world.pulled(snapshot.path)

    world.perform("sync job", [snapshot.group.path], work)


def remove_source(source: Path) -> None:
    """Forget the other datastore."""
    shutil.rmtree(source, ignore_errors=True)
