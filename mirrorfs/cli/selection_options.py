"""The options that say what of a bucket is meant: namespaces, groups, snapshots, times, the latest ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from mirrorfs.cli.view_options import Moment
from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.names import GroupId, NamespaceId, SnapshotId
from mirrorfs.datastore.patterns import PathPattern, is_pattern
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.recovery.moment import format_moment
from mirrorfs.recovery.selection import Selection

Command = TypeVar("Command", bound=Callable[..., Any])
Value = TypeVar("Value")


_RENAMED = click.option(
    "--renamed",
    is_flag=True,
    help="Also backups that somebody has renamed: whose manifest has another type, id or time than their path.",
)


def _not_offered(command: Command) -> Command:
    return command


def selection_options(name: str, *, renamed: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give the command `name` the options that select, as one parameter `selection`; without --renamed where it makes
    no difference whether something was `renamed`.
    """
    offer_renamed = _RENAMED if renamed else _not_offered

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
            help="Only this group, e.g. vm/100 or ns/a/vm/100, or those like a pattern: 'vm/10*' (* also matches /).",
        )
        @click.option(
            "--snapshot",
            "snapshots",
            envvar=f"MIRRORFS_{name.upper()}_SNAPSHOT",
            multiple=True,
            metavar="PATH",
            help="Only this snapshot, e.g. vm/100/2026-11-22T10:00:00Z, or those like a pattern: 'vm/*/2026-11-*'.",
        )
        @click.option("--since", type=Moment(), metavar="TIME", help="Of these only those of this time or later.")
        @click.option(
            "--until",
            type=Moment(),
            metavar="TIME",
            help="Of these only those of this time or earlier (3d, 12h, '2026-11-22 10:00', RFC 3339).",
        )
        @click.option(
            "--latest", type=click.IntRange(min=1), metavar="N", help="Of each group only the N newest of these."
        )
        @offer_renamed
        @functools.wraps(command)
        def with_selection(
            namespaces: tuple[str, ...],
            groups: tuple[str, ...],
            snapshots: tuple[str, ...],
            since: float | None,
            until: float | None,
            latest: int | None,
            renamed: bool = False,
            **others: object,
        ) -> None:
            if since is not None and until is not None and since > until:
                raise click.UsageError(
                    f"nothing is of {format_moment(since)} or later, and of {format_moment(until)} or earlier: "
                    "exchange --since and --until"
                )
            selection = Selection(
                tuple(usage(_parse_namespace, text) for text in namespaces),
                tuple(usage(GroupId.parse, text) for text in groups if not is_pattern(text)),
                tuple(usage(SnapshotId.parse, text) for text in snapshots if not is_pattern(text)),
                latest,
                renamed,
                tuple(usage(PathPattern, text) for text in groups if is_pattern(text)),
                tuple(usage(PathPattern, text) for text in snapshots if is_pattern(text)),
                since,
                until,
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
