"""What others could write, sound and spoiled, for each kind of file, object, name and text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import zstandard
from hypothesis import strategies as st

from tests.datastore.formats import (
    DYNAMIC,
    ENCRYPTED,
    ENCRYPTED_ZSTD,
    FIXED,
    PLAIN,
    dynamic_index,
    encrypted_blob,
    fixed_index,
    listed,
    manifest_blob,
    plain_blob,
)
from tests.hostile_documents import zstd_blob

Data = st.SearchStrategy[bytes]

_NUMBERS = st.integers() | st.sampled_from([0, -1, 2**31, 2**63 - 1, 2**63, 2**64, 10**400, -(10**400)])
_TEXTS = st.text(max_size=12) | st.sampled_from(
    ["\ud800", "\u202e", "\x1b[2J", "\0", "../..", "a" * 3000, "vm", "100", "a.fidx", "a.blob", "index.json.blob"]
)
digests = st.binary(min_size=32, max_size=32)

json_values: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | _NUMBERS | st.floats() | _TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=4),
    max_leaves=12,
)


def as_json(value: object) -> bytes:
    """JSON as a careless writer makes it."""
    return json.dumps(value, ensure_ascii=True).encode()


@st.composite
def nested(draw: st.DrawFn) -> bytes:
    """Few bytes, many levels; closed or not."""
    opening, closing = draw(st.sampled_from([(b"[", b"]"), (b'{"a":', b"}"), (b'[{"files":', b"}]")]))
    depth = draw(st.integers(1, 3000))
    return opening * depth + draw(st.sampled_from([b"", b"0"])) + closing * draw(st.sampled_from([0, depth]))


def documents(fields: Mapping[str, st.SearchStrategy[object]]) -> Data:
    """JSON with these fields: as they should be, one of them missing or of anything, or something else altogether."""
    sound = st.fixed_dictionaries(dict(fields))
    changed = st.builds(
        lambda value, key, other: {**value, key: other}, sound, st.sampled_from(sorted(fields)) | _TEXTS, json_values
    )
    lacking = st.builds(
        lambda value, gone: {key: inner for key, inner in value.items() if key != gone},
        sound,
        st.sampled_from(sorted(fields)),
    )
    return (sound | changed | lacking | json_values).map(as_json) | nested() | st.binary(max_size=40)


@st.composite
def spoiled(draw: st.DrawFn, sound: Data) -> bytes:
    """Sound data after nothing, or after any accident."""
    data = draw(sound)
    kind = draw(st.sampled_from(["not", "flip", "cut", "grow", "splice", "repeat"]))
    if kind == "not" or not data:
        return data
    at = draw(st.integers(0, len(data) - 1) | st.integers(0, min(63, len(data) - 1)))
    match kind:
        case "flip":
            return data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :]
        case "cut":
            return data[:at]
        case "grow":
            return data + draw(st.binary(min_size=1, max_size=50))
        case "splice":
            return data[:at] + draw(st.binary(max_size=16)) + data[at + draw(st.integers(0, 16)) :]
        case _:
            return data * draw(st.integers(2, 3))


def _compress(content: bytes, declares_size: bool, window: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=window, compression_level=1)
    if declares_size:
        return zstandard.ZstdCompressor(level=1).compress(content)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(content) + compressor.flush()


contents = st.binary(max_size=200) | st.integers(0, 5_000_000).map(bytes)


def blobs_of(inner: Data) -> Data:
    """DataBlobs of every kind whose content is drawn from `inner`; most have a right CRC."""
    frames = st.builds(_compress, inner, st.booleans(), st.sampled_from([10, 20, 27]))
    return spoiled(
        inner.map(plain_blob)
        | spoiled(frames).map(zstd_blob)
        | st.builds(encrypted_blob, st.binary(max_size=50), st.sampled_from([ENCRYPTED, ENCRYPTED_ZSTD]))
    ) | st.builds(lambda magic, rest: magic + rest, st.sampled_from([PLAIN, ENCRYPTED, b""]), st.binary(max_size=60))


blobs = blobs_of(contents)


@st.composite
def _fixed(draw: st.DrawFn) -> bytes:
    chunk_size = draw(st.sampled_from([1, 4096, 2**22, 2**63, 0, 3]))
    found = draw(st.lists(digests, max_size=6))
    size = draw(st.sampled_from([len(found) * chunk_size, 0, 2**64 - 1, max(0, len(found) * chunk_size - 1)]))
    return fixed_index(found, min(size, 2**64 - 1), chunk_size)


@st.composite
def _dynamic(draw: st.DrawFn) -> bytes:
    ends = draw(st.lists(st.integers(0, 2**64 - 1), max_size=6))
    if draw(st.booleans()):
        ends.sort()
    return dynamic_index([(end, draw(digests)) for end in ends])


indexes = st.tuples(
    st.sampled_from(["a.fidx", "a.didx", "a.blob", ""]),
    spoiled(_fixed() | _dynamic())
    | st.builds(lambda magic, rest: magic + rest, st.sampled_from([FIXED, DYNAMIC]), st.binary(max_size=4200)),
)

_LISTED = st.builds(
    listed,
    st.sampled_from(["drive.img.fidx", "root.pxar.didx", "a.blob", "../x.blob", "index.json.blob"]) | _TEXTS,
    st.integers(0, 2**63 - 1) | _NUMBERS,
    digests,
    st.sampled_from(["none", "encrypt", "sign-only", "rot13"]),
)
_MANIFEST_FIELDS: Mapping[str, st.SearchStrategy[object]] = {
    "backup-type": st.sampled_from(["vm", "ct", "host"]),
    "backup-id": st.sampled_from(["100", "web"]),
    "backup-time": st.integers(0, 2**40),
    "files": st.lists(_LISTED, max_size=4),
    "unprotected": st.fixed_dictionaries({"notes": json_values, "verify_state": json_values}),
}
manifests = blobs_of(documents(_MANIFEST_FIELDS)) | spoiled(st.lists(_LISTED, max_size=3).map(manifest_blob))

deletions = spoiled(
    documents(
        {
            "deleted": st.floats() | _NUMBERS,
            "until": st.floats() | _NUMBERS,
            "owner": st.none() | _TEXTS,
            "notes": st.none() | _TEXTS,
        }
    )
)
claims = spoiled(
    documents(dict.fromkeys(("mirror_id", "hostname", "machine", "datastore", "epoch", "taken_from"), _TEXTS))
)
markers = spoiled(
    documents(
        {
            "format": st.sampled_from([1, 2, 3]),
            "url": _TEXTS,
            "as_of": st.none() | st.floats() | _NUMBERS,
            "deleted": st.booleans(),
            "snapshots": st.lists(st.just("vm/100/2026-11-22T10:00:00Z") | _TEXTS, max_size=3),
        }
    )
)
checkpoints = spoiled(
    documents(
        {
            "format": st.just(1) | _NUMBERS,
            "what": st.just({"url": "s3://bucket/name"}) | json_values,
            "salt": _NUMBERS,
            "done_up_to": st.sampled_from(["", "ab" * 32, "abc"]) | json_values,
            "damaged": st.just({"ab" * 32: "it is gone"}) | json_values,
            "chunks": _NUMBERS | json_values,
            "bytes": _NUMBERS,
        }
    )
)
settings_files = (
    st.lists(
        st.sampled_from(
            ['endpoint-url = "https://store"', "[retention]", 'delete-after = "30d"', "a.b = 1", "x = [[1], {y = 2}]"]
        )
        | _TEXTS.map(lambda text: f"key = {text}"),
        max_size=5,
    ).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))
    | st.integers(1, 5000).map(lambda depth: b".".join([b"a"] * depth) + b" = 1")
    | st.binary(max_size=80)
)
stored_values = spoiled(
    documents(
        {
            "phase": st.sampled_from(["published", "kept", "ending"]) | _TEXTS,
            "files": st.dictionaries(_TEXTS, _TEXTS, max_size=2),
            "since": st.floats() | _NUMBERS,
            "path": _TEXTS,
            "size": _NUMBERS,
            "crc32c": _NUMBERS,
            "up_to": _TEXTS | st.just("ab" * 32),
            "reason": _TEXTS,
        }
    )
) | st.binary(max_size=20)
requests = spoiled(documents({"command": st.sampled_from(["status", "wait"]) | json_values}))
settings = documents({"to": _TEXTS})
exports = st.lists(
    documents(
        {
            "format": st.just("mirrorfs-journal") | _TEXTS,
            "version": _NUMBERS | st.just(1),
            "generation": _TEXTS,
            "sequence": _NUMBERS,
            "datastore": _TEXTS,
            "time_ns": _NUMBERS,
            "path": _TEXTS,
            "records": _NUMBERS,
        }
    ),
    max_size=4,
).map(b"\n".join)

_SEGMENTS = st.sampled_from(
    ".cnt .chunks .mirrorfs deleted ns vm ct host 100 a .. . owner notes 2026-11-22T10:00:00Z 2026-13-40T99:00:00Z "
    f"index.json.blob a.fidx .namespace deleted.json ab12 ab12{'0' * 60} ab12{'0' * 60}.0.bad x.tmp_abc123".split(" ")
) | st.sampled_from(["", "a" * 256, "é", "\n", "\ud800"])
keys = st.lists(_SEGMENTS | _TEXTS, max_size=9).map("/".join)
paths = keys.map(lambda key: key.encode("utf-8", "surrogatepass")) | st.binary(max_size=60)
texts = _TEXTS | st.text(alphabet="0123456789-:TZ+.wdhms s3/", max_size=30)


def sha256(data: bytes) -> bytes:
    """Of data."""
    return hashlib.sha256(data).digest()
