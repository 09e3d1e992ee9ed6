"""What is answered to which request: the page and what belongs to it, three documents of JSON, or a sentence."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib import resources

from mirrorfs.web.gate import REALM, Gate
from mirrorfs.web.overview import Overview

_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_JSON = "application/json"
_VERSIONS = ("1.0", "1.1")
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""What each answer has: nothing from elsewhere, nothing inline, in no frame, kept by nobody."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request that is well-formed HTTP. Names of headers are in lower case."""

    method: str
    target: str
    version: str
    headers: Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent back, beside the security headers; `is_head`: without the body, which only has its length told."""

    status: HTTPStatus
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    is_head: bool = False


def sentence(status: HTTPStatus, text: str, headers: Mapping[str, str] | None = None) -> Answer:
    """Make an answer for a person."""
    return Answer(status, "text/plain; charset=utf-8", f"{text}\n".encode(), headers or {})


class Pages:
    """All that can be asked for."""

    def __init__(self, overview: Overview, gate: Gate) -> None:
        self._gate = gate
        folder = resources.files("mirrorfs.web") / "files"
        self._files = {path: (kind, (folder / name).read_bytes()) for path, (name, kind) in _FILES.items()}
        self._documents: dict[str, Callable[[], Awaitable[bytes]]] = {
            "/live.json": overview.live,
            "/snapshots.json": overview.snapshots,
            "/history.json": overview.history,
        }

    async def answer(self, request: Request) -> Answer:
        """Answer a request, whoever has sent it."""
        if request.version not in _VERSIONS:
            return sentence(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "Only HTTP/1.0 and HTTP/1.1 are spoken here.")
        refusal = self._gate.refusal(request.headers)
        if refusal is not None:
            challenge = {"WWW-Authenticate": f'Basic realm="{REALM}", charset="UTF-8"'}
            is_asked = refusal.status is HTTPStatus.UNAUTHORIZED
            return sentence(refusal.status, refusal.sentence, challenge if is_asked else None)
        if request.method not in ("GET", "HEAD"):
            return sentence(
                HTTPStatus.METHOD_NOT_ALLOWED,
                "This page can only be read: ask by GET or HEAD.",
                {"Allow": "GET, HEAD"},
            )
        if _has_content(request.headers):
            return sentence(HTTPStatus.BAD_REQUEST, "A request has no content here: leave it out.")
        if request.target in self._files:
            kind, body = self._files[request.target]
            return Answer(HTTPStatus.OK, kind, body)
        document = self._documents.get(request.target)
        if document is None:
            return sentence(HTTPStatus.NOT_FOUND, "There is no such page: ask for /.")
        return Answer(HTTPStatus.OK, _JSON, await document())


def _has_content(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0") != b"")
        for name, value in headers
    )
