"""Storing an object in one go, in one thread: for many small ones, and for whoever has another way if it does not work.

`Uploads` repeats, waits and asks again; this does none of that.
"""

from __future__ import annotations

from mirrorfs.objectstore.capabilities import Confirmation, StoreCapabilities
from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.patience import Observer
from mirrorfs.objectstore.uploads import Sent, proves


def can_store_at_once(capabilities: StoreCapabilities) -> bool:
    """Whether a look at what was put can prove that it is kept; else it has to be read back."""
    return capabilities.confirmation is not Confirmation.READ_BACK


def store_at_once(
    client: S3Client, capabilities: StoreCapabilities, key: str, body: bytes, crc32c: int, observe: Observer
) -> bool:
    """Puts an object whose CRC32C is known and looks at it, once each; whether that proves that the store holds it.

    Where it does not, and after a StoreError, of which it raises those of S3Client, nothing is known of the object.
    """
    sent = Sent.seal(key, body, crc32c=crc32c, with_md5=capabilities.needs_md5)
    observe("before-put", key)
    receipt = client.put_object(key, body, crc32c=crc32c, md5=sent.md5)
    observe("after-put", key)
    return proves(capabilities, client.look(key), sent.expected, receipt)
