"""The options that say what of a bucket is meant: namespaces, groups, snapshots, the latest ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.names import GroupId, NamespaceId, SnapshotId
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.recovery.selection import Selection

Command = TypeVar("Command", bound=Callable[..., Any])
Value = TypeVar("Value")


def selection_options(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give the command `name` the options that select, as one parameter `selection`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @click.option(
            "--namespace",
            "namespaces",
            envvar=f"MIRRORFS_{name.upper()}_NAMESPACE",
            multiple=True,
            metavar="A/B",
            help="Only this namespace and those inside it.",
        )
        @click.option(
            "--group",
            "groups",
            envvar=f"MIRRORFS_{name.upper()}_GROUP",
            multiple=True,
            metavar="PATH",
            help="Only this group, e.g. vm/100 or ns/a/vm/100.",
        )
        @click.option(
            "--snapshot",
            "snapshots",
            envvar=f"MIRRORFS_{name.upper()}_SNAPSHOT",
            multiple=True,
            metavar="PATH",
            help="Only this snapshot, e.g. vm/100/2026-11-22T10:00:00Z.",
        )
        @click.option(
            "--latest", type=click.IntRange(min=1), metavar="N", help="Of each group only the N newest of these."
        )
        @click.option(
            "--renamed",
            is_flag=True,
            help="Also backups that somebody has renamed: whose manifest has another type, id or time than their path.",
        )
        @functools.wraps(command)
        def with_selection(
            namespaces: tuple[str, ...],
            groups: tuple[str, ...],
            snapshots: tuple[str, ...],
            latest: int | None,
            renamed: bool,
            **others: object,
        ) -> None:
            selection = Selection(
                tuple(usage(_parse_namespace, text) for text in namespaces),
                tuple(usage(GroupId.parse, text) for text in groups),
                tuple(usage(SnapshotId.parse, text) for text in snapshots),
                latest,
                renamed,
            )
            command(selection=selection, **others)

        return with_selection

    return decorate


def usage(parse: Callable[[str], Value], text: str) -> Value:
    """Parse what was given; what cannot be parsed is wrong usage."""
    try:
        return parse(text)
    except (DatastoreError, RestoreError) as error:
        raise click.UsageError(str(error)) from None


def _parse_namespace(text: str) -> NamespaceId:
    return NamespaceId(tuple(text.strip("/").split("/"))) if text.strip("/") else NamespaceId()
