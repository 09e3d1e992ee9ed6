"""Ways to tell an event: a command of the administrator's, and mail as PBS sends it, by sendmail."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import stat
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import trio

from mirrorfs import own_files
from mirrorfs.notification.event import Event
from mirrorfs.supervision.settings import NotifySettings

log = logging.getLogger(__name__)

SENDMAIL = "/usr/sbin/sendmail"
# A server that does not answer is not waited for any longer.
SECONDS = 60.0
_REST_SECONDS = 1.0
_MOST_OUTPUT = 16 * 1024
_MOST_LINES = 50
# Nothing of ours is for others: keys of the store stand in our environment.
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ")


class NotDelivered(Exception):
    """Nobody has been told; the message is a sentence that says why."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to tell an event, by its name in the settings."""

    name: str
    arguments: tuple[str, ...]
    address: str | None = None
    """Whom a mail is for; None: it is no mail."""

    @property
    def whom(self) -> str:
        """The name, and whom it tells: what one address was told another one was not."""
        return f"{self.name} {shlex.join(self.arguments) if self.address is None else self.address}"

    async def tell(self, event: Event) -> None:
        """Tell it. What the program prints goes into the log. Raises NotDelivered."""
        program = await trio.to_thread.run_sync(self.check)
        given = event.as_json() if self.address is None else event.as_mail(self.address)
        code, output = await _run(program, self.arguments, given, event.as_environment())
        for line in output.decode(errors="replace").splitlines()[:_MOST_LINES]:
            log.info("notify.%s says: %s", self.name, line)
        if code is None:
            raise NotDelivered(f"{self.arguments[0]} was ended, since it ran for {SECONDS:.0f} s")
        if code != 0:
            raise NotDelivered(f"{self.arguments[0]} has failed ({_describe(code)}){_said(output)}")

    def check(self) -> str:
        """Make sure that the program is there, and that only root could have put it there. Raises NotDelivered.

        Returns its path without links, which is what is to be run.
        """
        path = self.arguments[0]
        try:
            program = own_files.check_program(path)
            is_file = stat.S_ISREG(os.stat(program).st_mode)
        except own_files.NotOwn as error:
            raise NotDelivered(f"{path} is not run as root: {error}") from error
        except OSError as error:
            raise NotDelivered(f"cannot run {path}: {error.strerror}") from error
        if not is_file or not os.access(program, os.X_OK):
            raise NotDelivered(f"cannot run {path}: it is no program (run 'chmod +x {path}' if it is a script)")
        return program


def ways(settings: NotifySettings, *, sendmail: str = SENDMAIL) -> list[Way]:
    """Return the ways that are set."""
    found = [Way("command", settings.command)] if settings.command else []
    if settings.mail is not None:
        # -i: a line with a single dot is not the end. The address stands in the mail, not among the arguments.
        found.append(Way("mail", (sendmail, "-t", "-i"), settings.mail))
    return found


async def _run(
    program: str, arguments: Sequence[str], given: bytes, variables: Mapping[str, str]
) -> tuple[int | None, bytes]:
    """Run a program without a shell; returns its exit code, None if it was ended, and the first of its output."""
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    try:
        process = await trio.lowlevel.open_process(
            # Its own name stays the one that was given: a sendmail that is a link is one by that.
            list(arguments),
            executable=program,
            env={**passed_on, **variables},
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # A group of its own, so that it can be ended with all that it has started.
            start_new_session=True,
        )
    except OSError as error:
        raise NotDelivered(f"cannot run {arguments[0]}: {error.strerror}") from error
    output, is_read = bytearray(), trio.Event()
    try:
        with trio.move_on_after(SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_give, process, given)
                nursery.start_soon(_collect, process, output, is_read)
                await process.wait()
                # What it has left running may keep the pipe: that is not waited for.
                with trio.move_on_after(_REST_SECONDS):
                    await is_read.wait()
                nursery.cancel_scope.cancel()
        return process.returncode, bytes(output)
    finally:
        with trio.CancelScope(shield=True):
            await _end(process)


async def _give(process: trio.Process, given: bytes) -> None:
    assert process.stdin is not None
    try:
        await process.stdin.send_all(given)
        await process.stdin.aclose()
    except trio.BrokenResourceError:
        log.debug("the program does not read what it is given")


async def _collect(process: trio.Process, output: bytearray, is_read: trio.Event) -> None:
    assert process.stdout is not None
    async for data in process.stdout:
        # What is more is read, so that the program can go on, and dropped.
        output += data[: _MOST_OUTPUT - len(output)]
    is_read.set()


async def _end(process: trio.Process) -> None:
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            await trio.aclose_forcefully(stream)
    await process.wait()


def _describe(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _said(output: bytes) -> str:
    lines = output.decode(errors="replace").split("\n")
    return f": {lines[0].strip()}" if lines[0].strip() else ""
