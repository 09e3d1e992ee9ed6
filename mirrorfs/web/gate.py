"""Who may look at the page: whoever has the token, and without one only a browser that was sent to this machine.

A page of somebody else's can have a browser on this machine ask the loopback address, by a name that it lets point
there (DNS rebinding). It cannot have the browser say another Host than that name.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

REALM = "mirrorfs"
_host = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not answered: status, and a sentence that says what to do."""

    status: HTTPStatus
    sentence: str


@dataclass(frozen=True, slots=True)
class Gate:
    """What a request must have. `token`: None where none is demanded; `is_local`: only loopback addresses listen."""

    token: str | None
    is_local: bool

    def refusal(self, headers: Sequence[tuple[bytes, bytes]]) -> Refusal | None:
        """Tell what is wrong with a request of these headers (names in lower case); None lets it pass."""
        hosts = [value for name, value in headers if name == b"host"]
        if self.is_local and not (len(hosts) == 1 and is_local_host(hosts[0].decode("latin-1"))):
            return Refusal(
                HTTPStatus.MISDIRECTED_REQUEST,
                "This page answers to localhost, 127.0.0.1 and [::1] only. A reverse proxy has to send one of these as "
                "the Host header.",
            )
        given = [value for name, value in headers if name == b"authorization"]
        if self.token is not None and not (len(given) == 1 and _has_token(given[0], self.token)):
            return Refusal(
                HTTPStatus.UNAUTHORIZED,
                "Give the token as the password, with any user name. It stands in the file that 'mirrorfs web' names "
                "when it starts.",
            )
        return None


def is_loopback(address: str) -> bool:
    """Tell whether an address is one of the machine itself."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def is_local_host(host: str) -> bool:
    """Tell whether a Host header names this machine to itself, with whatever port: a tunnel has another one."""
    match = _host.fullmatch(host)
    if match is None:
        return False
    name = match[1].strip("[]").lower()
    return name == "localhost" or is_loopback(name)


def _has_token(header: bytes, token: str) -> bool:
    scheme, _, credentials = header.partition(b" ")
    match scheme.lower():
        case b"bearer":
            given = credentials.strip()
        case b"basic":
            try:
                given = base64.b64decode(credentials.strip(), validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        case _:
            return False
    return hmac.compare_digest(given, token.encode())
