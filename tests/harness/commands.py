"""The harness by hand: `python -m tests.harness`, for an administrator who wants to try mirrorfs on his own store."""

from __future__ import annotations

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
from tests.harness.process_lock import DatastoreBusy
from tests.harness.scan import compare_datastores
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
    """Turns what an operation may fail with into one line and exit code 1."""

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
    the same bytes. The auditor shares no code with mirrorfs.

    \b
    A first round:
      mkdir /srv/try && python -m tests.harness create /srv/try
      mirrorfs mount /srv/try --to s3://mirror/try
      python -m tests.harness backup /srv/try vm/100 --size 200M
      python -m tests.harness backup /srv/try vm/100 --size 200M
      python -m tests.harness audit s3://mirror/try --datastore /srv/try --wait 60
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
@click.option("--encrypted", is_flag=True, help="Chunks, blobs and manifest look encrypted.")
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
@click.option("--namespace", default="")
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
@click.option("--deep", is_flag=True, help="Read every chunk object and check it.")
@click.option("--wait", default=0.0, help="Seconds to wait for the bucket to equal the datastore.")
@click.option("--for", "duration", default=0.0, help="Seconds to go on auditing P1, sample after sample.")
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
    """Read the mirror at URL (s3://BUCKET/NAME) and check P1: every manifest's files and chunks are there. With
    --datastore also P2: the bucket holds just what the datastore does. Exit code 1 on violations.

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
    _tell_audit(auditor, violations, "P1 and P2" if datastore else "P1")


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
        f"{counts.left_open} manifests changed meanwhile and were left open"
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
