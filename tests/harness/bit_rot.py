"""Bit rot: flips one byte of a file, in a place that no check can miss, as a failing disk would, without the server's
knowledge."""

from __future__ import annotations

import hashlib
import os

from tests.harness.formats import ENCRYPTED_HEADER_SIZE, INDEX_HEADER_SIZE, PLAIN_HEADER_SIZE

_ENCRYPTED_MAGIC_BYTES = (123, 230)


def rot_chunk(path: str, seed: int) -> int:
    """Flip one bit of a blob's payload (which its CRC covers; an encrypted blob's iv and tag it does not). Gives the
    offset. Raises FileNotFoundError, and ValueError when there is no payload."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        first = os.pread(descriptor, 1, 0)
        is_encrypted = bool(first) and first[0] in _ENCRYPTED_MAGIC_BYTES
        return _flip(descriptor, ENCRYPTED_HEADER_SIZE if is_encrypted else PLAIN_HEADER_SIZE, seed, path)
    finally:
        os.close(descriptor)


def rot_index(path: str, seed: int) -> int:
    """Flip one bit of an index' entries, which its checksum covers. Gives the offset. Raises like rot_chunk."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        return _flip(descriptor, INDEX_HEADER_SIZE, seed, path)
    finally:
        os.close(descriptor)


def _flip(descriptor: int, first: int, seed: int, path: str) -> int:
    size = os.fstat(descriptor).st_size
    if size <= first:
        raise ValueError(f"nothing in {path} is there to be damaged")
    key = hashlib.blake2b(f"{seed} {os.path.basename(path)}".encode(), digest_size=8).digest()
    at = first + int.from_bytes(key, "little") % (size - first)
    byte = os.pread(descriptor, 1, at)[0]
    os.pwrite(descriptor, bytes([byte ^ (1 << key[0] % 8)]), at)
    return at
