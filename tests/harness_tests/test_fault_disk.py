"""Whether the disk for tests fails as real disks do, and only so: what was flushed survives any cut, what was not may
be lost, and faults hit the file that they were meant for."""

from __future__ import annotations

import errno
import mmap
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import pytest

from tests.harness.fault_disk import FaultDisk, FaultDiskError, PowerCut, Survivors
from tests.harness.fault_disk_medium import SECTOR, CachedWrite, Medium, choose
from tests.harness.fault_disk_server import overlaps, without

_SECONDS = 60.0

MIB = 1024 * 1024
BLOCK = 4096


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FaultDisk]:
    disk = FaultDisk(tmp_path / "disk", size=128 * MIB)
    disk.start()
    try:
        yield disk
    finally:
        disk.stop()


def write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_to_the_disk_without_flush(path: Path, data: bytes) -> None:
    """O_DIRECT: the disk has it when this returns, and may have it in its cache only."""
    buffer = mmap.mmap(-1, len(data))
    buffer.write(data)
    descriptor = os.open(path, os.O_WRONLY | os.O_DIRECT)
    try:
        for start in range(0, len(data), BLOCK):
            os.pwrite(descriptor, memoryview(buffer)[start : start + BLOCK], start)
    finally:
        os.close(descriptor)


def read_error(path: Path) -> int | None:
    """The number of the error that reading the file gives."""
    try:
        path.read_bytes()
    except OSError as error:
        return error.errno
    return None


class TestMedium:
    def test_shows_every_write_and_keeps_what_was_flushed(self, tmp_path: Path) -> None:
        medium = Medium(tmp_path, 64 * BLOCK)
        medium.write(8 * BLOCK, b"a" * BLOCK)
        medium.flush()
        medium.write(8 * BLOCK, b"b" * BLOCK)
        medium.write(9 * BLOCK, b"c" * BLOCK)
        assert medium.read(8 * BLOCK, 2 * BLOCK) == b"b" * BLOCK + b"c" * BLOCK
        cut = medium.cut(Survivors.NONE, Random(0))
        assert cut == PowerCut(2, 0, 2 * BLOCK, Survivors.NONE)
        assert medium.read(8 * BLOCK, 2 * BLOCK) == b"a" * BLOCK + bytes(BLOCK)
        medium.close()

    def test_survivors_are_as_they_were_written_last(self, tmp_path: Path) -> None:
        medium = Medium(tmp_path, 64 * BLOCK)
        medium.write(8 * BLOCK, b"a" * 2 * BLOCK)
        medium.write(9 * BLOCK, b"b" * 2 * BLOCK)
        assert medium.cut(Survivors.ALL, Random(0)) == PowerCut(0, 2, 0, Survivors.ALL)
        assert medium.read(8 * BLOCK, 3 * BLOCK) == b"a" * BLOCK + b"b" * 2 * BLOCK
        assert medium.cut(Survivors.NONE, Random(0)).lost_writes == 0
        assert medium.read(8 * BLOCK, 3 * BLOCK) == b"a" * BLOCK + b"b" * 2 * BLOCK
        medium.close()

    def test_a_full_cache_makes_the_oldest_durable(self, tmp_path: Path) -> None:
        medium = Medium(tmp_path, 64 * BLOCK, cache_bytes=2 * BLOCK)
        for index in range(5):
            medium.write(index * BLOCK, bytes([index + 1]) * BLOCK)
        assert medium.cut(Survivors.NONE, Random(0)).lost_writes == 2
        assert medium.read(0, 5 * BLOCK) == b"\1" * BLOCK + b"\2" * BLOCK + b"\3" * BLOCK + bytes(2 * BLOCK)
        medium.close()

    def test_prefixes_subsets_and_torn_writes_all_come_up(self) -> None:
        writes = [CachedWrite((index + 1) * BLOCK, bytes([index]) * BLOCK) for index in range(6)]
        prefix_lengths, subset_is_no_prefix, torn_sizes = set(), False, set()
        for seed in range(200):
            kept, torn = choose(writes, Survivors.PREFIX, Random(seed))
            assert kept == writes[: len(kept)]
            assert not torn or writes[len(kept)].data.startswith(torn[0].data)
            prefix_lengths.add(len(kept))
            kept, torn = choose(writes, Survivors.SUBSET, Random(seed))
            assert kept == sorted(kept, key=lambda write: write.offset)
            subset_is_no_prefix |= kept != writes[: len(kept)]
            for part in torn:
                whole = writes[part.offset // BLOCK - 1]
                assert whole not in kept
                start = part.offset - whole.offset
                assert part == whole.part(start, start + len(part.data))
                torn_sizes.add(len(part.data))
        assert prefix_lengths == set(range(7))
        assert subset_is_no_prefix
        assert torn_sizes == {count * SECTOR for count in range(1, BLOCK // SECTOR)}

    def test_superblock_is_never_torn(self) -> None:
        writes = [CachedWrite(0, bytes(BLOCK))]
        assert not any(choose(writes, Survivors.SUBSET, Random(seed))[1] for seed in range(100))


def test_written_blocks_leave_the_bad_ones() -> None:
    assert overlaps([(10, 20)], 19, 1)
    assert not overlaps([(10, 20)], 20, 5)
    assert without(((10, 20), (30, 40)), 15, 20) == ((10, 15), (35, 40))
    assert without(((10, 20),), 12, 3) == ((10, 12), (15, 20))
    assert without(((10, 20),), 0, 30) == ()


class TestPowerCuts:
    def test_synced_files_survive_any_cut_with_their_inodes(self, disk: FaultDisk) -> None:
        random = Random(20)
        synced: dict[str, tuple[bytes, int]] = {}
        lost = cuts = 0
        # A cut may come just after a flush, when there is nothing to lose.
        while cuts < 12 or (lost == 0 and cuts < 100):
            seed = cuts
            with _writers_at_work(disk.mountpoint, seed) as confirmed:
                name, data = f"synced-{seed}", random.randbytes(random.randint(1, 300_000))
                write_synced(disk.mountpoint / name, data)
                sync_directory(disk.mountpoint)
                synced[name] = data, (disk.mountpoint / name).stat().st_ino
                (disk.mountpoint / f"unsynced-{seed}").write_bytes(data)
                disk.lose_power()
            synced.update(confirmed)
            lost += disk.restore_power(Random(seed)).lost_writes
            cuts += 1
            for name, (data, inode) in synced.items():
                assert (disk.mountpoint / name).read_bytes() == data, f"{name} after cut {seed}"
                assert (disk.mountpoint / name).stat().st_ino == inode
            if seed % 4 == 0:
                disk.check()
        assert lost > 0
        assert len(synced) > cuts
        assert disk.counters.power_cuts == cuts

    @pytest.mark.parametrize("survivors", list(Survivors))
    def test_unflushed_overwrites_are_kept_as_chosen(self, disk: FaultDisk, survivors: Survivors) -> None:
        path = disk.mountpoint / "file"
        write_synced(path, b"o" * 64 * BLOCK)
        sync_directory(disk.mountpoint)
        write_to_the_disk_without_flush(path, b"n" * 64 * BLOCK)
        assert path.read_bytes() == b"n" * 64 * BLOCK
        cut = disk.restore_power(Random(5), survivors=survivors)
        content = path.read_bytes()
        new = content.count(b"n")
        assert new + content.count(b"o") == 64 * BLOCK
        if survivors is Survivors.NONE:
            assert (new, cut.kept_writes) == (0, 0)
            assert cut.lost_bytes >= 64 * BLOCK
        elif survivors is Survivors.ALL:
            assert (new, cut.lost_writes, cut.lost_bytes) == (64 * BLOCK, 0, 0)
        else:
            assert 0 < new < 64 * BLOCK
            assert cut.kept_writes > 0
            assert cut.lost_writes > 0
        disk.check()
        assert path.read_bytes() == content

    def test_unsynced_file_and_rename_are_lost(self, disk: FaultDisk) -> None:
        write_synced(disk.mountpoint / "before", b"content")
        sync_directory(disk.mountpoint)
        (disk.mountpoint / "unsynced").write_bytes(b"never")
        (disk.mountpoint / "before").rename(disk.mountpoint / "after")
        disk.restore_power(Random(0), survivors=Survivors.NONE)
        names = {path.name for path in disk.mountpoint.iterdir()}
        assert names == {"before", "lost+found"}
        assert (disk.mountpoint / "before").read_bytes() == b"content"

    def test_from_the_cut_on_nothing_can_be_synced(self, disk: FaultDisk) -> None:
        with (disk.mountpoint / "file").open("wb") as file:
            file.write(b"x" * MIB)
            file.flush()
            disk.lose_power()
            with pytest.raises(OSError, match=r"Input/output error|Read-only"):
                os.fsync(file.fileno())
        disk.restore_power(Random(0))
        assert not (disk.mountpoint / "file").exists()

    def test_who_still_has_the_old_disk_open_cannot_touch_the_new(self, disk: FaultDisk) -> None:
        path = disk.mountpoint / "file"
        write_synced(path, b"old")
        sync_directory(disk.mountpoint)
        with path.open("r+b") as held:
            disk.restore_power(Random(0))
            with suppress(OSError):
                held.write(b"new")
                held.flush()
                os.fsync(held.fileno())
                pytest.fail("a sync on a disk without power")
            write_synced(disk.mountpoint / "other", b"other")
        disk.check()
        assert path.read_bytes() == b"old"
        assert (disk.mountpoint / "other").read_bytes() == b"other"


@contextmanager
def _writers_at_work(directory: Path, seed: int) -> Iterator[dict[str, tuple[bytes, int]]]:
    """Two threads that write, sync and rename files until they get an error, which they get by a cut in the block.
    Then those that were confirmed are in the dictionary, with content and inode."""
    confirmed: dict[str, tuple[bytes, int]] = {}

    def write(thread: int) -> None:
        random = Random(seed * 2 + thread)
        with suppress(OSError):
            for number in range(10_000):
                name, data = f"file-{seed}-{thread}-{number}", random.randbytes(random.randint(1, 50_000))
                write_synced(directory / f"{name}.tmp", data)
                (directory / f"{name}.tmp").rename(directory / name)
                sync_directory(directory)
                confirmed[name] = data, (directory / name).stat().st_ino

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield confirmed
    finally:
        for thread in threads:
            thread.join()


class TestBadBlocks:
    def test_exactly_one_file_cannot_be_read(self, disk: FaultDisk) -> None:
        names = [f"file-{number}" for number in range(5)]
        for name in names:
            write_synced(disk.mountpoint / name, name.encode() * 5000)
        disk.fail_reads_of(disk.mountpoint / "file-2")
        _drop_pages(disk.mountpoint)
        assert [read_error(disk.mountpoint / name) for name in names] == [None, None, errno.EIO, None, None]
        assert disk.counters.eio_reads > 0
        with (disk.mountpoint / "file-2").open("rb") as file, pytest.raises(OSError, match="Input/output error"):
            os.pread(file.fileno(), 1, 9000)
        disk.heal_reads()
        assert (disk.mountpoint / "file-2").read_bytes() == b"file-2" * 5000

    def test_written_blocks_read_well_again(self, disk: FaultDisk) -> None:
        path = disk.mountpoint / "file"
        write_synced(path, b"o" * 16 * BLOCK)
        disk.fail_reads_of(path)
        with path.open("r+b") as file:
            file.write(b"n" * 8 * BLOCK)
            file.flush()
            os.fsync(file.fileno())
        _drop_pages(disk.mountpoint)
        with path.open("rb") as file:
            assert os.pread(file.fileno(), BLOCK, 0) == b"n" * BLOCK
            with pytest.raises(OSError, match="Input/output error"):
                os.pread(file.fileno(), BLOCK, 12 * BLOCK)

    def test_file_elsewhere_is_refused(self, disk: FaultDisk, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").write_bytes(b"x")
        with pytest.raises(FaultDiskError, match="is not on the disk"):
            disk.fail_reads_of(tmp_path / "elsewhere")


def _drop_pages(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def _seconds(action: Callable[[], object]) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started


def _wait_for_a_delayed_request(disk: FaultDisk, before: int = 0) -> None:
    deadline = time.monotonic() + _SECONDS
    while disk.counters.delayed_requests == before:
        assert time.monotonic() < deadline


class TestSlowness:
    def test_one_file_is_slow_while_others_are_fast(self, disk: FaultDisk) -> None:
        slow, fast = disk.mountpoint / "slow", disk.mountpoint / "fast"
        for path in (slow, fast):
            write_synced(path, b"x" * BLOCK)
        disk.slow_down(60.0, path=slow)
        _drop_pages(disk.mountpoint)
        with ThreadPoolExecutor(1) as executor:
            reading = executor.submit(slow.read_bytes)
            _wait_for_a_delayed_request(disk)
            assert fast.read_bytes() == b"x" * BLOCK
            write_synced(disk.mountpoint / "new", b"x" * MIB)
            assert not reading.done()
            disk.speed_up()
            assert reading.result(_SECONDS) == b"x" * BLOCK
        assert disk.counters.delayed_requests == 1

    def test_slow_requests_do_not_wait_for_one_another(self, disk: FaultDisk) -> None:
        paths = [disk.mountpoint / f"file-{number}" for number in range(30)]
        for path in paths:
            path.write_bytes(b"x" * BLOCK)
        _drop_pages(disk.mountpoint)
        disk.slow_down(300.0, writes=False)
        with ThreadPoolExecutor(len(paths)) as executor:
            reading = [executor.submit(path.read_bytes) for path in paths]
            try:
                deadline = time.monotonic() + _SECONDS
                # One after the other, the second would come when the first is over.
                while disk.counters.delayed_requests < len(paths):
                    assert time.monotonic() < deadline
                assert not any(future.done() for future in reading)
            finally:
                disk.speed_up()

    def test_speed_up_and_a_cut_end_the_waiting(self, disk: FaultDisk) -> None:
        path = disk.mountpoint / "file"
        write_synced(path, b"x" * BLOCK)
        for end, outcome in ((disk.speed_up, None), (disk.lose_power, errno.EIO)):
            disk.slow_down(60.0, path=path)
            before = disk.counters.delayed_requests
            with ThreadPoolExecutor(1) as executor:
                reading = executor.submit(read_error, path)
                _wait_for_a_delayed_request(disk, before)
                end()
                assert reading.result(_SECONDS) == outcome

    def test_slow_writes(self, disk: FaultDisk) -> None:
        disk.slow_down(0.2, reads=False)
        # At least the data and the flush.
        assert _seconds(lambda: write_synced(disk.mountpoint / "file", b"x" * BLOCK)) >= 0.4
        disk.speed_up()
        delayed = disk.counters.delayed_requests
        assert delayed >= 2
        write_synced(disk.mountpoint / "other", b"x" * BLOCK)
        assert disk.counters.delayed_requests == delayed


class TestFullDisk:
    def test_nothing_can_be_written_until_freed(self, disk: FaultDisk) -> None:
        path = disk.mountpoint / "file"
        disk.fill()
        with pytest.raises(OSError, match="No space left"):
            write_synced(path, b"x" * BLOCK)
        disk.free()
        write_synced(path, b"x" * MIB)
        assert disk.counters.fills == 1

    def test_leaves_what_it_is_told_to(self, disk: FaultDisk) -> None:
        disk.fill(leave=4 * MIB)
        write_synced(disk.mountpoint / "fits", b"x" * 3 * MIB)
        with pytest.raises(OSError, match="No space left"):
            write_synced(disk.mountpoint / "too much", b"x" * 2 * MIB)


class TestLife:
    def test_two_disks_are_apart(self, disk: FaultDisk, tmp_path: Path) -> None:
        other = FaultDisk(tmp_path / "other", size=64 * MIB)
        other.start()
        try:
            write_synced(other.mountpoint / "file", b"other")
            disk.lose_power()
            write_synced(other.mountpoint / "file", b"written")
            other.check()
            assert (other.mountpoint / "file").read_bytes() == b"written"
        finally:
            other.stop()

    def test_stop_leaves_nothing_even_when_in_use(self, tmp_path: Path) -> None:
        directory = tmp_path / "disk"
        disk = FaultDisk(directory, size=64 * MIB)
        disk.start()
        with (disk.mountpoint / "file").open("wb") as file:
            file.write(b"x" * MIB)
            file.flush()
            disk.slow_down(3600.0)
            disk.stop()
            disk.stop()
        assert not directory.exists()
        assert _traces_of(directory) == []
        with pytest.raises(FaultDiskError, match="not started"):
            disk.lose_power()

    def test_can_be_started_again(self, tmp_path: Path) -> None:
        disk = FaultDisk(tmp_path / "disk", size=64 * MIB)
        for _ in range(2):
            disk.start()
            assert {path.name for path in disk.mountpoint.iterdir()} == {"lost+found"}
            disk.stop()

    def test_impossible_disk_is_refused_and_leaves_nothing(self, tmp_path: Path) -> None:
        disk = FaultDisk(tmp_path / "disk", size=BLOCK)
        with pytest.raises(FaultDiskError, match=r"mkfs\.ext4 .* failed"):
            disk.start()
        assert not (tmp_path / "disk").exists()
        assert _traces_of(tmp_path) == []

    def test_stops_after_its_server_was_killed(self, disk: FaultDisk, tmp_path: Path) -> None:
        assert disk._server is not None
        disk._server.kill()
        with pytest.raises(FaultDiskError, match="disk"):
            disk.lose_power()
        disk.stop()
        assert _traces_of(tmp_path) == []

    def test_is_taken_down_when_the_harness_is_killed(self, tmp_path: Path) -> None:
        directory = tmp_path / "disk"
        script = f"""
import os, pathlib, signal
from tests.harness.fault_disk import FaultDisk
disk = FaultDisk(pathlib.Path({str(directory)!r}), size=64 << 20)
disk.start()
(disk.mountpoint / "file").write_bytes(bytes(1 << 20))
print(disk._server._process.pid, flush=True)
signal.pause()
"""
        root = Path(__file__).resolve().parents[2]
        with subprocess.Popen([sys.executable, "-c", script], cwd=root, stdout=subprocess.PIPE) as harness:
            assert harness.stdout is not None
            server = os.pidfd_open(int(harness.stdout.readline()))
            assert len(_traces_of(directory)) >= 3
            harness.kill()
        with select_on(server) as ended:
            assert ended(15.0)
        assert _traces_of(directory) == []


@contextmanager
def select_on(process: int) -> Iterator[Callable[[float], bool]]:
    """Whether the process of a pidfd ends within so many seconds. Closes it."""
    try:
        yield lambda seconds: bool(select.select([process], [], [], seconds)[0])
    finally:
        os.close(process)


def _traces_of(directory: Path) -> list[str]:
    """Mounts and loop devices in or from a directory."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    devices = []
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(FileNotFoundError):
            devices.append(file.read_text())
    return [line for line in (*mounts, *devices) if str(directory) in line]
