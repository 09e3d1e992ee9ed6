"""Asynchronous input and output of the kernel (io_setup(2), io_submit(2)), which Python does not have."""

import ctypes
import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager

_PWRITE = 1
# struct iocb: data, key, rw_flags, opcode, priority, descriptor, buffer, length, offset, reserved, flags, eventfd.
_CONTROL_BLOCK = struct.Struct("=QIIHhIQQqQII")
# struct io_event: data, obj, res, res2.
_EVENT = struct.Struct("=QQqq")
_NUMBERS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}
_SETUP, _DESTROY, _GET_EVENTS, _SUBMIT = _NUMBERS.get(platform.machine(), (None,) * 4)
_system_call = ctypes.CDLL(None, use_errno=True).syscall
_system_call.restype = ctypes.c_long

IS_KNOWN_HERE = _SETUP is not None


def _call(number: int | None, *arguments: object) -> int:
    result: int = _system_call(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class Context:
    """An io_context_t."""

    def __init__(self) -> None:
        self._id = ctypes.c_ulong()
        _call(_SETUP, 8, ctypes.byref(self._id))

    def write(self, descriptor: int, buffer: ctypes.Array[ctypes.c_char], address: int, length: int) -> None:
        """Asks for the write of `length` bytes at `address`, which is within `buffer`, to the start of the file."""
        block = ctypes.create_string_buffer(
            _CONTROL_BLOCK.pack(0, 0, 0, _PWRITE, 0, descriptor, address, length, 0, 0, 0, 0), _CONTROL_BLOCK.size
        )
        blocks = (ctypes.c_void_p * 1)(ctypes.addressof(block))
        assert _call(_SUBMIT, self._id, ctypes.c_long(1), blocks) == 1

    def result(self) -> int:
        """Waits until one is done; how much was written, or the number of an error, negative."""
        event = ctypes.create_string_buffer(_EVENT.size)
        assert _call(_GET_EVENTS, self._id, ctypes.c_long(1), ctypes.c_long(1), event, None) == 1
        result: int = _EVENT.unpack(event.raw)[2]
        return result

    def close(self) -> None:
        _call(_DESTROY, self._id)


@contextmanager
def asynchronous() -> Iterator[Context]:
    context = Context()
    try:
        yield context
    finally:
        context.close()
