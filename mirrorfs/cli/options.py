"""Options that several commands share."""

from __future__ import annotations

import dataclasses
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


_SECONDS = click.FloatRange(0.0, 86400.0, min_open=True)
_OPTIONS = (
    click.option("--endpoint-url", metavar="URL", help="Endpoint of an S3-compatible store; without it, AWS."),
    click.option("--profile", metavar="NAME", help="Profile in ~/.aws/credentials and ~/.aws/config."),
    click.option("--region", metavar="NAME", help="Region of the bucket."),
    click.option(
        "--addressing-style",
        type=click.Choice(["auto", "path", "virtual"]),
        help="Where the bucket's name stands: in the path, or (virtual) before the endpoint's host name.",
    ),
    click.option("--proxy", metavar="URL", help="HTTP proxy on the way to the store; without it, HTTPS_PROXY."),
    click.option("--ca-bundle", metavar="FILE", help="Certificates (PEM) to trust, for a private authority."),
    click.option(
        "--fingerprint", metavar="SHA256", help="Trust the certificate with this fingerprint alone, as PBS shows it."
    ),
    click.option("--connect-timeout", type=_SECONDS, default=10.0, metavar="SECONDS", help="Longest wait to connect."),
    click.option(
        "--read-timeout", type=_SECONDS, default=60.0, metavar="SECONDS", help="Longest silence of a connection."
    ),
    click.option(
        "--request-timeout",
        type=_SECONDS,
        default=300.0,
        metavar="SECONDS",
        help="Longest duration of a request, beside what its body takes at --slowest-rate.",
    ),
    click.option(
        "--slowest-rate",
        type=click.FloatRange(0.1, 1_000_000.0),
        default=16.0,
        metavar="KIB",
        help="KiB a second that a line must carry for its requests not to be given up.",
    ),
    click.option(
        "--checksums",
        type=click.Choice(["auto", "on", "off"]),
        default="auto",
        help="CRC32C headers: until the store refuses them (auto), always, or never.",
    ),
    click.option(
        "--encryption",
        type=click.Choice(["AES256", "aws:kms", "aws:kms:dsse"]),
        help="Encryption that each new object asks for (SSE-S3 is AES256). Default: the bucket's own.",
    ),
    click.option("--kms-key-id", metavar="KEY", help="Key for the encryption aws:kms. Default: the bucket's own."),
    click.option("--chunk-storage-class", metavar="CLASS", help="Storage class of chunks. Not one that archives."),
    click.option("--storage-class", metavar="CLASS", help="Storage class of everything else. Not one that archives."),
)


def store_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say how to reach the store, as one parameter `store`."""
    names = {field.name for field in dataclasses.fields(StoreOptions)}

    @functools.wraps(command)
    def with_store(**given: Any) -> None:  # noqa: ANN401
        named = {name: value for name, value in given.items() if name in names}
        named["slowest_rate"] *= 1024
        try:
            store = StoreOptions(**named)
        except MalformedURL as error:
            raise click.UsageError(str(error)) from None
        command(store=store, **{name: value for name, value in given.items() if name not in names})

    for option in reversed(_OPTIONS):
        option(with_store)
    return with_store
