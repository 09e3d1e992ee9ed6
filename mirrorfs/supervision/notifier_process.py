"""The notifier as seen by the filesystem process: started when there is somebody to tell, and again when it dies."""

from __future__ import annotations

import logging
import signal
import subprocess
from dataclasses import replace

import trio

from mirrorfs import interpreter, own_files
from mirrorfs.database.directory import StateDirectory
from mirrorfs.restarts import Restarts
from mirrorfs.supervision.settings import MountSettings, NotifySettings

log = logging.getLogger(__name__)

END = b"end"
"""The line by which it is told that the mount ends in order."""
_LONGEST_DELAY = 60.0
_END_SECONDS = 1.0


class NotifierProcess:
    """Keeps one notifier running while something is set. Nothing here waits for it but its own task."""

    def __init__(self, settings: MountSettings) -> None:
        self._settings = settings
        self._restarts = Restarts("notifier")
        self._process: trio.Process | None = None
        self._changed = trio.Event()

    @property
    def settings(self) -> NotifySettings:
        """Whom it tells, and when."""
        return self._settings.notify

    def take(self, settings: NotifySettings) -> None:
        """Go on with other settings, if they are others."""
        if settings != self._settings.notify:
            self._settings = replace(self._settings, notify=settings)
            self._changed.set()

    def hang_up(self) -> None:
        """Have it open its log again."""
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    async def keep_running(self) -> None:
        """Run it, and start it again when it dies, until cancelled; then end it."""
        while True:
            self._changed = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_one_running)
                await self._changed.wait()
                nursery.cancel_scope.cancel()

    async def _keep_one_running(self) -> None:
        if not self.settings.is_set:
            await trio.to_thread.run_sync(self._forget)
        while self.settings.is_set:
            self._restarts.began(trio.current_time())
            try:
                how = f"ended unexpectedly (exit code {await self._run_once()})"
            except (OSError, RuntimeError) as error:
                how = f"could not be run ({error})"
            delay = self._restarts.ended(how, trio.current_time(), _LONGEST_DELAY)
            log.error("the notifier %s; starting it again in %.0f s", how, delay)
            await trio.sleep(delay)

    def _forget(self) -> None:
        """Who is told again in some months is told what is wrong then, and not that this is over."""
        path = StateDirectory(self._settings.uploader.state_directory).told_file
        try:
            own_files.take_away(path)
        except OSError as error:
            log.warning("what the notifier has told is not forgotten: %s", error)

    async def _run_once(self) -> int:
        process = await trio.lowlevel.open_process(
            interpreter.command("mirrorfs.notification"),
            env=interpreter.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            cwd=interpreter.WORKING_DIRECTORY,
        )
        assert process.stdin is not None
        self._process = process
        try:
            await process.stdin.send_all(self._settings.encode() + b"\n")
            return await process.wait()
        except trio.BrokenResourceError:
            return await process.wait()
        finally:
            self._process = None
            with trio.CancelScope(shield=True):
                await _end(process)


async def _end(process: trio.Process) -> None:
    assert process.stdin is not None
    if process.returncode is None:
        with trio.move_on_after(_END_SECONDS):
            try:
                await process.stdin.send_all(END + b"\n")
            except trio.BrokenResourceError:
                log.debug("the notifier is gone")
            await process.stdin.aclose()
            await process.wait()
        if process.returncode is None:
            process.kill()
    await trio.aclose_forcefully(process.stdin)
    await process.wait()
