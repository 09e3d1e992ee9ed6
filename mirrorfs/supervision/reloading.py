"""What SIGHUP asks for: the log is opened again, and the settings are read again and hold for the uploader at once."""

from __future__ import annotations

import logging
import subprocess
from dataclasses import replace

import trio

from mirrorfs import interpreter
from mirrorfs.database.directory import StateDirectory
from mirrorfs.log_file import LogFile
from mirrorfs.supervision.changes import GIVEN_BY_THE_MOUNT, LASTING, Changes, changes
from mirrorfs.supervision.notifier_process import NotifierProcess
from mirrorfs.supervision.reload_request import Outcome, answer_request
from mirrorfs.supervision.settings import MountSettings
from mirrorfs.supervision.uploader_process import UploaderProcess

log = logging.getLogger(__name__)

_READING_SECONDS = 60.0


class Reloading:
    """Opens the log again and reads the settings again, whenever that is asked for."""

    def __init__(self, settings: MountSettings, uploader: UploaderProcess, notifier: NotifierProcess) -> None:
        self._settings = settings
        self._uploader = uploader
        self._notifier = notifier
        self._log_file = LogFile()
        self._asked = trio.Event()
        self._token = trio.lowlevel.current_trio_token()

    def ask(self) -> None:
        """Have `run` do it; may be called in any thread."""
        self._token.run_sync_soon(lambda: self._asked.set())

    async def run(self) -> None:
        """Do it each time that it is asked for, until cancelled. What goes wrong is logged, and all stays as it was."""
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            await self._reopen_log()
            directory = StateDirectory(self._settings.uploader.state_directory)
            outcome = await self._read_settings()
            await trio.to_thread.run_sync(answer_request, directory, outcome)

    async def _reopen_log(self) -> None:
        try:
            await trio.to_thread.run_sync(self._log_file.reopen)
        except OSError as error:
            log.error("the log cannot be opened again, and goes on where it was: %s", error)
            return
        log.info("the log has been opened again, at SIGHUP")
        self._uploader.hang_up()
        self._notifier.hang_up()

    async def _read_settings(self) -> Outcome:
        if self._settings.invocation is None:
            return _failed("this mount was not made by 'mirrorfs mount'")
        try:
            read = await self._run_again(self._settings.invocation.directory, self._settings.invocation.arguments)
        except (OSError, trio.TooSlowError) as error:
            return _failed(f"the settings cannot be read again: {str(error) or 'it takes too long'}")
        if read.returncode != 0:
            return _failed(read.stderr.decode(errors="replace").strip())
        return Outcome(await self._take(MountSettings.decode(read.stdout)))

    async def _run_again(self, directory: str, arguments: tuple[str, ...]) -> subprocess.CompletedProcess[bytes]:
        """Run the command that was given at the beginning, to see how it would be understood now."""
        with trio.fail_after(_READING_SECONDS):
            return await trio.run_process(
                interpreter.command("mirrorfs.cli", "mount", *arguments, "--show-settings", directory),
                env=interpreter.environment(),
                cwd=interpreter.WORKING_DIRECTORY,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )

    async def _take(self, settings: MountSettings) -> Changes:
        before = self._uploader.settings
        found = changes(replace(self._settings, uploader=before, notify=self._notifier.settings), settings)
        self._notifier.take(settings.notify)
        for key in found.wait:
            log.warning("%s cannot change while it is mounted: unmount and mount again for that", key)
        if found.anew:
            log.info(
                "the settings have been read again; the uploader begins anew with another %s", ", ".join(found.anew)
            )
            kept = {name: getattr(before, name) for name in (*LASTING, *GIVEN_BY_THE_MOUNT)}
            self._uploader.begin_anew(replace(settings.uploader, **kept))
        elif found.at_once:
            log.info("the settings have been read again; another %s holds at once", ", ".join(found.at_once))
            await self._uploader.limit(settings.uploader.limits)
        else:
            log.info("the settings have been read again: nothing has changed")
        return found


def _failed(why: str) -> Outcome:
    log.error("the settings stay as they are: %s", why)
    return Outcome(Changes(), why)
