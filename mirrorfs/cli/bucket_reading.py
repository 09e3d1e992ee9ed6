"""What the commands about a whole bucket have in common: two stores, how many requests, and how they end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import click
import trio

from mirrorfs.cli.errors import Failure
from mirrorfs.handover.errors import HandoverRefused
from mirrorfs.memory import use_one_arena
from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.errors import StoreError
from mirrorfs.objectstore.retry import Patience
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.objectstore.url import StoreAddress, StoreOptions
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.replication.ownership.claim import ClaimUnreadable

Command = TypeVar("Command", bound=Callable[..., Any])
Result = TypeVar("Result")

# A wrong key or name shows when the bucket is listed, and somebody waits for it to be told. A long reading outlasts a
# store that is restarted.
_LISTING_PATIENCE = Patience(total=10.0)
_READING_PATIENCE = Patience(ceiling=30.0, total=600.0)


def parallel_option(what: str) -> Callable[[Command], Command]:
    """Give a command the option that says how many of `what` are read at a time, as parameter `parallel`."""
    return click.option(
        "--parallel",
        type=click.IntRange(1, 64),
        default=8,
        show_default=True,
        help=f"How many {what} to read at a time.",
    )


@dataclass(frozen=True, slots=True)
class Stores:
    """One bucket, with the patience of a long reading, and with that of somebody who waits for the listing."""

    reading: ObjectStore
    listing: ObjectStore


def read_bucket(
    address: StoreAddress,
    options: StoreOptions,
    parallelism: int,
    read: Callable[[Stores], Awaitable[Result]],
    *,
    shown: AbstractContextManager[object],
    going_on: Callable[[], str],
) -> Result:
    """Run `read` with the progress `shown`, with at most `parallelism` requests under way.

    Raises Failure, with what `going_on` says added where the store has failed or somebody has interrupted it.
    """
    client = S3Client(address.bucket, options, parallelism=parallelism)
    return run_with_stores(client, parallelism, read, shown=shown, going_on=going_on)


def run_with_stores(
    client: S3Client,
    parallelism: int,
    work: Callable[[Stores], Awaitable[Result]],
    *,
    shown: AbstractContextManager[object],
    going_on: Callable[[], str],
) -> Result:
    """As `read_bucket`, with a client that is there."""
    use_one_arena()

    async def run() -> Result:
        reading = ObjectStore(client, parallelism=parallelism, patience=_READING_PATIENCE)
        return await work(Stores(reading, ObjectStore(client, patience=_LISTING_PATIENCE)))

    interruptions: list[BaseException] = []
    try:
        with shown:
            try:
                return trio.run(run)
            except* KeyboardInterrupt as group:
                interruptions.extend(group.exceptions)
    except (RestoreError, HandoverRefused, ClaimUnreadable) as error:
        raise Failure(str(error)) from None
    except StoreError as error:
        raise Failure(f"{error}{going_on()}") from None
    raise Failure(f"Interrupted.{going_on()}")
