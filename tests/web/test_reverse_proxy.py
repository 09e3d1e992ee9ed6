"""The page behind nginx, with what docs/web.md says for it as it stands there."""

from __future__ import annotations

import base64
import os
import re
import select
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from mirrorfs.web.gate import Gate
from mirrorfs.web.pages import SECURITY_HEADERS
from tests.documents import ROOT
from tests.web.served import Mirror, serving_page

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

_USER, _PASSWORD, _TOKEN = "admin", "secret of nginx", "a-token-of-some-length"
_END_SECONDS = 60.0
(_EXAMPLE,) = re.findall(r"^```nginx\n(.*?)^```", (ROOT / "docs" / "web.md").read_text(), re.MULTILINE | re.DOTALL)


def _configuration(directory: Path, port: int, more: str) -> str:
    """A server that is reached by a socket in the directory, with the example and `more` in its place."""
    example = _EXAMPLE.replace("/etc/nginx/mirrorfs.users", str(directory / "users")).replace("9861", str(port))
    begin, last, end = example.rpartition("}")
    places = "".join(
        f"{name}_temp_path {directory}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"master_process off;\npid {directory}/pid;\nerror_log {directory}/errors;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{places}server {{\nlisten unix:{directory}/socket;\n"
        f"{begin}{more}{last}{end}}}\n}}\n"
    )


@contextmanager
def _nginx(directory: Path, port: int, more: str) -> Iterator[None]:
    """Run it; it listens when its first process has ended."""
    assert NGINX is not None
    (directory / "users").write_text(f"{_USER}:{{PLAIN}}{_PASSWORD}\n")
    (directory / "configuration").write_text(_configuration(directory, port, more))
    subprocess.run([NGINX, "-e", directory / "errors", "-c", directory / "configuration"], check=True)
    process = os.pidfd_open(int((directory / "pid").read_text()))
    try:
        yield
    finally:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        assert select.select([process], [], [], _END_SECONDS)[0]
        os.close(process)


@asynccontextmanager
async def _served(directory: Path, token: str | None = None) -> AsyncIterator[None]:
    more = "" if token is None else f'proxy_set_header Authorization "Bearer {token}";\n'
    async with serving_page(Mirror(), Gate(token, is_local=True)) as port:
        with _nginx(directory, port, more):
            yield


async def _asked(directory: Path, target: str, password: str = _PASSWORD) -> tuple[int, str, bytes]:
    """Ask nginx; returns status, head and body."""
    credentials = base64.b64encode(f"{_USER}:{password}".encode()).decode()
    stream = await trio.open_unix_socket(directory / "socket")
    received = b""
    async with stream:
        head = f"GET {target} HTTP/1.1\r\nHost: pbs.example.com\r\nConnection: close\r\n"
        await stream.send_all(f"{head}Authorization: Basic {credentials}\r\n\r\n".encode())
        while part := await stream.receive_some(65536):
            received += part
    first, _, body = received.partition(b"\r\n\r\n")
    return int(first.split(b" ")[1]), first.decode("latin-1"), body


@pytest.mark.trio
@pytest.mark.skipif(NGINX is None, reason="Debian's package nginx has it")
@pytest.mark.parametrize("token", [None, _TOKEN])
async def test_it_is_served_behind_the_documented_proxy(tmp_path: Path, token: str | None) -> None:
    async with _served(tmp_path, token):
        for target in ("", "page.js", "page.css", "icon.svg", "live.json", "snapshots.json", "history.json"):
            status, head, body = await _asked(tmp_path, f"/mirrorfs/{target}")
            assert (status, bool(body)) == (200, True), (target, body)
            assert [name for name, value in SECURITY_HEADERS.items() if f"{name}: {value}" not in head] == []
        status, head, _ = await _asked(tmp_path, "/mirrorfs")
        assert (status, "/mirrorfs/\r\n" in head) == (301, True), "the page's links begin there"
        assert (await _asked(tmp_path, "/mirrorfs/live.json", "wrong"))[0] == 401
        assert (await _asked(tmp_path, "/mirrorfs/nothing"))[0] == 404


def test_what_the_page_asks_for_is_below_where_it_lies() -> None:
    folder = ROOT / "mirrorfs" / "web" / "files"
    html, script = (folder / "page.html").read_text(), (folder / "page.js").read_text()
    asked = [*re.findall(r'(?:href|src)="([^"#]+)"', html), *re.findall(r'ask\("([^"]+)"', script)]
    assert len(asked) >= 6
    assert [path for path in asked if path.startswith("/") or ":" in path] == []
