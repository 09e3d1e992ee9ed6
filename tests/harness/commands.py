"""The harness by hand: `python -m tests.harness`, for an administrator who wants to try mirrorfs on his own store."""

from __future__ import annotations

import random
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click
from botocore.exceptions import BotoCoreError, ClientError

from tests.harness.auditor import Auditor, Violation, audit_continuously, audit_until_converged
from tests.harness.backup import BackupRefused, WrittenSnapshot
from tests.harness.bucket import open_bucket
from tests.harness.bulk import generate_bulk
from tests.harness.content import plan_of_size
from tests.harness.garbage_collection import DAY_SECONDS, SAFETY_SECONDS
from tests.harness.names import parse_snapshot_path
from tests.harness.process_lock import DatastoreBusy
from tests.harness.scan import compare_datastores, scan_snapshot
from tests.harness.writer import DatastoreWriter

_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}
Command = TypeVar("Command", bound=Callable[..., Any])


def _size(text: str) -> int:
    """Bytes, from a number with K, M or G behind it or not."""
    match = re.fullmatch(r"(\d+)([KMG]?)(iB|B)?", text)
    if match is None:
        raise click.BadParameter(f"{text} is not a size such as 64K, 200M or 1G")
    return int(match.group(1)) * _UNITS[match.group(2)]


class _Commands(click.Group):
    """Turns what an operation may fail with into one line and exit code 1, and lists commands as they are told here."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except (BackupRefused, DatastoreBusy) as error:
            raise click.ClickException(f"refused, as the server would: {error}") from error
        except (ClientError, BotoCoreError) as error:
            raise click.ClickException(f"the store fails: {error}") from error
        except OSError as error:
            raise click.ClickException(str(error)) from error
        except ValueError as error:
            raise click.UsageError(str(error)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Do to a datastore what Proxmox Backup Server does, and audit the mirror of it in a bucket.

    The writing commands take the datastore's path (the mount, or a plain directory) and issue the server's own
    system calls there. Everything that they write follows from --seed: the same commands with the same seed make
    the same bytes. No Proxmox Backup Server is needed, and none may use the same directory.

    The auditor shares no code with mirrorfs. It checks, and tells with each violation, these promises:

    \b
      P1  every snapshot in the bucket is complete, at every instant
      P2  the bucket holds just what the datastore does, once both are quiet
      P5  nothing that a snapshot needs is ever deleted
      P6  nothing damaged is ever stored

    \b
    A first round against your own store (credentials come from boto3's usual chain):
      mkdir /srv/try && python -m tests.harness create /srv/try
      mirrorfs mount /srv/try --to s3://mirror/try --endpoint-url https://store.example
      python -m tests.harness backup /srv/try vm/100 --size 200M --count 2
      python -m tests.harness audit s3://mirror/try --endpoint-url https://store.example \\
          --datastore /srv/try --deep --wait 60

    \b
    Then try to break it: kill mirrorfs or stop the store while a backup runs, damage a chunk (corrupt, verify,
    backup), forget and collect garbage (forget, gc), and let the auditor watch meanwhile (audit --for 600).
    Exit codes: 0 done and nothing wrong, 1 refused, failed or violations found, 2 wrong usage.
    """


def _seed_option(command: Command) -> Command:
    return click.option("--seed", default=0, show_default=True, help="All content follows from this number.")(command)


def _datastore_argument(command: Command) -> Command:
    return click.argument("datastore", type=click.Path(file_okay=False))(command)


@main.command()
@_datastore_argument
@click.option("--quick", is_flag=True, help="Leave the 65,536 chunk directories out; they come when needed.")
@click.option("--check-atime", is_flag=True, help="Do the atime check of newer servers too (takes a second).")
def create(datastore: str, quick: bool, check_atime: bool) -> None:
    """Make a datastore: .lock and 65,536 chunk directories, owned by backup:backup.

    \b
    Example: python -m tests.harness create /srv/try
    """
    with DatastoreWriter(datastore) as writer:
        writer.create("when needed" if quick else "all")
        click.echo(f"made the datastore {datastore}")
        if check_atime and not writer.check_access_times():
            raise click.ClickException(
                "utimensat does not move a chunk's atime alone: garbage collection would be refused"
            )
        if check_atime:
            click.echo("checked: utimensat moves a chunk's atime and leaves its mtime")


@main.command()
@_datastore_argument
@click.argument("group")
@_seed_option
@click.option(
    "--size", type=_size, default="16M", show_default=True, help="Bytes to back up: half image, half archive."
)
@click.option("--chunk-size", type=_size, default="4M", show_default=True, help="64K to 4M in real life.")
@click.option("--namespace", default="", help="Such as a/b.")
@click.option("--count", default=1, show_default=True, help="How many backups, one after the other.")
@click.option("--threads", default=1, show_default=True, help="How many insert chunks at once.")
@click.option("--encrypted", is_flag=True, help="Chunks and blobs look encrypted; the manifest never is.")
@click.option("--no-compress", is_flag=True, help="Store chunks as they are: same names, other bytes.")
@click.option("--data", default=None, help="Name of the data; groups given the same name share all chunks.")
@click.option(
    "--generation", type=int, default=None, help="Which generation (hours from 2026-01-01); default: the next."
)
@click.option("--owner", default="root@pam", show_default=True)
def backup(
    datastore: str,
    group: str,
    seed: int,
    size: int,
    chunk_size: int,
    namespace: str,
    count: int,
    threads: int,
    encrypted: bool,
    no_compress: bool,
    data: str | None,
    generation: int | None,
    owner: str,
) -> None:
    """Back up the next generation of GROUP (TYPE/ID): in full the first time, incrementally afterwards.

    \b
    Example: python -m tests.harness backup /srv/try vm/100 --size 300M --count 3
    """
    with DatastoreWriter(datastore, seed, threads=threads, owner=owner) as writer:
        for number in range(count):
            started = time.monotonic()
            written = writer.backup(
                group,
                namespace=namespace,
                plan=plan_of_size(size, chunk_size),
                generation=None if generation is None else generation + number,
                encrypted=encrypted,
                compress=not no_compress,
                data=data,
            )
            _tell_backup(written, time.monotonic() - started)


def _tell_backup(written: WrittenSnapshot, seconds: float) -> None:
    known = len(written.chunks) - len(written.inserted) - len(written.touched)
    kind = "encrypted-looking backup" if written.is_encrypted else "backup"
    click.echo(
        f"{kind} {written.path}: {len(written.files)} files, {len(written.chunks)} chunks "
        f"({len(written.inserted)} new, {len(written.touched)} found, {known} known) in {seconds:.1f} s"
    )


@main.command()
@_datastore_argument
@click.argument("group")
@_seed_option
@click.option("--between-manifests", is_flag=True, help="Instead of while an index is open and mapped.")
@click.option("--namespace", default="", help="Such as a/b.")
def abort(datastore: str, group: str, seed: int, between_manifests: bool, namespace: str) -> None:
    """A backup whose client goes away; its directory goes again, its chunks stay until gc.

    \b
    Example: python -m tests.harness abort /srv/try vm/100 --between-manifests
    """
    with DatastoreWriter(datastore, seed) as writer:
        stage = writer.abort_backup(
            group, stage="between manifests" if between_manifests else "indexing", namespace=namespace
        )
        click.echo(f"aborted {stage.path}")


@main.command()
@_datastore_argument
@click.argument("snapshot")
@click.argument("text")
def notes(datastore: str, snapshot: str, text: str) -> None:
    """Set a snapshot's notes, by a replaced manifest.

    \b
    Example: python -m tests.harness notes /srv/try vm/100/2026-01-01T00:00:00Z "before the upgrade"
    """
    with DatastoreWriter(datastore) as writer:
        writer.set_notes(snapshot, text)
    click.echo(f"set the notes of {snapshot}")


@main.command("group-notes")
@_datastore_argument
@click.argument("group")
@click.argument("text")
@click.option("--namespace", default="", help="Such as a/b.")
def group_notes(datastore: str, group: str, text: str, namespace: str) -> None:
    """Set the notes of a group (TYPE/ID).

    \b
    Example: python -m tests.harness group-notes /srv/try vm/100 "the mail server"
    """
    with DatastoreWriter(datastore) as writer:
        writer.set_group_notes(group, text, namespace=namespace)
    click.echo(f"set the notes of {group}")


@main.command()
@_datastore_argument
@click.argument("group")
@click.argument("name")
@click.option("--namespace", default="", help="Such as a/b.")
def owner(datastore: str, group: str, name: str, namespace: str) -> None:
    """Give a group (TYPE/ID) another owner; backups by others (--owner) are refused then.

    \b
    Example: python -m tests.harness owner /srv/try vm/100 backup@pbs
    """
    with DatastoreWriter(datastore) as writer:
        writer.change_owner(group, name, namespace=namespace)
    click.echo(f"{group} belongs to {name} now")


@main.command()
@_datastore_argument
@click.argument("snapshot")
@click.option("--off", is_flag=True, help="Remove the protection.")
def protect(datastore: str, snapshot: str, off: bool) -> None:
    """Protect a snapshot from being forgotten.

    \b
    Example: python -m tests.harness protect /srv/try vm/100/2026-01-01T00:00:00Z
    """
    with DatastoreWriter(datastore) as writer:
        writer.set_protected(snapshot, protected=not off)
    click.echo(f"{snapshot} is {'not ' if off else ''}protected now")


@main.command()
@_datastore_argument
@click.argument("snapshot")
@click.option("--text", default="backup finished\n", help="What the log says.")
def log(datastore: str, snapshot: str, text: str) -> None:
    """Add the client's log to a finished snapshot.

    \b
    Example: python -m tests.harness log /srv/try vm/100/2026-01-01T00:00:00Z
    """
    with DatastoreWriter(datastore) as writer:
        writer.upload_log(snapshot, text.encode())
    click.echo(f"added client.log.blob to {snapshot}")


@main.command()
@_datastore_argument
@click.argument("snapshot")
def verify(datastore: str, snapshot: str) -> None:
    """Read every chunk of a snapshot; corrupt ones are renamed to .bad. Exit code 1 if there were any.

    \b
    Example: python -m tests.harness verify /srv/try vm/100/2026-01-01T00:00:00Z
    """
    with DatastoreWriter(datastore) as writer:
        outcome = writer.verify(snapshot)
    click.echo(f"{snapshot}: {outcome.state}, {len(outcome.bad)} corrupt and {len(outcome.missing)} missing chunks")
    sys.exit(0 if outcome.state == "ok" else 1)


@main.command("verify-state")
@_datastore_argument
@click.argument("snapshot")
@click.argument("state", type=click.Choice(["ok", "failed"]))
def verify_state(datastore: str, snapshot: str, state: Any) -> None:  # noqa: ANN401
    """Note a verification's result in the manifest without reading a chunk, as a large verify job does by thousands.

    \b
    Example: python -m tests.harness verify-state /srv/try vm/100/2026-01-01T00:00:00Z ok
    """
    with DatastoreWriter(datastore) as writer:
        writer.set_verify_state(snapshot, state)
    click.echo(f"noted that {snapshot} is {state}")


@main.command()
@_datastore_argument
@click.argument("snapshot")
@click.option("--chunks", default=1, show_default=True, help="How many of its chunks; which follows from --seed.")
@click.option("--file", "filename", default=None, help="A file of the snapshot instead, such as index.json.blob.")
@click.option(
    "--backing",
    type=click.Path(exists=True, file_okay=False),
    help="Change it behind the mount, in this directory, as a failing disk would.",
)
@_seed_option
def corrupt(datastore: str, snapshot: str, chunks: int, filename: str | None, backing: str | None, seed: int) -> None:
    """Bit rot: flip one bit in each of some chunks of a snapshot, or in one of its files. verify finds it and renames
    the chunks to .bad; the next backup of the same data brings them back (backup --data --generation); the good
    objects in the bucket stay meanwhile.

    \b
    Example: python -m tests.harness corrupt /srv/try vm/100/2026-01-01T00:00:00Z --chunks 2
    """
    with DatastoreWriter(datastore, seed) as writer:
        if filename is not None:
            writer.corrupt_file(snapshot, filename, backing=backing)
            click.echo(f"flipped a bit in {snapshot}/{filename}")
            return
        for digest in _chosen_chunks(backing or datastore, snapshot, chunks, seed):
            writer.corrupt_chunk(digest, backing=backing)
            click.echo(f"flipped a bit in chunk {digest}")


@main.command()
@_datastore_argument
@click.argument("snapshot")
@click.option("--chunks", default=1, show_default=True, help="How many of its chunks; which follows from --seed.")
@click.option("--compress/--no-compress", default=False, show_default=True)
@_seed_option
def reinsert(datastore: str, snapshot: str, chunks: int, compress: bool, seed: int) -> None:
    """Insert chunks of a snapshot again with another compression: same names, other bytes.

    \b
    Example: python -m tests.harness reinsert /srv/try vm/100/2026-01-01T00:00:00Z --chunks 5
    """
    with DatastoreWriter(datastore, seed) as writer:
        for digest in _chosen_chunks(datastore, snapshot, chunks, seed):
            outcome = writer.reinsert_chunk(digest, compress=compress)
            click.echo(f"chunk {digest}: {'replaced' if outcome == 'inserted' else 'was so already'}")


def _chosen_chunks(datastore: str, snapshot: str, count: int, seed: int) -> list[str]:
    found = scan_snapshot(datastore, parse_snapshot_path(snapshot))
    return random.Random(seed).sample(sorted(found.chunks), min(count, len(found.chunks)))


@main.command()
@_datastore_argument
@click.argument("source", type=click.Path(exists=True, file_okay=False))
@click.argument("snapshot")
def sync(datastore: str, source: str, snapshot: str) -> None:
    """Pull one snapshot from another datastore's directory SOURCE, as a sync job does. One that is there already is
    brought up to date: what differs is replaced, the manifest last.

    \b
    Example: python -m tests.harness sync /srv/try /srv/other vm/100/2026-01-01T00:00:00Z
    """
    with DatastoreWriter(datastore) as writer:
        writer.pull(source, snapshot)
    click.echo(f"pulled {snapshot} from {source}")


@main.command()
@_datastore_argument
@click.argument("name")
@click.option(
    "--order",
    type=click.Choice(["as listed", "manifest first", "manifest last", "random"]),
    default="as listed",
    show_default=True,
    help="In which order files are unlinked.",
)
@click.option("--namespace", default="", help="Of a group.")
@_seed_option
def forget(datastore: str, name: str, order: Any, namespace: str, seed: int) -> None:  # noqa: ANN401
    """Forget a snapshot (TYPE/ID/TIME, with ns/… before it) or a whole group (TYPE/ID).

    \b
    Example: python -m tests.harness forget /srv/try vm/100/2026-01-01T00:00:00Z --order "manifest last"
    """
    with DatastoreWriter(datastore, seed) as writer:
        if name.count("/") == 1:
            writer.forget_group(name, namespace=namespace, order=order)
        else:
            writer.forget(name, order)
    click.echo(f"forgot {name}")


@main.command()
@_datastore_argument
@click.argument("group")
@click.option("--keep-last", default=1, show_default=True, help="How many of the newest snapshots stay.")
@click.option("--namespace", default="", help="Such as a/b.")
def prune(datastore: str, group: str, keep_last: int, namespace: str) -> None:
    """Forget all but the newest snapshots of a group (TYPE/ID), and protected ones.

    \b
    Example: python -m tests.harness prune /srv/try vm/100 --keep-last 3
    """
    with DatastoreWriter(datastore) as writer:
        forgotten = writer.prune(group, keep_last, namespace=namespace)
    click.echo(f"forgot {len(forgotten)} snapshots of {group}")


@main.command()
@_datastore_argument
@click.argument("name")
@click.argument("target")
@click.option("--namespace", default="", help="Of the group NAME.")
@click.option("--target-namespace", default="", help="Of the group TARGET.")
@click.option("--whole-namespace", is_flag=True, help="NAME and TARGET are namespaces, written a/b.")
def move(datastore: str, name: str, target: str, namespace: str, target_namespace: str, whole_namespace: bool) -> None:
    """Move a group (TYPE/ID), or a namespace with all that is in it, by a rename of its directory (PBS 4.2).

    \b
    Example: python -m tests.harness move /srv/try vm/100 vm/100 --target-namespace archive
             python -m tests.harness move /srv/try old archive/old --whole-namespace
    """
    with DatastoreWriter(datastore) as writer:
        if whole_namespace:
            writer.move_namespace(name, target)
        else:
            writer.move_group(name, target, namespace=namespace, target_namespace=target_namespace)
    click.echo(f"moved {name} to {target}")


@main.command()
@_datastore_argument
@click.argument("name")
@click.option("--remove", is_flag=True, help="Remove it, with all its groups.")
def namespace(datastore: str, name: str, remove: bool) -> None:
    """Make (or remove) a namespace, written a/b.

    \b
    Example: python -m tests.harness namespace /srv/try production/databases
    """
    with DatastoreWriter(datastore) as writer:
        if remove:
            writer.remove_namespace(name, delete_groups=True)
        else:
            writer.create_namespace(name)
    click.echo(f"{'removed' if remove else 'made'} the namespace {name}")


@main.command()
@_datastore_argument
@click.option("--age", default=DAY_SECONDS, show_default=True, help="Seconds that an unused chunk is kept.")
@click.option("--safety", default=SAFETY_SECONDS, show_default=True, help="Seconds on top of --age.")
def gc(datastore: str, age: float, safety: float) -> None:
    """Collect garbage: touch every referenced chunk, unlink old ones.

    \b
    Example: python -m tests.harness gc /srv/try --age 0 --safety 0
    """
    with DatastoreWriter(datastore) as writer:
        done = writer.collect_garbage(age_seconds=age, safety_seconds=safety)
    click.echo(
        f"read {done.indexes} indexes, removed {len(done.removed)} chunks, kept {done.kept_chunks} "
        f"({done.kept_bytes} bytes), {len(done.missing)} referenced chunks are missing"
    )


@main.command()
@click.argument("url")
@click.option("--endpoint-url", envvar="AWS_ENDPOINT_URL", help="Of a store other than AWS.")
@click.option("--region", default=None)
@click.option("--profile", default=None, help="Of the credentials; they come from boto3's usual chain.")
@click.option(
    "--datastore", type=click.Path(exists=True, file_okay=False), help="Check P2 too, against this directory."
)
@click.option("--deep", is_flag=True, help="Read every object and check it (P6); each version only once.")
@click.option("--wait", default=0.0, help="Seconds to wait for the bucket to equal the datastore.")
@click.option("--for", "duration", default=0.0, help="Seconds to go on auditing while the mirror works.")
@click.option("--listings-lag", is_flag=True, help="The store's listings may be behind its objects.")
def audit(
    url: str,
    endpoint_url: str | None,
    region: str | None,
    profile: str | None,
    datastore: str | None,
    deep: bool,
    wait: float,
    duration: float,
    listings_lag: bool,
) -> None:
    """Read the mirror at URL (s3://BUCKET/NAME) and check P1: every manifest's files and chunks are there; with --deep
    also P6: every object passes its own checks; with --for also P5: nothing that is needed goes from one sample to the
    next. With --datastore also P2: the bucket holds just what the datastore does, quarantined chunks (.bad) keep their
    good objects, and no damaged file was uploaded. The datastore must be quiet then. Exit code 1 on violations.

    \b
    Example: python -m tests.harness audit s3://mirror/try --endpoint-url http://127.0.0.1:8333 \\
                 --datastore /srv/try --deep --wait 60
    """
    bucket = open_bucket(url, endpoint_url=endpoint_url, region=region, profile=profile)
    auditor = Auditor(bucket, deep=deep, listings_lag=listings_lag)
    violations: list[Violation] = []
    if duration:
        violations += _audit_for(auditor, duration)
    if datastore is not None:
        violations += audit_until_converged(auditor, datastore, timeout_seconds=wait)
    elif not duration:
        violations += auditor.audit_bucket()
    _tell_audit(auditor, violations, _promises(deep=deep, duration=duration, datastore=datastore))


def _promises(*, deep: bool, duration: float, datastore: str | None) -> str:
    checked = {"P1": True, "P2": datastore, "P5": duration or datastore, "P6": deep or datastore}
    return ", ".join(promise for promise, was_checked in checked.items() if was_checked)


def _audit_for(auditor: Auditor, seconds: float) -> list[Violation]:
    stop = threading.Event()
    audit = audit_continuously(auditor, stop)
    stop.wait(seconds)
    violations = audit.finish()
    click.echo(f"audited {audit.samples} times; the store could not be read {audit.unreadable} times")
    return violations


def _tell_audit(auditor: Auditor, violations: list[Violation], promises: str) -> None:
    counts = auditor.counts
    click.echo(
        f"checked {promises}: {counts.manifests} manifests, {counts.files} files, {counts.chunk_references} chunk "
        f"references, {counts.chunks_read} chunks read, {counts.bytes_read} bytes; "
        f"{counts.left_open} manifests changed meanwhile and were left open, {counts.undecided} objects could not be "
        f"judged, {counts.rewritten} chunks were replaced beneath a manifest"
    )
    for violation in violations:
        click.echo(f"VIOLATION {violation}")
    click.echo(f"{len(violations)} violations")
    sys.exit(1 if violations else 0)


@main.command()
@click.argument("left", type=click.Path(exists=True, file_okay=False))
@click.argument("right", type=click.Path(exists=True, file_okay=False))
@click.option("--ownership", is_flag=True, help="Compare mode, uid and gid too.")
@click.option("--snapshot", "snapshots", multiple=True, help="Only this one (may be given several times).")
def compare(left: str, right: str, ownership: bool, snapshots: tuple[str, ...]) -> None:
    """Compare two datastores byte for byte: LEFT the original, RIGHT the restored one. Exit code 1 if they differ.

    \b
    Example: python -m tests.harness compare /srv/try /srv/restored
    """
    comparison = compare_datastores(left, right, ownership=ownership, only=frozenset(snapshots) if snapshots else None)
    click.echo(
        f"compared {comparison.snapshots} snapshots, {comparison.files} files, {comparison.chunks} chunks, "
        f"{comparison.compared_bytes} bytes"
    )
    for difference in comparison.differences:
        click.echo(f"DIFFERENCE {difference.path}: {difference.sentence}")
    sys.exit(1 if comparison.differences else 0)


@main.command()
@_datastore_argument
@_seed_option
@click.option("--snapshots", default=1000, show_default=True)
@click.option("--chunks", default=100_000, show_default=True)
@click.option("--groups", default=20, show_default=True)
def bulk(datastore: str, seed: int, snapshots: int, chunks: int, groups: int) -> None:
    """Fill a plain directory with many tiny snapshots and chunks, without the server's system calls.

    \b
    Example: python -m tests.harness bulk /srv/many --snapshots 1000 --chunks 100000
    """
    started = time.monotonic()
    made = generate_bulk(datastore, seed, snapshots=snapshots, chunks=chunks, groups=groups)
    click.echo(f"made {len(made.snapshots)} snapshots with {made.chunks} chunks in {time.monotonic() - started:.1f} s")
