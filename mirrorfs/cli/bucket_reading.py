"""What the commands that read a whole bucket have in common: two stores, and how such a command ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import trio

from mirrorfs.cli.errors import Failure
from mirrorfs.memory import use_one_arena
from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.errors import StoreError
from mirrorfs.objectstore.retry import Patience
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.objectstore.url import StoreAddress, StoreOptions
from mirrorfs.recovery.errors import RestoreError

Result = TypeVar("Result")

# A wrong key or name shows when the bucket is listed, and somebody waits for it to be told. A long reading outlasts a
# store that is restarted.
_LISTING_PATIENCE = Patience(total=10.0)
_READING_PATIENCE = Patience(ceiling=30.0, total=600.0)


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
    use_one_arena()
    client = S3Client(address.bucket, options, parallelism=parallelism)

    async def run() -> Result:
        reading = ObjectStore(client, parallelism=parallelism, patience=_READING_PATIENCE)
        return await read(Stores(reading, ObjectStore(client, patience=_LISTING_PATIENCE)))

    interruptions: list[BaseException] = []
    try:
        with shown:
            try:
                return trio.run(run)
            except* KeyboardInterrupt as group:
                interruptions.extend(group.exceptions)
    except RestoreError as error:
        raise Failure(str(error)) from None
    except StoreError as error:
        raise Failure(f"{error}{going_on()}") from None
    raise Failure(f"Interrupted.{going_on()}")
