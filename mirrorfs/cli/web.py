"""`mirrorfs web`."""

from __future__ import annotations

import os
import secrets
import shlex
import stat
from dataclasses import replace
from functools import partial

import click
import trio

from mirrorfs import own_files
from mirrorfs.cli import mount
from mirrorfs.cli.drilled import last_drills
from mirrorfs.cli.errors import Failure, require_root
from mirrorfs.cli.listening import ListenAddress, shown_address
from mirrorfs.cli.mounted import locate
from mirrorfs.cli.settings_file import (
    DATASTORE,
    SETTINGS_BASE,
    SettingsFile,
    file_settings,
    named_datastore,
    settings_file,
)
from mirrorfs.filesystem.mount_table import real_path
from mirrorfs.output import begin_log, say
from mirrorfs.supervision.asking import NoAnswer, read_status
from mirrorfs.web import serving
from mirrorfs.web.gate import Gate
from mirrorfs.web.overview import Drilled, Overview, Reading
from mirrorfs.web.pages import Pages

TOKEN_FILE = f"{SETTINGS_BASE}/web-token"
# As the usual --warning of 'mirrorfs status'.
_BEHIND_AFTER = 3600.0
_TOKEN_BYTES = 32
_SHORTEST_TOKEN = 16
_SETTINGS = {"listen": "web_listen", "require_token": "web_require_token"}


class _WebCommand(click.Command):
    """A command that takes from the settings file of its datastore what the table [web] has; options win over that."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the settings file before the arguments are checked."""
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        datastore = given.get("datastore")
        if isinstance(datastore, str) and (file := settings_file(real_path(named_datastore(datastore)))) is not None:
            known = file_settings(file, mount.command)
            of_use = {own: known[setting] for own, setting in _SETTINGS.items() if setting in known}
            ctx.default_map = {**(ctx.default_map or {}), **of_use}
        return super().parse_args(ctx, args)


@click.command("web", cls=_WebCommand, short_help="Serve a page that shows how the mirror is, for a browser.")
@click.argument("datastore", type=DATASTORE)
@click.option(
    "--listen",
    type=ListenAddress(),
    default=mount.WEB_ADDRESS,
    metavar="ADDRESS:PORT",
    help="Where to listen. Where others than this machine reach it, a token is demanded.",
)
@click.option("--require-token", is_flag=True, help="Demand the token on this machine too, which has other users.")
def command(datastore: str, listen: tuple[str, int], require_token: bool) -> None:
    """Serve one page that shows how the mirror of DATASTORE is and was in the last day, until ended.

    It needs nothing from elsewhere, keeps itself up to date, and changes nothing. The last day is kept in memory, from
    when this begins.

    On this machine alone it is open to its users. Else, and with --require-token, the browser asks for a password: that
    is the token in /etc/mirrorfs/web-token, which is made when it is missing. There is no TLS: put a reverse proxy
    before it, or a tunnel ('ssh -L 9861:127.0.0.1:9861 root@SERVER').

    As a service: web.listen in /etc/mirrorfs/NAME.toml, then 'mirrorfs install NAME'. docs/web.md tells the rest.

    \b
    Example:
      mirrorfs web store1
      mirrorfs web /mnt/datastore/store1 --listen 127.0.0.1:8080
      mirrorfs web store1 --listen [::]:9861

    Exit codes: 1 ADDRESS:PORT cannot be used, 2 wrong usage.
    """
    require_root("ask a mirror how it is")
    trio.run(_serve, real_path(datastore), listen, require_token)


async def _serve(datastore: str, listen: tuple[str, int], require_token: bool) -> None:
    address, port = listen
    try:
        listeners = await serving.listen(address, port)
    except OSError as error:
        raise Failure(f"cannot listen on {address}, port {port}: {error.strerror or error}") from error
    is_local = serving.are_local(listeners)
    token = None if is_local and not require_token else _token()
    overview = Overview(partial(_read, datastore, settings_file(datastore)))
    begin_log("web")

    def tell() -> None:
        say(f"the page is at http://{shown_address(address, port)}/", err=True)
        if token is not None:
            say(f"its password is the token in {TOKEN_FILE}, with any user name", err=True)

    await serving.serve(listeners, overview, Pages(overview, Gate(token, is_local)), tell)


def _token() -> str:
    """Return the token, which is made where there is none. Raises Failure, NotOwn."""
    try:
        if not os.path.lexists(TOKEN_FILE):
            _make_token()
        with os.fdopen(own_files.open_file(TOKEN_FILE), "rb") as file:
            is_open_to_others = bool(os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO))
            token = file.read().decode("ascii").strip()
    except UnicodeDecodeError:
        token = ""
    except own_files.NotOwn:
        raise
    except OSError as error:
        raise Failure(f"cannot use the token in {TOKEN_FILE}: {error.strerror}") from error
    if is_open_to_others:
        raise Failure(f"others may read the token in {TOKEN_FILE}: run 'chmod 600 {TOKEN_FILE}', or remove it")
    if len(token) < _SHORTEST_TOKEN or not token.isprintable():
        raise Failure(
            f"{TOKEN_FILE} holds no token of at least {_SHORTEST_TOKEN} characters of ASCII in one line: remove it, "
            "and a new one is made"
        )
    return token


def _make_token() -> None:
    own_files.make_directory(SETTINGS_BASE)
    new = f"{TOKEN_FILE}.new"
    with os.fdopen(own_files.new_file(new), "w", encoding="ascii") as file:
        file.write(f"{secrets.token_urlsafe(_TOKEN_BYTES)}\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, TOKEN_FILE)


def _read(datastore: str, file: SettingsFile | None) -> Reading:
    given = shlex.quote(datastore if file is None else file.name)
    reading = Reading(None, None, approve=f"mirrorfs retention approve {given}", heal=f"mirrorfs heal {given}")
    try:
        status = read_status(locate(datastore), _BEHIND_AFTER)
    except (NoAnswer, OSError, ValueError) as error:
        # Also of root's files, sockets and processes, and of an answer that was cut off.
        return replace(reading, error=str(error))
    notes, problem = last_drills(status)
    drills = [Drilled(group, note.drilled, note.good) for group, note in notes.items()]
    drills.sort(key=lambda drilled: drilled.time, reverse=True)
    return replace(reading, status=status, drills=drills, drills_error=problem)
