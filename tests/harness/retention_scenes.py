"""What retention has to cope with: removals in large numbers and by hand, moves, chunks that are replaced, a store that
refuses to delete. Operations and accidents, entered among the others."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable

from botocore.exceptions import BotoCoreError, ClientError

from tests.harness.accidents import accident, some_operations
from tests.harness.content import BackupPlan, ImagePlan
from tests.harness.formats import MANIFEST_NAME
from tests.harness.names import GroupName, chunk_path, parse_snapshot_path
from tests.harness.operations import OPERATIONS, any_group, any_snapshot, compressed_otherwise, operation, run_backup
from tests.harness.world import World

_TINY_CHUNK = 512
_FEWEST_CHUNKS, _MOST_CHUNKS = 1000, 3000
# Thousands of chunks through a mount whose disk may be slow.
_PATIENCE_WITH_MANY_CHUNKS = 500.0
_GROUP_OF_MANY = "host/many"
_WAIT_SECONDS = 20.0
_HOLD_SECONDS = 5.0


@operation(weight=3)
def move_snapshot(world: World, choice: random.Random) -> None:
    """Rename one snapshot's directory into another group."""
    path, target = any_snapshot(world, choice), any_group(world, choice)
    if path is None or target is None:
        return
    new = f"{target.path}/{path.rpartition('/')[2]}"
    if (world.backing / new).exists():
        return

    def work() -> None:
        world.pbs("move_snapshot", path, f"{target.backup_type}/{target.backup_id}", namespace=target.namespace)
        world.model.moved(path, new)

    world.perform("move snapshot", [path, new], work)


@operation(weight=3)
def chunk_compressed_otherwise(world: World, choice: random.Random) -> None:
    """A client with another setting inserts a chunk again: the same name, other bytes."""
    found = world.look().finished
    digests = sorted({digest for snapshot in found.values() for digest in snapshot.chunks})
    if not digests:
        return
    digest = choice.choice(digests)

    def work() -> None:
        raw = compressed_otherwise((world.backing / chunk_path(digest)).read_bytes())
        world.pbs("insert_chunk", digest, raw)

    world.perform("chunk inserted with other compression", [], work)


@operation(weight=1)
def thousands_of_chunks_collected(world: World, choice: random.Random) -> None:
    """A backup of very many small chunks is made and forgotten, and garbage collection unlinks them all at once."""
    count = choice.randint(_FEWEST_CHUNKS, _MOST_CHUNKS)
    plan = BackupPlan(
        images=(ImagePlan("drive-scsi9.img", count * _TINY_CHUNK, _TINY_CHUNK),), changed_fraction=1.0, zero_fraction=0
    )
    group = GroupName.parse(_GROUP_OF_MANY)

    def back_up() -> int:
        generation = world.next_generation(f":{_GROUP_OF_MANY}")
        written = world.pbs("backup", _GROUP_OF_MANY, plan=plan, generation=generation)
        world.model.wrote(written)
        return sum(file.listed.size for file in written.files)

    if not world.perform("backup of many chunks", [group.path], back_up, patience=_PATIENCE_WITH_MANY_CHUNKS):
        return
    if choice.random() < 0.5:
        world.mirror.wait(_WAIT_SECONDS)
    remove_group(world, group)
    collect_garbage(world)


@operation(weight=2)
def manifest_of_a_protected_snapshot_removed(world: World, choice: random.Random) -> None:
    """By hand, and nothing else of it: the bucket keeps the snapshot until the directory is gone too."""
    candidates = [path for path, held in world.model.snapshots.items() if held.is_protected]
    if not candidates:
        return
    path = choice.choice(sorted(candidates))
    if not _stands(world, path, (MANIFEST_NAME, ".protected")):
        return

    def unlink() -> None:
        (world.datastore / path / MANIFEST_NAME).unlink()
        world.model.removed_below(path)

    if not world.perform("manifest of a protected snapshot removed by hand", [path], unlink):
        return
    world.mirror.wait(_WAIT_SECONDS)
    if not _stands(world, path, (MANIFEST_NAME,), unreadable=True):
        world.statistics.violate(
            [f"P5 .cnt/{path}: it was protected, its directory is there, and its manifest is gone from the bucket"]
        )
    world.statistics.checks["protected snapshots without a manifest"] += 1
    world.perform(
        "directory of a protected snapshot removed by hand", [path], lambda: shutil.rmtree(world.datastore / path)
    )


def _stands(world: World, path: str, names: Iterable[str], *, unreadable: bool = False) -> bool:
    """Whether objects stand in the bucket; `unreadable` when the store cannot be asked."""
    try:
        return all(world.auditor.bucket.head(f".cnt/{path}/{name}") is not None for name in names)
    except (ClientError, BotoCoreError):
        return unreadable


@operation(weight=2)
def administrator_looks(world: World, choice: random.Random) -> None:
    """What is held must stand in the bucket; sometimes it is approved."""
    if world.retention.max_delete_fraction is None:
        return
    try:
        world.statistics.violate(world.administrator.look())
    except (ClientError, BotoCoreError):
        return  # the store is down: another time
    if world.administrator.held and choice.random() < 0.5:
        world.administrator.approve()


def remove_group(world: World, group: GroupName) -> bool:
    """Forget a group with all that is in it; whether that was done."""

    def work() -> None:
        world.pbs("forget_group", f"{group.backup_type}/{group.backup_id}", namespace=group.namespace)
        world.model.removed_below(group.path)

    return world.perform("forget group", [group.path], work, patience=_PATIENCE_WITH_MANY_CHUNKS, removes=True)


def collect_garbage(world: World) -> None:
    """Have everything unlinked that no index names."""

    def work() -> None:
        done = world.pbs("collect_garbage", age_seconds=0, safety_seconds=0)
        world.statistics.checks["chunks unlinked by garbage collections"] += len(done.removed)

    world.perform("garbage collection", [], work, patience=_PATIENCE_WITH_MANY_CHUNKS)


@accident(weight=2)
def everything_removed_at_once(world: World, choice: random.Random) -> None:
    """Somebody who has got hold of PBS forgets all there is; where large removals are held, all of it stays."""
    for _ in range(choice.randint(1, 3)):
        run_backup(world, choice)
    world.settle()
    published = {key[len(".cnt/") : -len(MANIFEST_NAME) - 1] for key in world.auditor.bucket.list(".cnt/")}
    published &= {*world.model.snapshots}
    groups = sorted({parse_snapshot_path(path).group for path in world.model.snapshots})
    with world.uploader_stopped():
        for group in groups:
            if not any(world.model.snapshots[path].is_protected for path in world.model.below(group.path)):
                remove_group(world, group)
    removed = published - {*world.model.snapshots}
    world.statistics.count_fault("everything removed at once")
    fraction = world.retention.max_delete_fraction
    if fraction is None or len(removed) <= fraction * len(published):
        some_operations(world, choice)
        return
    # Nothing disturbs the mirror: it was settled, and no step is armed.
    world.mirror.wait(_WAIT_SECONDS)
    world.statistics.violate(
        f"P5 .cnt/{path}: {len(removed)} of {len(published)} snapshots went at once, and it is gone from the bucket"
        for path in sorted(removed)
        if not _stands(world, path, (MANIFEST_NAME,), unreadable=True)
    )
    world.statistics.violate(world.administrator.look())
    world.statistics.checks["large removals that must be held"] += 1
    some_operations(world, choice)


@accident(weight=4, needs="proxy")
def gone_while_it_is_published(world: World, choice: random.Random) -> None:
    """A snapshot leaves, or gets another name, while one of its objects is on its way into the bucket."""
    pattern = choice.choice(("*/.chunks/*", "*/.chunks/*", "*/.cnt/*.?idx", "*/.cnt/*/index.json.blob", "*/owner"))
    if choice.random() < 0.5:
        # No record of the journal says anything of it.
        with world.without_mirror():
            is_made = run_backup(world, choice)
            rule = world.proxy.hold("PUT", pattern)
    else:
        rule = world.proxy.hold("PUT", pattern)
        is_made = run_backup(world, choice)
    if is_made and rule.reached.wait(_HOLD_SECONDS):
        leaves = choice.choice(
            ("move group", "move group", "move snapshot", "forget", "forget group", "move namespace")
        )
        OPERATIONS[leaves].run(world, choice)
        # The mirror has to see that before what it sends gets on.
        world.mirror.wait(1)
    rule.release()
    world.statistics.count_fault("snapshots left while one was published")


@accident(weight=4, needs="proxy")
def deletions_refused(world: World, choice: random.Random) -> None:
    """The store refuses to delete some objects and deletes the others, until somebody changes its mind."""
    for _ in range(choice.randint(1, 2)):
        run_backup(world, choice)
    path = any_snapshot(world, choice)
    with world.refusing.refusing(any_refused_pattern(path, choice)):
        before = world.refusing.refused
        world.mirror.wait(_WAIT_SECONDS)
        some_operations(world, choice)
        group = None if path is None else parse_snapshot_path(path).group
        # It may have gone meanwhile, with its last snapshot or with its namespace.
        left = [] if group is None else list(world.model.below(group.path))
        if group is not None and left and not any(world.model.snapshots[path].is_protected for path in left):
            remove_group(world, group)
        collect_garbage(world)
        world.mirror.wait(_WAIT_SECONDS)
    world.statistics.count_fault("store: deletion of a single object refused", world.refusing.refused - before)


def any_refused_pattern(path: str | None, choice: random.Random) -> str:
    """A part of all chunks, or a file of a snapshot; no manifest: alone in its request, it would be taken for a store
    that refuses everything, and be waited out."""
    if path is None or choice.random() < 0.5:
        return f"*/.chunks/{choice.randrange(16):x}*"
    return f"*/{path}/{choice.choice(('qemu-server.conf.blob', 'root.pxar.didx', 'drive-scsi0.img.fidx'))}"
