"""Options that several commands share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from mirrorfs.objectstore.url import MalformedURL, StoreAddress, StoreOptions, parse_url

Command = TypeVar("Command", bound=Callable[..., Any])


class _Path(click.Path):
    """A path that is not looked at: a mount that hangs would keep the command, and a dead one look unreadable."""

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """Take it as it is."""
        return os.fspath(value)


PATH = _Path()


class StoreURL(click.ParamType[StoreAddress]):
    """A parameter of the form s3://BUCKET/NAME."""

    name = "url"

    def convert(
        self, value: str | StoreAddress, param: click.Parameter | None, ctx: click.Context | None
    ) -> StoreAddress:
        """Parse the URL; a malformed one is a usage error."""
        if isinstance(value, StoreAddress):
            return value
        try:
            return parse_url(value)
        except MalformedURL as error:
            self.fail(str(error), param, ctx)


def store_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say how to reach the store, as one parameter `store`."""

    @click.option("--endpoint-url", metavar="URL", help="Endpoint of an S3-compatible store; without it, AWS.")
    @click.option("--profile", metavar="NAME", help="Profile in ~/.aws/credentials and ~/.aws/config.")
    @click.option("--region", metavar="NAME", help="Region of the bucket.")
    @functools.wraps(command)
    def with_store(endpoint_url: str | None, profile: str | None, region: str | None, **others: object) -> None:
        try:
            store = StoreOptions(endpoint_url=endpoint_url, profile=profile, region=region)
        except MalformedURL as error:
            raise click.BadParameter(str(error), param_hint="--endpoint-url") from None
        command(store=store, **others)

    return with_store
