"""Bounded concurrency whose first error comes out as itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import trio

Item = TypeVar("Item")


async def for_each(items: Iterable[Item], work: Callable[[Item], Awaitable[None]], parallelism: int) -> None:
    """Run `work` for each item, at most `parallelism` at the same time.

    The first error cancels the rest and is raised once that has ended, without an exception group around it.
    """
    remaining = iter(items)

    async def work_on() -> None:
        for item in remaining:
            await work(item)

    try:
        async with trio.open_nursery() as nursery:
            for _ in range(parallelism):
                nursery.start_soon(work_on)
    except ExceptionGroup as group:
        raise _first_error(group) from None


def _first_error(group: ExceptionGroup[Exception]) -> Exception:
    error: Exception = group
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
