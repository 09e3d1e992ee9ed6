"""A mount from the first check to the last sync."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import trio

from mirrorfs.chunkstore.possibility import NativeImpossible
from mirrorfs.chunkstore.store import ChunkStore
from mirrorfs.chunkstore.watch import CHUNKS
from mirrorfs.database.directory import DirectoryLock, StateDirectory
from mirrorfs.database.errors import DatabaseCorrupt, DatabaseError
from mirrorfs.events import EventName, about
from mirrorfs.filesystem.condition import Condition, condition_of
from mirrorfs.filesystem.interception import Durability, Interception
from mirrorfs.filesystem.mount import MountError, serve
from mirrorfs.filesystem.mount_table import OwnMount, detach, is_mounted
from mirrorfs.filesystem.operations import PassThrough
from mirrorfs.filesystem.slots import Traffic
from mirrorfs.journal.journal import JournalWriter
from mirrorfs.replication.settings import UploaderSettings
from mirrorfs.state.damage import set_state_aside, stored_identity
from mirrorfs.state.identity import Identity, check_identity
from mirrorfs.steps import reach
from mirrorfs.supervision.ending import Deadline, handle_signals
from mirrorfs.supervision.notifier_process import NotifierProcess
from mirrorfs.supervision.notify import READY, STOPPING, ServiceManager
from mirrorfs.supervision.registry import Registration, RunningMount, find, mount_of
from mirrorfs.supervision.reloading import Reloading
from mirrorfs.supervision.settings import MountSettings
from mirrorfs.supervision.sole_mirror import MirroredAlready, root_id, sole_mirror
from mirrorfs.supervision.trimming import Trimming
from mirrorfs.supervision.unmounting import say_when_unmounted
from mirrorfs.supervision.uploader_process import UploaderProcess
from mirrorfs.supervision.users import how_to_let_go, named, writers_beneath
from mirrorfs.supervision.watchdog import Watchdog

log = logging.getLogger(__name__)

_FIRST_ANSWER_SECONDS = 15.0
_EVENT_QUEUE_SECONDS = 15.0


class MountRefused(Exception):
    """The mount was not made; the message says why and what to do."""


async def run_mount(settings: MountSettings, ready: Callable[[str], None]) -> None:
    """Mount, mirror, and return when the mount is gone or a signal asks for the end.

    `ready` is called once the mount answers, with a sentence if replication waits for something, else with "".

    Raises:
        MountRefused, MountError, DatabaseError: nothing is mounted; the message says why.
    """
    manager = ServiceManager()
    check_paths(settings)
    root_descriptor = _open_datastore(settings)
    directory = StateDirectory(settings.uploader.state_directory)
    directory.create()
    lock = DirectoryLock(directory, "mount")
    lock.acquire()
    reach("mount.locked")
    try:
        damage = _check_state(settings.uploader, directory)
        journal = JournalWriter(directory.journal)
        if journal.distrusted is not None:
            log.warning("%s: it is begun anew, and the whole datastore is compared", journal.distrusted)
        mount = OwnMount(settings.mountpoint)
        with (
            Deadline(partial(_end_by_force, mount, journal)) as deadline,
            _closing(journal),
            _only_mirror(root_descriptor, settings.uploader.datastore),
            _other_file_systems(root_descriptor) as others,
        ):
            await _run(
                settings,
                mount,
                root_descriptor,
                Durability(root_descriptor, journal, others),
                _prepared_chunk_store(settings, root_descriptor),
                journal,
                lambda note: ready(" ".join(filter(None, (damage, note)))),
                manager,
                deadline,
            )
    finally:
        lock.release()
        os.close(root_descriptor)


@contextmanager
def _closing(journal: JournalWriter) -> Iterator[None]:
    """Close it at the end. Where the mount has failed, why is what is told, not that this then failed too."""
    try:
        yield
    except BaseException:
        try:
            journal.close()
        except DatabaseError as error:
            log.error("%s", error)
        raise
    journal.close()


@contextmanager
def _only_mirror(root_descriptor: int, datastore: str) -> Iterator[None]:
    try:
        with sole_mirror(root_descriptor, datastore):
            yield
    except MirroredAlready as error:
        raise MountRefused(str(error)) from error


@contextmanager
def _other_file_systems(root_descriptor: int) -> Iterator[list[int]]:
    """Open the directory of the chunks if it is a file system of its own, as a ZFS data set is; closed at the end."""
    try:
        descriptor = os.open(b".chunks", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root_descriptor)
    except (FileNotFoundError, NotADirectoryError):
        yield []
        return
    try:
        yield [descriptor] if os.fstat(descriptor).st_dev != os.fstat(root_descriptor).st_dev else []
    finally:
        os.close(descriptor)


async def _run(
    settings: MountSettings,
    mount: OwnMount,
    root_descriptor: int,
    durability: Durability,
    chunk_store: ChunkStore,
    journal: JournalWriter,
    ready: Callable[[str], None],
    manager: ServiceManager,
    deadline: Deadline,
) -> None:
    trimming = Trimming(journal)
    registration = Registration(
        RunningMount(
            settings.uploader.datastore,
            settings.mountpoint,
            settings.uploader.state_directory,
            os.getpid(),
            root=root_id(root_descriptor),
            arguments=() if settings.invocation is None else settings.invocation.arguments,
            directory="" if settings.invocation is None else settings.invocation.directory,
        )
    )
    uploader = UploaderProcess(
        replace(settings.uploader, root_descriptor=root_descriptor, journal_sequence=journal.sequence),
        done=trimming.done_up_to,
        died=journal.clear_dead_readers,
        catch_up=chunk_store.catch_up,
        failing=registration.set_uploader_failing,
    )
    notifier = NotifierProcess(settings)
    reloading = Reloading(settings, uploader, notifier)
    interception = Interception(
        journal, durability, uploader.wake, registration.set_journal_broken_since, chunk_store.appeared
    )
    shared = CHUNKS if chunk_store.may_be_native else None
    traffic = Traffic()

    async def serve_until_unmounted(task_status: trio.TaskStatus[None]) -> None:
        try:
            await serve(
                PassThrough(root_descriptor, interception, shared),
                mount,
                settings.mount_options,
                source=settings.uploader.datastore,
                traffic=traffic,
                leaving=chunk_store.leave,
                task_status=task_status,
            )
        except MountError as error:
            raise _with_options(error, settings) from error
        reach("mount.unmounted")
        log.info("%s is unmounted", settings.mountpoint, extra=about(EventName.UNMOUNTED))
        nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            handle_signals(nursery.cancel_scope, deadline, reloading.ask)
            nursery.start_soon(reloading.run)
            nursery.start_soon(uploader.keep_running)
            nursery.start_soon(trimming.run)
            nursery.start_soon(interception.keep_repairing)
            nursery.start_soon(
                chunk_store.run,
                interception.record,
                lambda in_use: registration.set_chunk_store(in_use, chunk_store.overflows),
            )
            note = await _first_answer(uploader, settings)
            reach("mount.before-serve")
            await nursery.start(serve_until_unmounted)
            reach("mount.after-serve")
            await _attach(chunk_store)
            registration.begin(None if mount.entry is None else mount.entry.device)
            nursery.start_soon(say_when_unmounted, mount)
            nursery.start_soon(_note_event_queue, chunk_store, registration)
            reach("mount.registered")
            try:
                mounted = about(EventName.MOUNTED)
                log.info("%s is mounted on %s", settings.uploader.datastore, settings.mountpoint, extra=mounted)
                ready(note)
                manager.tell(READY)
                nursery.start_soon(notifier.keep_running)
                nursery.start_soon(Watchdog(manager, settings.mountpoint, root_descriptor, traffic).run)
                await trio.sleep_forever()
            finally:
                reach("mount.before-end")
                manager.tell(STOPPING)
                registration.end()
    finally:
        await chunk_store.finish()


async def _note_event_queue(chunk_store: ChunkStore, registration: Registration) -> None:
    """Note again and again how many events wait, for the metrics; until cancelled."""
    while True:
        registration.set_event_queue(chunk_store.queued_events())
        await trio.sleep(_EVENT_QUEUE_SECONDS)


def _prepared_chunk_store(settings: MountSettings, root_descriptor: int) -> ChunkStore:
    chunk_store = ChunkStore(settings.chunk_store, settings.mountpoint, root_descriptor, settings.mount_options)
    with _refusing():
        chunk_store.prepare()
    return chunk_store


async def _attach(chunk_store: ChunkStore) -> None:
    with _refusing():
        await chunk_store.attach()


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except NativeImpossible as error:
        raise MountRefused(
            f"chunks cannot be native, as --chunk-store native asks: {error}. With --chunk-store auto they pass "
            "through FUSE where that is so"
        ) from error


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
    reason = _no_answer(settings) if answer is None else answer.reason
    if settings.require_store:
        raise MountRefused(f"{reason} Nothing was mounted, as --require-store asks.")
    return f"Replication waits: {reason}"


def _no_answer(settings: MountSettings) -> str:
    endpoint = settings.uploader.store.endpoint_url or "its default endpoint"
    return (
        f"bucket {settings.uploader.bucket} at {endpoint} has not answered within {_FIRST_ANSWER_SECONDS:.0f} s. "
        "Check the endpoint URL, the network and firewalls on the way, and whether the store runs."
    )


def _end_by_force(mount: OwnMount, journal: JournalWriter) -> None:
    if mount.stands():
        detach(mount.path)
    try:
        journal.sync()
    except DatabaseError as error:
        log.error("%s", error)


def check_paths(settings: MountSettings) -> None:
    """Refuse what cannot be mounted, while nothing has been made and nothing is changed.

    Raises:
        MountRefused: datastore, mount point or state directory cannot be what they are to be, or /dev/fuse is missing.
    """
    datastore, mountpoint = settings.uploader.datastore, settings.mountpoint
    _refuse_second_mount(datastore, mountpoint)
    for path in dict.fromkeys((datastore, mountpoint)):
        if not is_mounted(path):
            _check_directory(path)
        if _is_inside(settings.uploader.state_directory, path):
            raise MountRefused(
                f"the state directory {settings.uploader.state_directory} is inside {path}, where it would be part of "
                "what is mirrored or be covered by the mount: give a --state-dir outside of it"
            )
    _check_fuse()


def _refuse_second_mount(datastore: str, mountpoint: str) -> None:
    for path in dict.fromkeys((mountpoint, datastore)):
        match condition_of(path):
            case Condition.SERVING:
                raise MountRefused(f"{path} is already mounted: see 'mirrorfs status {path}'")
            case Condition.SILENT:
                raise MountRefused(
                    f"{path} is already mounted, and does not answer: its process is stopped, or the disk of the "
                    "datastore hangs. End that first"
                )
    elsewhere = mount_of(datastore)
    if elsewhere is None or condition_of(elsewhere.mountpoint) is Condition.DEAD:
        return
    if not is_mounted(elsewhere.mountpoint):
        raise MountRefused(
            f"{elsewhere.mountpoint} was unmounted, but its process {elsewhere.pid} still serves {datastore}, because "
            f"a copy of the mount or an open file keeps it: end it first with 'mirrorfs umount {datastore}'"
        )
    raise MountRefused(
        f"{datastore} is already mounted, on {elsewhere.mountpoint}: see 'mirrorfs status {elsewhere.mountpoint}', "
        f"or unmount it first with 'mirrorfs umount {elsewhere.mountpoint}'"
    )


def _check_directory(path: str) -> None:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except FileNotFoundError:
        raise MountRefused(f"there is no directory {path}: check the path, and whether its disk is mounted") from None
    except NotADirectoryError:
        raise MountRefused(f"{path} is not a directory: give the path of a datastore") from None
    except OSError as error:
        raise MountRefused(f"cannot open the directory {path}: {error.strerror}") from error


def _is_inside(path: str, directory: str) -> bool:
    return os.path.commonpath((path, directory)) == directory


def _refuse_other_directory(datastore: str, root: str | None) -> None:
    """Refuse what is below a dead mount if it is neither the directory that was mirrored, nor a datastore of PBS.

    While the dead mount covered it, nobody could see that its disk has gone too.
    """
    if os.path.isdir(os.path.join(datastore, os.fsdecode(CHUNKS))):
        return
    _check_directory(datastore)
    descriptor = os.open(datastore, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if root_id(descriptor) == root:
            return
    finally:
        os.close(descriptor)
    raise MountRefused(
        f"{datastore} has no .chunks, and is not the directory that the killed mirrorfs mirrored: is its disk "
        "missing? Mount it first. The dead mount is taken away already"
    )


def _open_datastore(settings: MountSettings) -> int:
    datastore, mountpoint = settings.uploader.datastore, settings.mountpoint
    for path in (mountpoint, datastore):
        if condition_of(path) is Condition.DEAD:
            log.warning("taking away the dead mount that a killed mirrorfs left on %s", path)
            dead = find(path)
            detach(path)
            if path == datastore:
                _refuse_other_directory(path, None if dead is None else dead.root)
    _check_directory(datastore)
    descriptor = os.open(datastore, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _refuse_what_is_in_use(settings, descriptor)
    except MountRefused:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_what_is_in_use(settings: MountSettings, descriptor: int) -> None:
    datastore = settings.uploader.datastore
    writers = writers_beneath(datastore, descriptor)
    if not writers:
        return
    if settings.while_in_use:
        log.warning(
            "%s has files of %s open from before: what they write to these is not seen", named(writers), datastore
        )
        return
    raise MountRefused(
        f"{named(writers)} has files of {datastore} open for writing: what is written to these from now on would not "
        f"be seen. {how_to_let_go(datastore)} Or say --while-in-use"
    )


def _with_options(error: MountError, settings: MountSettings) -> MountError:
    if not settings.mount_options:
        return error
    options = ",".join(settings.mount_options)
    return MountError(f"{error}. Check the mount options (-o {options}); libfuse's own words about them are in the log")


def _check_fuse() -> None:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        hint = "run 'modprobe fuse'" if error.errno in (errno.ENOENT, errno.ENODEV) else "check its permissions"
        raise MountRefused(f"cannot use /dev/fuse ({error.strerror}): {hint}") from error


def _check_state(settings: UploaderSettings, directory: StateDirectory) -> str:
    """Refuse a state directory that the uploader could not use, while there is somebody to tell it to.

    A damaged state is set aside: the backups must go on being mirrored. Returns what there is to say about that, or "".
    """
    try:
        stored = stored_identity(directory)
    except DatabaseCorrupt as error:
        return f"{set_state_aside(directory, str(error))}."
    check_identity(stored, Identity(settings.datastore, settings.bucket, settings.prefix), directory.path)
    return ""
