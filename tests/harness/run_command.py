"""`python -m tests.harness run`, which is also scripts/soak."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from tests.harness.soak import SoakSettings, run_round, run_soak
from tests.harness.statistics import Statistics
from tests.harness.steps import MOUNT_STEPS as STEPS
from tests.stores.seaweedfs import StoreServer, running_seaweedfs
from tests.stores.server import AnyStore, GivenStore


@click.command("run")
@click.option("--minutes", default=30.0, show_default=True, help="How long; a round under way is brought to its end.")
@click.option("--seed", type=int, default=None, help="Everything follows from this number (default: a random one).")
@click.option("--round", "single", type=int, default=None, help="Repeat this one round, as a failed run has told.")
@click.option(
    "--sweep/--no-sweep",
    default=None,
    help="With --round: kill at every named step, as the first round of 15 minutes or more does unless told not to.",
)
@click.option(
    "--step", "steps", multiple=True, type=click.Choice(STEPS), metavar="NAME", help="With --sweep: this step alone."
)
@click.option(
    "--chunk-store",
    type=click.Choice(["auto", "native", "fuse"]),
    default="auto",
    show_default=True,
    help="How PBS reaches its chunks, as for 'mirrorfs mount'.",
)
@click.option("--keep", type=click.Path(path_type=Path), default=Path("soak-failures"), show_default=True)
@click.option("--to", "url", default=None, metavar="s3://BUCKET/PREFIX", help="Your store instead of a SeaweedFS.")
@click.option("--endpoint-url", envvar="AWS_ENDPOINT_URL", default=None, help="Of your store.")
@click.option("--profile", default=None, help="Of the credentials; they come from boto3's usual chain.")
def command(
    minutes: float,
    seed: int | None,
    single: int | None,
    sweep: bool | None,
    steps: tuple[str, ...],
    chunk_store: str,
    keep: Path,
    url: str | None,
    endpoint_url: str | None,
    profile: str | None,
) -> None:
    """Try to break a mirror: everything that Proxmox Backup Server does, and everything that can go wrong, in rounds
    that are made from one number each.

    Each round makes a datastore on a disk of its own (an ext4 on a loop device, so this needs root), mounts mirrorfs
    over it and lets PBS work, while processes are killed at random and at every named step, the store fails, lies and
    dies, disks fill up, cannot be read, are slow or lose power, and the clock jumps. All the time the bucket is audited
    by code that mirrorfs does not share (P1 complete, P5 careful with deletes, P6 verified); what PBS was answered must
    be on the disk (P3, P4); and whenever all faults are over, the bucket must come to equal the datastore (P2).

    Ends with a table. Exit code 1 when a promise was broken; then it tells how to repeat the round, and where its log
    is kept.

    \b
    Examples:
      scripts/soak --minutes 30 --seed 1
      scripts/soak --round 2718281828
      scripts/soak --minutes 5 --to s3://scratch/try --endpoint-url https://s3.example.com
    """
    if os.geteuid() != 0:
        raise click.ClickException("run this as root: it makes disks and mounts them")
    chosen = secrets.randbelow(2**31) if seed is None else seed
    with _store(url, endpoint_url, profile) as (store, bucket, prefix):
        # Of a store that we do not know, nobody knows whether it has a second bucket, and what that keeps.
        locking = store.create_bucket(locked=True) if isinstance(store, StoreServer) else None
        settings = SoakSettings(
            store,
            bucket,
            prefix,
            chosen,
            minutes * 60,
            keep,
            tell=_tell,
            locking_bucket=locking,
            chunk_store=chunk_store,
        )
        if single is not None:
            statistics = Statistics()
            run_round(settings, statistics, single, is_sweep=bool(sweep), steps=steps or STEPS)
        else:
            _tell(f"seed {chosen}: repeat all of it with --seed {chosen}")
            statistics = run_soak(settings, with_sweep=sweep)
    _tell(statistics.table())
    sys.exit(1 if statistics.violations else 0)


@contextmanager
def _store(url: str | None, endpoint_url: str | None, profile: str | None) -> Iterator[tuple[AnyStore, str, str]]:
    if url is None:
        with running_seaweedfs() as server:
            yield server, server.create_bucket(), "soak"
        return
    bucket, _, prefix = url.removeprefix("s3://").strip("/").partition("/")
    if not url.startswith("s3://") or not bucket or not prefix or "/" in prefix:
        raise click.BadParameter(f"{url} is not of the form s3://BUCKET/PREFIX", param_hint="--to")
    try:
        yield GivenStore.from_usual_chain(endpoint_url or "https://s3.amazonaws.com", profile), bucket, prefix
    except ValueError as error:
        raise click.ClickException(str(error)) from error


def _tell(line: str) -> None:
    click.echo(line)
    sys.stdout.flush()
