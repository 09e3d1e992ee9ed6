"""The command `mirrorfs handover`: a bucket is made ready for a PBS."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable

import click

from mirrorfs.cli.bucket_reading import Stores, parallel_option, run_with_stores
from mirrorfs.cli.errors import Failure
from mirrorfs.cli.mirror_of import MirrorCommand, MirrorURL
from mirrorfs.cli.options import store_options
from mirrorfs.cli.ranges import FiniteRange
from mirrorfs.cli.verify import shown_progress
from mirrorfs.cli.wait import ask_patiently, lines_of_problems
from mirrorfs.database.directory import StateDirectory
from mirrorfs.database.errors import DatabaseError
from mirrorfs.datastore.quoting import cut
from mirrorfs.handover.commands import pbs_commands, problem_with_endpoint
from mirrorfs.handover.errors import HandoverRefused
from mirrorfs.handover.handing_over import HandedOver, Wishes, hand_over
from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.url import StoreAddress, StoreOptions
from mirrorfs.output import say
from mirrorfs.replay.source import NothingThere, Source, find_place
from mirrorfs.replication.questions import ask
from mirrorfs.supervision.registry import RunningMount, running_mounts, state_directory_of

_STATUS_SECONDS = 5.0
_NAMED = 10


@click.command("handover", cls=MirrorCommand, short_help="Make a bucket ready for a Proxmox Backup Server.")
@click.argument("address", metavar="URL", type=MirrorURL())
@click.option(
    "--stop",
    is_flag=True,
    help="Also while a mirror works there: one of this host first publishes what is left; any other stops within a "
    "minute.",
)
@click.option("--timeout", type=FiniteRange(min=0), metavar="SECONDS", help="With --stop: wait so long at most.")
@click.option("--despite-damage", is_flag=True, help="Also if not everything there can be restored.")
@click.option(
    "--remove-own",
    is_flag=True,
    help="Remove what mirrorfs keeps there for itself, deleted snapshots among it; not the claim.",
)
@click.option("--dry-run", is_flag=True, help="Check, and print the commands; change nothing.")
@parallel_option("objects")
@store_options
def command(
    address: StoreAddress,
    stop: bool,
    timeout: float | None,
    despite_damage: bool,
    remove_own: bool,
    dry_run: bool,
    parallel: int,
    store: StoreOptions,
) -> None:
    """Make the bucket at URL ready for a PBS 4, and say what to type there.

    URL is s3://BUCKET/NAME, or a datastore by name or path: then its mirror is meant, as its settings say.
    NAME becomes the name of the datastore, so it must have 3 to 32 characters and no slash. First everything but the
    chunks is read and checked, as 'mirrorfs verify' does. Then the claim in the bucket says that it is handed over: no
    mirror writes there any more, and a mount to this name is refused until 'mirrorfs takeback'. At last .in-use goes,
    which would keep the PBS out. It may be interrupted and given again.

    From then on the bucket is the PBS's: its garbage collection deletes every chunk that no snapshot in its datastore
    needs, also those of deleted snapshots that mirrorfs keeps (delete_after), and 'datastore remove --destroy-data'
    there empties the whole name.

    \b
    Examples:
      mirrorfs umount --drain /mnt/datastore/store1
      mirrorfs handover s3://backups/store1 --endpoint-url https://s3.example.com
      mirrorfs handover store1 --dry-run
      mirrorfs handover s3://backups/store1 --stop --remove-own

    Exit codes: 0 it is handed over, or (--dry-run) could be; 1 it is not; 2 wrong usage.
    """
    wishes = Wishes(stop, despite_damage, remove_own, dry_run)
    running = _mirrors_to(address)
    if running and not dry_run:
        _drain(running, address, timeout, stop=stop)
    client = S3Client(address.bucket, store, parallelism=parallel)
    found = _run(client, address, wishes, running, timeout, parallel)
    _tell(found, address, wishes)
    if found.used_by is None:
        _tell_commands(address, store, client)


def _drain(running: Iterable[RunningMount], address: StoreAddress, timeout: float | None, *, stop: bool) -> None:
    for mount in running:
        if not stop:
            raise Failure(
                f"{mount.datastore} is mounted, and mirrored to {address}. Unmount it first ('mirrorfs umount --drain "
                f"{mount.mountpoint}'), or give --stop: then it stays mounted, and is mirrored no more"
            )
        answer = ask_patiently(mount.mountpoint, timeout)
        if "error" in answer:
            # It does nothing any more, perhaps because this command was interrupted.
            say(f"{mount.datastore} is not mirrored now: {answer['error']}", err=True)
        elif answer["problems"]:
            raise Failure(
                f"some of {mount.datastore} cannot be published. Unmount it, to hand over what is:",
                *lines_of_problems(mount.mountpoint, answer["problems"]),
            )


def _mirrors_to(address: StoreAddress) -> list[RunningMount]:
    """Return the mounts on this machine that mirror to this name, whatever their store."""
    try:
        mounts = running_mounts()
    except PermissionError:
        raise Failure(
            "mirrorfs has been mounted on this machine, and only root can see whether it mirrors there: run it as root"
        ) from None
    return [mount for mount in mounts if _place_of(mount) == (address.bucket, address.prefix)]


def _place_of(mount: RunningMount) -> tuple[str, str] | None:
    """Tell where a mount mirrors to: its uploader, or, if that does not answer, its state; None if it never did."""
    directory = state_directory_of(mount.mountpoint)
    try:
        status = ask(directory.control_socket, "status", _STATUS_SECONDS)
    except (TimeoutError, ConnectionError, FileNotFoundError):
        return _place_in_state(directory, mount)
    return str(status["bucket"]), str(status["prefix"])


def _place_in_state(directory: StateDirectory, mount: RunningMount) -> tuple[str, str] | None:
    try:
        with Source(directory.path, find_place(directory.path)) as source:
            return None if source.identity is None else (source.identity.bucket, source.identity.prefix)
    except NothingThere:
        return None
    except DatabaseError as error:
        raise Failure(f"it is not known where {mount.datastore} is mirrored to: {error}. Unmount it first") from error


def _run(
    client: S3Client,
    address: StoreAddress,
    wishes: Wishes,
    running: list[RunningMount],
    timeout: float | None,
    parallel: int,
) -> HandedOver:
    def stop_mirrors() -> None:
        for mount in running:
            # Whoever waits has the claim looked at.
            if "error" not in ask_patiently(mount.mountpoint, timeout):
                raise HandoverRefused(
                    f"{mount.datastore} is mirrored to the same name in another store, or its mirror does not hear of "
                    "what was done: unmount it"
                )

    progress = shown_progress()

    def run(stores: Stores) -> Awaitable[HandedOver]:
        return hand_over(
            stores.reading,
            address,
            wishes,
            stop_mirrors=stop_mirrors,
            observer=progress,
            listing_store=stores.listing,
            parallelism=parallel,
        )

    return run_with_stores(
        client,
        parallel,
        run,
        shown=progress.shown(),
        going_on=lambda: " Give the same command again to go on.",
    )


def _tell(found: HandedOver, address: StoreAddress, wishes: Wishes) -> None:
    snapshots = sum(group.snapshots for group in found.report.groups)
    if found.used_by is not None:
        say(f"{address} was handed over before, and {cut(found.used_by)} has it now. Nothing was changed.")
        return
    damaged = len(found.report.damaged_snapshots)
    state = f"{damaged} of them damaged" if damaged else "all of them good as far as a look without the chunks tells"
    did = "could be handed over" if wishes.dry_run else "is handed over"
    say(f"{address} {did}: {snapshots} snapshots, {state}.")
    if found.removed:
        say(f"{found.removed} objects of mirrorfs' own are removed.")
    if found.unfinished:
        say(
            f"{len(found.unfinished)} snapshots are not finished: forget them in the PBS, or its verification of them "
            "fails.",
            *(f"  {snapshot.path}" for snapshot in found.unfinished[:_NAMED]),
        )
    if found.kept_deleted and not found.removed:
        say(
            f"{found.kept_deleted} deleted snapshots are kept there (delete_after). The PBS does not see them, and its "
            "first garbage collection deletes their chunks: restore before what you may need ('mirrorfs restore "
            f"{address} DIR --deleted')."
        )


def _tell_commands(address: StoreAddress, options: StoreOptions, client: S3Client) -> None:
    problem = problem_with_endpoint(client.endpoint)
    say("")
    if problem is not None:
        say(problem, "")
    commands = pbs_commands(address, options, client.endpoint, client.region)
    say(
        "On the PBS 4, as root, with a key of its own that may also write and delete (capitals are to be filled in):",
        *(f"  {line}" for line in commands),
        "",
        "WITHOUT --reuse-datastore true IT SUCCEEDS, SHOWS NOTHING, AND GARBAGE COLLECTION THEN DELETES ALL CHUNKS.",
        "If this PBS has had a datastore of that name before: 'systemctl restart proxmox-backup proxmox-backup-proxy' "
        "first, or the same happens.",
        "Before its first garbage collection see that it lists all snapshots. Never run one while a mirror is there.",
        "'datastore remove --destroy-data' there empties the whole name, what is mirrorfs' own included.",
        f"To have it back: 'mirrorfs takeback {address}'.",
    )
