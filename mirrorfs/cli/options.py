"""Options that several commands share."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from mirrorfs.cli.durations import Duration
from mirrorfs.cli.rates import Rate
from mirrorfs.cli.setting import setting
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


_STORE_NAMES = frozenset(field.name for field in dataclasses.fields(StoreOptions))
_KIBIBYTE = 1024.0
_SECONDS = Duration(0.0, 86400.0, plain_seconds=True, may_be_zero=False)
_OPTIONS = (
    setting("--endpoint-url", metavar="URL", help="Endpoint of an S3-compatible store; without it, AWS."),
    setting("--profile", metavar="NAME", help="Profile in ~/.aws/credentials and ~/.aws/config."),
    setting("--region", metavar="NAME", help="Region of the bucket."),
    setting(
        "--addressing-style",
        type=click.Choice(["auto", "path", "virtual"]),
        help="Where the bucket's name stands: in the path, or (virtual) before the endpoint's host name.",
    ),
    setting("--proxy", metavar="URL", help="HTTP proxy on the way to the store; without it, HTTPS_PROXY."),
    setting("--ca-bundle", metavar="FILE", help="Certificates (PEM) to trust, for a private authority."),
    setting(
        "--fingerprint", metavar="SHA256", help="Trust the certificate with this fingerprint alone, as PBS shows it."
    ),
    setting("--connect-timeout", type=_SECONDS, default="10s", metavar="DURATION", help="Longest wait to connect."),
    setting("--read-timeout", type=_SECONDS, default="1m", metavar="DURATION", help="Longest silence of a connection."),
    setting(
        "--request-timeout",
        type=_SECONDS,
        default="5m",
        metavar="DURATION",
        help="Longest duration of a request, beside what its body takes at --slowest-rate.",
    ),
    setting(
        "--slowest-rate",
        type=Rate(_KIBIBYTE / 8, _KIBIBYTE**3, plain=_KIBIBYTE),
        default="16 KiB/s",
        metavar="RATE",
        help="What a line must carry for its requests not to be given up. A plain number is one of KiB/s.",
    ),
    setting(
        "--checksums",
        type=click.Choice(["auto", "on", "off"]),
        default="auto",
        help="CRC32C headers: until the store refuses them (auto), always, or never.",
    ),
    setting(
        "--encryption",
        type=click.Choice(["AES256", "aws:kms", "aws:kms:dsse"]),
        help="Encryption that each new object asks for (SSE-S3 is AES256). Default: the bucket's own.",
    ),
    setting("--kms-key-id", metavar="KEY", help="Key for the encryption aws:kms. Default: the bucket's own."),
    setting("--chunk-storage-class", metavar="CLASS", help="Storage class of chunks. Not one that archives."),
    setting("--storage-class", metavar="CLASS", help="Storage class of everything else. Not one that archives."),
)


def store_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say how to reach the store, as one parameter `store`."""

    @functools.wraps(command)
    def with_store(**given: Any) -> None:  # noqa: ANN401
        store = store_of(given)
        command(store=store, **{name: value for name, value in given.items() if name not in _STORE_NAMES})

    for option in reversed(_OPTIONS):
        option(with_store)
    return with_store


def store_of(given: Mapping[str, Any]) -> StoreOptions:
    """Make the way to the store of values by the names of parameters; others are left aside. Raises UsageError."""
    try:
        return StoreOptions(**{name: value for name, value in given.items() if name in _STORE_NAMES})
    except MalformedURL as error:
        raise click.UsageError(str(error)) from None
