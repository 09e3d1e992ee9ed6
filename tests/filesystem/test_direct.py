"""O_DIRECT beside what the kernel has in memory: who reads after a write has ended never sees what was before it."""

import ctypes
import mmap
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.filesystem import asynchronous
from tests.filesystem.slow_backing_process import SlowBackingProcess

_PAGE = 4096


@pytest.fixture
def held_up() -> Iterator[tuple[Path, SlowBackingProcess]]:
    """A mount whose own operations can be held up."""
    base = Path(tempfile.mkdtemp(prefix="pass-through-test-"))
    for name in ("backing", "mountpoint"):
        (base / name).mkdir()
    process = SlowBackingProcess(base / "backing", base / "mountpoint")
    try:
        process.wait_until_mounted()
        yield base / "mountpoint", process
    finally:
        process.stop()
        shutil.rmtree(base)


@pytest.mark.skipif(not asynchronous.IS_KNOWN_HERE, reason="the numbers of these system calls are not known here")
def test_asynchronous_write_beside_readers(held_up: tuple[Path, SlowBackingProcess]) -> None:
    directory, process = held_up
    path = directory / "slow"
    path.write_bytes(b"a" * 2 * _PAGE)
    memory = mmap.mmap(-1, _PAGE)
    memory.write(b"b" * _PAGE)
    buffer = (ctypes.c_char * _PAGE).from_buffer(memory)
    writer = os.open(path, os.O_RDWR | os.O_DIRECT)
    reader = os.open(path, os.O_RDONLY)
    mapped = mmap.mmap(reader, _PAGE, prot=mmap.PROT_READ)
    try:
        assert os.pread(reader, _PAGE, 0) == mapped[:] == b"a" * _PAGE
        with asynchronous.asynchronous() as context:
            process.hold("write")
            submission = threading.Thread(
                target=context.write, args=(writer, buffer, ctypes.addressof(buffer), _PAGE), daemon=True
            )
            submission.start()
            process.wait_until_held(1)
            # This is read before it is written, and stays in memory.
            assert os.pread(reader, _PAGE, 0) == mapped[:] == b"a" * _PAGE
            process.go()
            submission.join()
            assert context.result() == _PAGE
        assert os.pread(reader, _PAGE, 0) == b"b" * _PAGE
        assert mapped[:] == b"b" * _PAGE
        assert path.read_bytes() == b"b" * _PAGE + b"a" * _PAGE
        assert os.fstat(reader).st_mtime_ns == (directory.parent / "backing" / "slow").stat().st_mtime_ns
    finally:
        mapped.close()
        os.close(reader)
        os.close(writer)
