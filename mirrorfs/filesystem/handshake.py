"""What the kernel offers at the beginning of a session, and pyfuse3 would accept, but must not.

With asynchronous direct input and output (FUSE_ASYNC_DIO, which libfuse wants unless it is told otherwise), a write to
a file that was opened with O_DIRECT may end while nobody waits for it in the kernel, and then the kernel does not drop
from its memory what a reader was given meanwhile: that is stale for as long as it stays there. Telling the kernel to
drop it would mean to wait for answers of our own in a call that cannot be killed. Without the offer, such a write ends
before io_submit(2) returns, and the kernel drops what it has to.

pyfuse3 does not let the file system answer to offers. So the first message of the kernel, FUSE_INIT
(include/uapi/linux/fuse.h), is read here, and comes to libfuse without the offer through a pipe, which for so long
stands in the place of /dev/fuse. The answer goes to /dev/fuse itself.
"""

import errno
import logging
import os
import stat
import struct

from mirrorfs.filesystem.system_calls import wait_readable

log = logging.getLogger(__name__)

_DEVICE = os.makedev(10, 229)
_LARGEST_MESSAGE = 1 << 20
# Of struct fuse_in_header: len, opcode. Behind that header, of struct fuse_init_in: major, minor, max_readahead, flags.
_BEGINNING = struct.Struct("=II")
_FLAGS = struct.Struct("=I")
_FLAGS_OFFSET = 40 + 12
_FUSE_INIT = 26
_FUSE_ASYNC_DIO = 1 << 15


class Handshake:
    """Begun between pyfuse3.init and pyfuse3.main, ended by pyfuse3 in the call of Operations.init.

    Where it is not as it has always been, the session begins without this, and the log says so.
    """

    def __init__(self) -> None:
        """Raises OSError."""
        self._device: int | None = None
        # There is one: pyfuse3 does not tell which.
        descriptors = [number for number in map(int, os.listdir("/proc/self/fd")) if _is_fuse(number)]
        if len(descriptors) != 1:
            _tell(f"of /dev/fuse, there are {len(descriptors)} descriptors")
        elif not wait_readable(descriptors[0], 0):
            _tell("it is not there when mount(2) has returned")
        else:
            self._descriptor = descriptors[0]
            self._stand_in()

    def _stand_in(self) -> None:
        message = _without_offers(os.read(self._descriptor, _LARGEST_MESSAGE))
        reading, writing = os.pipe()
        try:
            os.write(writing, message)
            self._device = os.dup(self._descriptor)
            os.dup2(reading, self._descriptor, inheritable=False)
        finally:
            os.close(reading)
            os.close(writing)

    def end(self) -> None:
        """To be called when libfuse has read the message, and has not answered it."""
        if self._device is not None:
            os.dup2(self._device, self._descriptor, inheritable=False)
            os.close(self._device)
            self._device = None


def _is_fuse(number: int) -> bool:
    try:
        status = os.fstat(number)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        # That of the listing itself.
        return False
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == _DEVICE


def _without_offers(message: bytes) -> bytes:
    _, operation = _BEGINNING.unpack_from(message)
    if operation != _FUSE_INIT or len(message) < _FLAGS_OFFSET + _FLAGS.size:
        _tell(f"it is request {operation} of {len(message)} bytes")
        return message
    (flags,) = _FLAGS.unpack_from(message, _FLAGS_OFFSET)
    changed = bytearray(message)
    _FLAGS.pack_into(changed, _FLAGS_OFFSET, flags & ~_FUSE_ASYNC_DIO)
    return bytes(changed)


def _tell(reason: str) -> None:
    log.warning(
        "the kernel's first message is not as expected (%s): after an asynchronous write with O_DIRECT, others may "
        "read what was before it",
        reason,
    )
