"""Where a command listens: ADDRESS:PORT."""

from __future__ import annotations

import click

_PORTS = range(1, 65536)


class ListenAddress(click.ParamType[tuple[str, int]]):
    """A parameter of the form ADDRESS:PORT, an IPv6 address in brackets."""

    name = "address"

    def convert(
        self, value: str | tuple[str, int], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """Take address and port apart; what is no such pair is a usage error."""
        if isinstance(value, tuple):
            return value
        address, _, port = value.rpartition(":")
        if not address or not (port.isascii() and port.isdigit()) or int(port) not in _PORTS:
            self.fail(f"{value!r} is not of the form ADDRESS:PORT, as 127.0.0.1:9860 or [::1]:9860", param, ctx)
        return address.removeprefix("[").removesuffix("]"), int(port)


def shown_address(address: str, port: int) -> str:
    """Write both as they are given."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
