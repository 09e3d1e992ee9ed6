"""What `mirrorfs web` takes, from the command line and the settings, and how it keeps its token."""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mirrorfs.cli import settings_file, web
from mirrorfs.cli.errors import Failure
from mirrorfs.own_files import NotOwn
from mirrorfs.web import serving

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the command is root's")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of settings files, for this test alone."""
    directory = tmp_path / "etc"
    directory.mkdir()
    monkeypatch.setattr(settings_file, "SETTINGS_BASE", str(directory))
    monkeypatch.setattr(web, "SETTINGS_BASE", str(directory))
    monkeypatch.setattr(web, "TOKEN_FILE", str(directory / "web-token"))
    return directory


def understood(*arguments: str) -> dict[str, Any]:
    with web.command.make_context("web", list(arguments)) as context:
        return context.params


def test_settings_of_the_file_hold_unless_something_else_is_said(settings: Path) -> None:
    (settings / "store1.toml").write_text(
        'datastore = "/srv/store1"\nto = "s3://backups/store1"\n[web]\nlisten = "[::1]:8080"\nrequire-token = true\n'
    )
    assert understood("store1") == {"datastore": "/srv/store1", "listen": ("::1", 8080), "require_token": True}
    assert understood("store1", "--listen", "127.0.0.1:1")["listen"] == ("127.0.0.1", 1)
    assert understood("/srv/other") == {
        "datastore": "/srv/other",
        "listen": ("127.0.0.1", 9861),
        "require_token": False,
    }


@pytest.mark.parametrize("wrong", ['listen = "9861"', "listen = true", 'require-token = "yes"', 'listne = "::1:80"'])
def test_wrong_settings_are_wrong_usage(settings: Path, wrong: str) -> None:
    (settings / "store1.toml").write_text(f'datastore = "/srv/store1"\nto = "s3://backups/store1"\n[web]\n{wrong}\n')
    done = CliRunner().invoke(web.command, ["store1"])
    assert done.exit_code == 2
    assert isinstance(done.exception, SystemExit)
    assert "Error: " in done.output


def test_who_ends_it_as_soon_as_it_tells_where_it_is_ends_it_in_good_order(
    settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "begin_log", lambda _: None)
    monkeypatch.setattr(web, "say", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    assert CliRunner().invoke(web.command, ["/srv/store1", "--listen", f"127.0.0.1:{port}"]).exit_code == 0


def test_an_address_that_is_taken_or_not_here_is_told(settings: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = CliRunner().invoke(web.command, ["/srv/store1", "--listen", f"127.0.0.1:{port}"])
    assert (done.exit_code, done.output.startswith(f"Error: cannot listen on 127.0.0.1, port {port}: ")) == (1, True)
    for address in ("192.0.2.1:9861", "no.such.host.invalid:9861"):
        done = CliRunner().invoke(web.command, ["/srv/store1", "--listen", address])
        assert (done.exit_code, "cannot listen on" in done.output) == (1, True)
    assert list(settings.iterdir()) == []


def test_a_token_is_made_once_and_is_roots(settings: Path) -> None:
    token = web._token()
    assert len(token) >= 40
    assert web._token() == token
    assert stat.S_IMODE((settings / "web-token").stat().st_mode) == 0o600
    assert [path.name for path in settings.iterdir()] == ["web-token"]


@pytest.mark.parametrize("content", [b"", b"\n", b"short\n", b"\xff" * 40, b"a" * 20 + b"\n" + b"b" * 20])
def test_what_is_no_token_is_refused(settings: Path, content: bytes) -> None:
    (settings / "web-token").write_bytes(content)
    (settings / "web-token").chmod(0o600)
    with pytest.raises(Failure) as refused:
        web._token()
    assert "remove it, and a new one is made" in str(refused.value)


def test_a_token_that_others_have_put_there_is_refused(settings: Path) -> None:
    (settings / "web-token").symlink_to("/etc/hostname")
    with pytest.raises(NotOwn):
        web._token()


def test_a_token_that_others_may_read_is_refused(settings: Path) -> None:
    web._token()
    (settings / "web-token").chmod(0o644)
    with pytest.raises(Failure, match="chmod 600"):
        web._token()


@pytest.mark.parametrize(
    ("address", "options", "is_demanded"),
    [("127.0.0.1", [], False), ("127.0.0.1", ["--require-token"], True), ("0.0.0.0", [], True)],  # noqa: S104
)
def test_a_token_is_demanded_off_loopback_and_where_it_is_wanted(
    address: str, options: list[str], is_demanded: bool, settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates = []

    async def serve(_listeners: object, _overview: object, pages: Any, tell: Callable[[], None]) -> None:  # noqa: ANN401
        tell()
        gates.append(pages._gate)

    monkeypatch.setattr(serving, "serve", serve)
    monkeypatch.setattr(web, "begin_log", lambda _: None)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = CliRunner().invoke(web.command, ["/srv/store1", "--listen", f"{address}:{port}", *options])
    assert done.exit_code == 0, done.output
    assert (gates[0].token is not None) == is_demanded
    assert gates[0].is_local == (address == "127.0.0.1")
    assert (settings / "web-token").exists() == is_demanded
    assert gates[0].token is None or gates[0].token not in done.output
