"""A store with one snapshot of as many chunks as one likes, which are made when they are asked for.

`python -m tests.bench.generated_store CHUNKS` prints its port and serves until standard input is closed. The chunks
look encrypted, so that any content does for any of them; the names of all of them follow from their numbers, in order.
"""

from __future__ import annotations

import hashlib
import secrets
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.harness import formats
from tests.harness.formats import ManifestFile
from tests.harness.names import chunk_path
from tests.stores.server import StoreAccess

BUCKET, NAME = "bench", "generated"
_CHUNK_SIZE = 4 * 1024 * 1024
_SNAPSHOT, _TIME = "vm/100/2026-01-01T00:00:00Z", 1767225600
_IMAGE = "drive-scsi0.img.fidx"
_CHUNK = formats.encode_encrypted_looking_blob(b"a chunk", bytes(16), bytes(16), compressed=False)
_NAMES_A_PAGE = 1000
_MODIFIED = "Thu, 01 Jan 2026 00:00:00 GMT"
_CHECKSUM = slice(formats.INDEX_CSUM_OFFSET, formats.INDEX_CSUM_OFFSET + formats.DIGEST_SIZE)


class GeneratedStore:
    """What the bucket holds. Nothing can be put."""

    def __init__(self, chunks: int) -> None:
        self._chunks = chunks
        self._step = 2**64 // chunks
        index = self._index()
        files = [ManifestFile(_IMAGE, chunks * _CHUNK_SIZE, index[_CHECKSUM].hex(), "encrypt")]
        manifest = formats.make_manifest("vm", "100", _TIME, files, signature=None, unprotected={})
        self._files = {
            f"{NAME}/.cnt/{_SNAPSHOT}/{_IMAGE}": index,
            f"{NAME}/.cnt/{_SNAPSHOT}/index.json.blob": formats.encode_manifest(manifest),
            f"{NAME}/.cnt/vm/100/owner": b"root@pam\n",
        }
        self._prefix = f"{NAME}/.chunks/"

    def _digest(self, number: int) -> bytes:
        return (number * self._step).to_bytes(8, "big") + hashlib.sha256(number.to_bytes(8, "big")).digest()[:24]

    def _index(self) -> bytes:
        header = formats.fixed_index_header(bytes(16), _TIME, self._chunks * _CHUNK_SIZE, _CHUNK_SIZE)
        return formats.with_index_csum(header, b"".join(map(self._digest, range(self._chunks))))

    def object(self, key: str) -> bytes | None:
        """What an object holds, None if there is none."""
        return _CHUNK if key.startswith(self._prefix) else self._files.get(key)

    def page(self, prefix: str, first: int) -> str:
        """A page of a listing, whose continuation token is the number of the chunk that it begins with."""
        following = None
        if prefix == self._prefix:
            numbers = range(first, min(first + _NAMES_A_PAGE, self._chunks))
            listed = [(f"{NAME}/{chunk_path(self._digest(number).hex())}", len(_CHUNK)) for number in numbers]
            following = numbers.stop if numbers.stop < self._chunks else None
        else:
            listed = [(key, len(body)) for key, body in sorted(self._files.items()) if key.startswith(prefix)]
        entries = "".join(f"<Contents><Key>{key}</Key><Size>{size}</Size></Contents>" for key, size in listed)
        more = "" if following is None else f"<NextContinuationToken>{following}</NextContinuationToken>"
        is_cut = "false" if following is None else "true"
        head = f"<Name>{BUCKET}</Name><KeyCount>{len(listed)}</KeyCount><IsTruncated>{is_cut}</IsTruncated>{more}"
        return f"<ListBucketResult>{head}{entries}</ListBucketResult>"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body are two packets: the second would wait for 40 ms until the first is acknowledged.
    disable_nagle_algorithm = True
    store: GeneratedStore

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        names = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        if "list-type" in names:
            page = self.store.page(names.get("prefix", ""), int(names.get("continuation-token", "0")))
            self._answer(200, page.encode(), {"Content-Type": "application/xml"})
            return
        found = self.store.object(urllib.parse.unquote(path).removeprefix(f"/{BUCKET}/"))
        if found is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>", {"Content-Type": "application/xml"})
        else:
            # As of an object that was put in parts, so that nobody takes it for an MD5.
            self._answer(200, found, {"ETag": f'"{len(found):032x}-1"', "Last-Modified": _MODIFIED})

    do_HEAD = do_GET

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""


@contextmanager
def running_generated_store(chunks: int) -> Iterator[StoreAccess]:
    """A store of so many chunks in a process of its own, ended afterwards. It takes every key and signature."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.bench.generated_store", str(chunks)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline())
            yield StoreAccess(f"http://127.0.0.1:{port}", secrets.token_hex(10), secrets.token_hex(20))
        finally:
            process.stdin.close()


def main() -> None:
    """Serve until standard input is closed."""
    _Handler.store = GeneratedStore(int(sys.argv[1]))
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdout.write(f"{server.server_address[1]}\n")
        sys.stdout.flush()
        sys.stdin.buffer.read()
        server.shutdown()


if __name__ == "__main__":
    main()
