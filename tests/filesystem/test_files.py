"""Data: flags of open, mappings as the index writer makes them, locks between processes, sparse files."""

import errno
import fcntl
import mmap
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.filesystem.conftest import PassThroughProcess

_PROCESSES = multiprocessing.get_context("fork")


def test_append(area: Path) -> None:
    Path("f").write_bytes(b"start")
    one = os.open("f", os.O_WRONLY | os.O_APPEND)
    other = os.open("f", os.O_WRONLY | os.O_APPEND)
    for count in range(3):
        os.write(one, b"one%d" % count)
        os.write(other, b"other%d" % count)
    os.pwrite(one, b"!", 0)  # appends on Linux, whatever the offset
    os.close(one)
    os.close(other)
    assert Path("f").read_bytes() == b"startone0other0one1other1one2other2!"


def test_append_from_several_processes(area: Path) -> None:
    def append(letter: bytes) -> None:
        descriptor = os.open("f", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for _ in range(200):
            os.write(descriptor, letter * 50 + b"\n")

    processes = [_PROCESSES.Process(target=append, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    lines = Path("f").read_bytes().splitlines()
    assert len(lines) == 600
    assert {bytes(set(line)) for line in lines} == {b"a", b"b", b"c"}
    assert {len(line) for line in lines} == {50}


def test_direct(area: Path) -> None:
    buffer = mmap.mmap(-1, 8192)
    buffer.write(b"x" * 8192)
    descriptor = os.open("f", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    assert os.write(descriptor, buffer) == 8192
    assert os.preadv(descriptor, [buffer], 4096) == 4096
    os.close(descriptor)
    assert Path("f").read_bytes() == b"x" * 8192


def test_synchronous(area: Path) -> None:
    for flag in (os.O_SYNC, os.O_DSYNC):
        descriptor = os.open("f", os.O_RDWR | os.O_CREAT | flag)
        assert os.write(descriptor, b"text") == 4
        os.fsync(descriptor)
        os.fdatasync(descriptor)
        os.close(descriptor)
    directory = os.open(".", os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    assert Path("f").read_bytes() == b"text"


def test_large_writes_and_reads(area: Path) -> None:
    data = random.Random(1).randbytes(5_000_003)
    descriptor = os.open("f", os.O_RDWR | os.O_CREAT)
    assert os.pwrite(descriptor, data, 12345) == len(data)
    assert os.fstat(descriptor).st_size == len(data) + 12345
    assert os.pread(descriptor, 10_000_000, 0) == bytes(12345) + data
    assert os.pread(descriptor, 10, 10_000_000) == b""
    os.close(descriptor)
    Path("/proc/sys/vm/drop_caches").write_text("1")
    assert Path("f").read_bytes() == bytes(12345) + data


def test_sparse(area: Path) -> None:
    with open("f", "wb") as file:
        file.seek(1 << 32)
        file.write(b"end")
    status = os.stat("f")
    assert status.st_size == (1 << 32) + 3
    assert status.st_blocks < 100
    with open("f", "rb") as file:
        assert file.read(1 << 16) == bytes(1 << 16)
        file.seek((1 << 32) - 4)
        assert file.read() == bytes(4) + b"end"


def test_copying(area: Path) -> None:
    data = random.Random(2).randbytes(3_000_000)
    Path("a").write_bytes(data)
    shutil.copyfile("a", "b")
    with open("a", "rb") as source, open("c", "wb") as target:
        assert os.copy_file_range(source.fileno(), target.fileno(), 1_000_000) == 1_000_000
    assert Path("b").read_bytes() == data
    assert Path("c").read_bytes() == data[:1_000_000]
    with open("d", "wb") as target:
        os.posix_fallocate(target.fileno(), 0, 100_000)
    assert os.stat("d").st_size == 100_000


def _write_index(name: str, entries: int) -> tuple[int, mmap.mmap, bytes]:
    """Begins a .fidx file as Proxmox Backup Server does; returns descriptor, mapping and what it should hold."""
    digests = random.Random(entries).randbytes(32 * entries)
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    os.write(descriptor, bytes(4096))
    os.ftruncate(descriptor, 4096 + len(digests))
    mapping = mmap.mmap(descriptor, len(digests), mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=4096)
    order = list(range(entries))
    random.Random(0).shuffle(order)
    for position in order:
        mapping[32 * position : 32 * position + 32] = digests[32 * position : 32 * position + 32]
    return descriptor, mapping, digests


@pytest.mark.parametrize("entries", [1, 1000, 60_000])
def test_index_written_through_a_mapping(area: Path, entries: int) -> None:
    os.mkdir("snapshot")
    descriptor, mapping, digests = _write_index("snapshot/x.tmp_fidx", entries)
    assert mapping[:] == digests
    mapping.close()
    os.lseek(descriptor, 32, os.SEEK_SET)
    os.write(descriptor, b"c" * 32)
    os.rename("snapshot/x.tmp_fidx", "snapshot/x.fidx")
    with pytest.raises(FileNotFoundError):
        os.unlink("snapshot/x.tmp_fidx")
    os.close(descriptor)
    expected = bytes(32) + b"c" * 32 + bytes(4096 - 64) + digests
    assert Path("snapshot/x.fidx").read_bytes() == expected
    Path("/proc/sys/vm/drop_caches").write_text("1")
    assert Path("snapshot/x.fidx").read_bytes() == expected
    with open("snapshot/x.fidx", "rb") as file:
        reader = mmap.mmap(file.fileno(), len(digests), mmap.MAP_PRIVATE, mmap.PROT_READ, offset=4096)
    assert reader[:] == digests
    reader.close()


def test_mapped_data_reaches_the_backing_file(shared_mount: PassThroughProcess) -> None:
    path = shared_mount.mountpoint / "mapped.fidx"
    descriptor, mapping, digests = _write_index(str(path), 5000)
    mapping.close()
    os.close(descriptor)
    assert (shared_mount.backing / "mapped.fidx").read_bytes()[4096:] == digests


def test_rename_of_a_mapped_file(area: Path) -> None:
    descriptor, mapping, digests = _write_index("a", 3000)
    os.mkdir("d")
    os.rename("a", "d/b")
    mapping[0:5] = b"later"
    os.rename("d", "e")
    mapping[5:10] = b"again"
    mapping.close()
    os.close(descriptor)
    assert Path("e/b").read_bytes()[4096:] == b"lateragain" + digests[10:]


def test_aborted_backup(area: Path) -> None:
    # Everything goes while it is open, mapped and dirty, its folder too, which is locked.
    os.mkdir("snapshot")
    folder = os.open("snapshot", os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    descriptor, mapping, digests = _write_index("snapshot/x.tmp_fidx", 10_000)
    os.unlink("snapshot/x.tmp_fidx")
    os.rmdir("snapshot")
    os.close(folder)
    assert not os.path.lexists("snapshot")
    mapping[0:4] = b"more"
    mapping.flush()
    assert mapping[:] == b"more" + digests[4:]
    mapping.close()
    assert os.pread(descriptor, 4, 4096) == b"more"
    assert os.fstat(descriptor).st_nlink == 0
    os.close(descriptor)


def test_replaced_while_it_is_read(area: Path) -> None:
    Path("manifest").write_bytes(b"old" * 100_000)
    with open("manifest", "rb") as reader:
        assert reader.read(3) == b"old"
        Path("manifest.tmp_AbCdEf").write_bytes(b"new")
        os.rename("manifest.tmp_AbCdEf", "manifest")
        assert Path("manifest").read_bytes() == b"new"
        Path("/proc/sys/vm/drop_caches").write_text("1")
        assert reader.read() == (b"old" * 100_000)[3:]
        assert os.fstat(reader.fileno()).st_nlink == 0


def _in_another_process(call: Callable[[], object]) -> str:
    """What the call gives in another process: "ok" or the errno's name."""

    def run(connection: Connection) -> None:
        try:
            call()
        except OSError as error:
            connection.send(errno.errorcode[error.errno or 0])
        else:
            connection.send("ok")

    receiver, sender = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=run, args=(sender,))
    process.start()
    assert receiver.poll(20)
    result: str = receiver.recv()
    process.join(20)
    return result


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_flock(area: Path, kind: str) -> None:
    if kind == "file":
        Path("x").touch()
    else:
        os.mkdir("x")

    def attempt(operation: int) -> str:
        def lock() -> None:
            fcntl.flock(os.open("x", os.O_RDONLY), operation | fcntl.LOCK_NB)

        return _in_another_process(lock)

    descriptor = os.open("x", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    assert (attempt(fcntl.LOCK_SH), attempt(fcntl.LOCK_EX)) == ("ok", "EAGAIN")
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert (attempt(fcntl.LOCK_SH), attempt(fcntl.LOCK_EX)) == ("EAGAIN", "EAGAIN")
    os.close(descriptor)
    assert attempt(fcntl.LOCK_EX) == "ok"


def test_record_locks(area: Path) -> None:
    def attempt(operation: int, start: int = 0, length: int = 0) -> str:
        def lock() -> None:
            fcntl.lockf(os.open(".lock", os.O_RDWR), operation | fcntl.LOCK_NB, length, start)

        return _in_another_process(lock)

    descriptor = os.open(".lock", os.O_RDWR | os.O_CREAT)
    fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    assert (attempt(fcntl.LOCK_SH), attempt(fcntl.LOCK_EX)) == ("ok", "EAGAIN")
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # upgraded by the same process
    assert attempt(fcntl.LOCK_SH) == "EAGAIN"
    fcntl.lockf(descriptor, fcntl.LOCK_UN)
    assert attempt(fcntl.LOCK_EX) == "ok"
    fcntl.lockf(descriptor, fcntl.LOCK_EX, 10, 100)
    assert (attempt(fcntl.LOCK_EX, 105, 1), attempt(fcntl.LOCK_EX, 110, 5)) == ("EAGAIN", "ok")
    os.close(os.open(".lock", os.O_RDONLY))  # any close by the process drops all its locks
    assert attempt(fcntl.LOCK_EX) == "ok"
    os.close(descriptor)


def test_locks_end_with_their_process(area: Path) -> None:
    Path("f").touch()

    def lock() -> None:
        descriptor = os.open("f", os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        fcntl.lockf(descriptor, fcntl.LOCK_EX)

    assert _in_another_process(lock) == "ok"
    with open("f", "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_executing(area: Path) -> None:
    shutil.copy("/bin/true", "program")
    os.chmod("program", 0o755)
    assert os.spawnl(os.P_WAIT, "program", "program") == 0
    os.chmod("program", 0o644)
    with pytest.raises(PermissionError):
        subprocess.run(["./program"], check=False)


def test_limit_met_within_a_write(area: Path) -> None:
    def write() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        descriptor = os.open("f", os.O_WRONLY | os.O_CREAT)
        assert os.write(descriptor, bytes(20_000)) == 10_000
        os.write(descriptor, b"more")

    assert _in_another_process(write) == "EFBIG"
    assert os.stat("f").st_size == 10_000
