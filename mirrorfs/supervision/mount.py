"""A mount from the first check to the last sync."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass

import trio

from mirrorfs.filesystem.interception import Durability, Interception
from mirrorfs.filesystem.mount import detach, is_dead, is_mounted, serve
from mirrorfs.filesystem.operations import PassThrough
from mirrorfs.journal.directory import DirectoryLock, StateDirectory
from mirrorfs.journal.journal import JournalWriter
from mirrorfs.journal.state import Identity, State, check_identity
from mirrorfs.replication.settings import UploaderSettings
from mirrorfs.supervision.registry import RunningMount, register, unregister
from mirrorfs.supervision.trimming import Trimming
from mirrorfs.supervision.uploader_process import UploaderProcess

log = logging.getLogger(__name__)

_FIRST_ANSWER_SECONDS = 15.0


class MountRefused(Exception):
    """The mount was not made; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class MountSettings:
    """Everything a mount is told. Holds no secret.

    `uploader` carries the datastore (an absolute path without symlinks) and the state directory; its root descriptor is
    filled in when the datastore has been opened.
    """

    mountpoint: str
    uploader: UploaderSettings
    mount_options: tuple[str, ...] = ()
    require_store: bool = False

    def encode(self) -> bytes:
        """Write as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> MountSettings:
        """Read what `encode` wrote."""
        value = json.loads(data)
        value["uploader"] = UploaderSettings(**value["uploader"])
        value["mount_options"] = tuple(value["mount_options"])
        return cls(**value)


async def run_mount(settings: MountSettings, ready: Callable[[str], None]) -> None:
    """Mount, mirror, and return when the mount is gone or a signal asks for the end.

    `ready` is called once the mount answers, with a sentence if replication waits for something, else with "".

    Raises:
        MountRefused, MountError, JournalError: nothing is mounted; the message says why.
    """
    root_descriptor = _open_datastore(settings)
    directory = StateDirectory(settings.uploader.state_directory)
    directory.create()
    lock = DirectoryLock(directory, "mount")
    lock.acquire()
    try:
        _check_state(settings.uploader, directory)
        journal = JournalWriter(directory.journal)
        if journal.distrusted is not None:
            log.warning("%s: it is begun anew, and the whole datastore is compared", journal.distrusted)
        try:
            await _run(settings, root_descriptor, journal, ready)
        finally:
            journal.close()
    finally:
        lock.release()
        os.close(root_descriptor)


async def _run(
    settings: MountSettings, root_descriptor: int, journal: JournalWriter, ready: Callable[[str], None]
) -> None:
    trimming = Trimming(journal)
    uploader = UploaderProcess(
        _with_descriptor(settings.uploader, root_descriptor), done=trimming.done_up_to, died=journal.clear_dead_readers
    )
    interception = Interception(journal, Durability(root_descriptor, journal), uploader.wake)
    registration = RunningMount(
        settings.uploader.datastore, settings.mountpoint, settings.uploader.state_directory, os.getpid()
    )

    async def serve_until_unmounted(task_status: trio.TaskStatus[None]) -> None:
        await serve(
            PassThrough(root_descriptor, interception),
            settings.mountpoint,
            settings.mount_options,
            source=settings.uploader.datastore,
            task_status=task_status,
        )
        log.info("%s is unmounted", settings.mountpoint)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_on_signal, nursery.cancel_scope)
        nursery.start_soon(uploader.keep_running)
        nursery.start_soon(trimming.run)
        note = await _first_answer(uploader, settings)
        await nursery.start(serve_until_unmounted)
        register(registration)
        try:
            log.info("%s is mounted on %s", settings.uploader.datastore, settings.mountpoint)
            ready(note)
            await trio.sleep_forever()
        finally:
            unregister(registration)


async def _first_answer(uploader: UploaderProcess, settings: MountSettings) -> str:
    """Wait until it is known how the store answers; give what there is to say about it.

    Raises:
        MountRefused: the bucket is somebody else's, or the store is required and does not serve.
    """
    with trio.move_on_after(_FIRST_ANSWER_SECONDS):
        await uploader.answered.wait()
    answer = uploader.store_answer
    if answer is not None and answer.state == "refused":
        raise MountRefused(answer.reason)
    if answer is not None and answer.state == "ready":
        return ""
    reason = "The store has not answered yet." if answer is None else answer.reason
    if settings.require_store:
        raise MountRefused(f"{reason} Nothing was mounted, as --require-store asks.")
    return f"Replication waits: {reason}"


async def _end_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            if scope.cancel_called:
                log.warning("ending at once, at the second signal")
                os._exit(128 + number)
            log.info("unmounting, at %s", signal.Signals(number).name)
            scope.cancel()


def _open_datastore(settings: MountSettings) -> int:
    datastore, mountpoint = settings.uploader.datastore, settings.mountpoint
    if is_dead(mountpoint):
        log.warning("taking away the dead mount that a killed mirrorfs left on %s", mountpoint)
        detach(mountpoint)
    if is_mounted(mountpoint) or is_mounted(datastore):
        raise MountRefused(f"{mountpoint} is already mounted: see 'mirrorfs status {mountpoint}'")
    if os.geteuid() != 0:
        raise MountRefused("only root can mount a datastore: its files belong to several users")
    _check_fuse()
    try:
        return os.open(datastore, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise MountRefused(f"there is no directory {datastore}") from None
    except NotADirectoryError:
        raise MountRefused(f"{datastore} is not a directory") from None
    except OSError as error:
        raise MountRefused(f"cannot open {datastore}: {error.strerror}") from error


def _check_fuse() -> None:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        hint = "run 'modprobe fuse'" if error.errno in (errno.ENOENT, errno.ENODEV) else "check its permissions"
        raise MountRefused(f"cannot use /dev/fuse ({error.strerror}): {hint}") from error


def _check_state(settings: UploaderSettings, directory: StateDirectory) -> None:
    """Refuse a state directory that the uploader could not use, while there is somebody to tell it to."""
    if not os.path.exists(os.path.join(directory.state, "data.mdb")):
        return
    state = State(directory.state, read_only=True)
    try:
        stored = state.view(lambda transaction: transaction.identity())
    finally:
        state.close()
    check_identity(stored, Identity(settings.datastore, settings.bucket, settings.prefix), directory.path)


def _with_descriptor(settings: UploaderSettings, root_descriptor: int) -> UploaderSettings:
    return UploaderSettings(**{**asdict(settings), "root_descriptor": root_descriptor})
