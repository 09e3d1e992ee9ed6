"""What SIGHUP asks for: the log is opened again, and the settings are read again and hold for the uploader at once."""

from __future__ import annotations

import logging
import subprocess
from dataclasses import asdict, replace

import trio

from mirrorfs import interpreter
from mirrorfs.log_file import LogFile
from mirrorfs.supervision.settings import MountSettings
from mirrorfs.supervision.uploader_process import UploaderProcess

log = logging.getLogger(__name__)

_READING_SECONDS = 60.0
# What a mount is, and what it was told once: these last as long as it does.
_LASTING = ("datastore", "state_directory", "bucket", "prefix", "log_format")
# What was taken over once is not taken back from whoever has taken it over since.
_GIVEN_BY_THE_MOUNT = ("root_descriptor", "journal_sequence", "take_over")


class Reloading:
    """Opens the log again and reads the settings again, whenever that is asked for."""

    def __init__(self, settings: MountSettings, uploader: UploaderProcess) -> None:
        self._settings = settings
        self._uploader = uploader
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
            await self._read_settings()

    async def _reopen_log(self) -> None:
        try:
            await trio.to_thread.run_sync(self._log_file.reopen)
        except OSError as error:
            log.error("the log cannot be opened again, and goes on where it was: %s", error)
            return
        log.info("the log has been opened again, at SIGHUP")
        self._uploader.hang_up()

    async def _read_settings(self) -> None:
        if self._settings.invocation is None:
            return
        try:
            read = await self._run_again(self._settings.invocation.directory, self._settings.invocation.arguments)
        except (OSError, trio.TooSlowError) as error:
            log.error("the settings cannot be read again, and stay as they are: %s", str(error) or "it takes too long")
            return
        if read.returncode != 0:
            log.error("the settings stay as they are: %s", read.stderr.decode(errors="replace").strip())
            return
        self._take(MountSettings.decode(read.stdout))

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

    def _take(self, settings: MountSettings) -> None:
        before, read = asdict(self._uploader.settings), asdict(settings.uploader)
        for name in self._what_cannot_change(settings):
            log.warning("%s cannot change while it is mounted: unmount and mount again for that", name)
        kept = {name: before[name] for name in (*_LASTING, *_GIVEN_BY_THE_MOUNT)}
        changed = [name for name, value in read.items() if name not in kept and value != before[name]]
        if not changed:
            log.info("the settings have been read again: nothing has changed")
            return
        log.info("the settings have been read again; the uploader begins anew with another %s", ", ".join(changed))
        self._uploader.begin_anew(replace(settings.uploader, **kept))

    def _what_cannot_change(self, settings: MountSettings) -> list[str]:
        uploader = [
            name for name in _LASTING if getattr(settings.uploader, name) != getattr(self._settings.uploader, name)
        ]
        mount = [
            name
            for name in ("mountpoint", "mount_options", "chunk_store")
            if getattr(settings, name) != getattr(self._settings, name)
        ]
        return uploader + mount
