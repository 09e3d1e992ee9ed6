"""A stand-in for an S3 client that keeps objects in memory, for proving the auditor: it pages, has ETags and times,
lets a test change the bucket between two of the auditor's calls, and can answer listings as of some calls ago."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from botocore.exceptions import ClientError

from tests.harness.bucket import Bucket
from tests.harness.names import chunk_path, namespace_path
from tests.harness.scan import ChunkInspector, scan_datastore

_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class StoredObject:
    data: bytes
    put_at: datetime


class FakeS3:
    """objects: by full key. before_call is called with (operation, key or prefix) before each call is answered.
    lag gives, for each page of a listing, how many calls old it is to be; what it lists is what put and delete did.
    """

    def __init__(self, page_size: int = 7) -> None:
        self.objects: dict[str, StoredObject] = {}
        self.before_call: Callable[[str, str], None] = lambda operation, key: None
        self.lag: Callable[[], int] = lambda: 0
        self.now = _EPOCH
        self.calls = 0
        self._past: list[tuple[int, dict[str, StoredObject]]] = []
        self._page_size = page_size

    def put(self, key: str, data: bytes) -> None:
        """Each put a second after the one before."""
        self._keep_past()
        self.now += timedelta(seconds=1)
        self.objects[key] = StoredObject(data, self.now)

    def delete(self, key: str) -> None:
        self._keep_past()
        self.now += timedelta(seconds=1)
        del self.objects[key]

    def _keep_past(self) -> None:
        self._past.append((self.calls, dict(self.objects)))

    def _as_of(self, call: int) -> dict[str, StoredObject]:
        """What stood before the first change after that call."""
        return next((objects for changed_at, objects in self._past if changed_at > call), self.objects)

    def list_objects_v2(self, *, Bucket: str, Prefix: str, ContinuationToken: str = "") -> Mapping[str, object]:
        self._called("list", Prefix)
        lag = self.lag()
        seen = self._as_of(self.calls - lag) if lag else self.objects
        keys = sorted(key for key in seen if key.startswith(Prefix) and key > ContinuationToken)
        page = keys[: self._page_size]
        answer: dict[str, object] = {
            "Contents": [{"Key": key, "Size": len(seen[key].data), **_facts(seen[key])} for key in page],
            "IsTruncated": len(keys) > len(page),
        }
        if len(keys) > len(page):
            answer["NextContinuationToken"] = page[-1]
        return answer

    def get_object(self, *, Bucket: str, Key: str) -> Mapping[str, object]:
        self._called("get", Key)
        self._must_exist(Key, "NoSuchKey")
        return {"Body": io.BytesIO(self.objects[Key].data), **_facts(self.objects[Key])}

    def head_object(self, *, Bucket: str, Key: str) -> Mapping[str, object]:
        self._called("head", Key)
        self._must_exist(Key, "404")
        return {"ContentLength": len(self.objects[Key].data), **_facts(self.objects[Key])}

    def _must_exist(self, key: str, code: str) -> None:
        if key not in self.objects:
            raise ClientError({"Error": {"Code": code, "Message": "not there"}}, "GetObject")

    def _called(self, operation: str, key: str) -> None:
        self.calls += 1
        self.before_call(operation, key)


def _facts(stored: StoredObject) -> dict[str, object]:
    return {"ETag": f'"{hashlib.md5(stored.data).hexdigest()}"', "LastModified": stored.put_at}


class FakeMirror:
    """A bucket with a naive mirror of a datastore directory in it, named name."""

    def __init__(self, datastore: Path, name: str = "mirror") -> None:
        self.client = FakeS3()
        self.bucket = Bucket(self.client, "bucket", name)
        self._name = name
        self.publish(datastore)

    def publish(self, datastore: Path) -> None:
        """Everything as the layout asks for: chunks, files, manifests last."""
        inspector = ChunkInspector(datastore)
        found = scan_datastore(datastore, inspector)
        for digest, _size in inspector.sizes():
            self.put(chunk_path(digest), (datastore / chunk_path(digest)).read_bytes())
        for namespace in found.namespaces:
            self.put(f".cnt/{namespace_path(namespace)}/.namespace", b"")
        paths = [path for snapshot in found.finished.values() for path in found.content_paths(snapshot)]
        paths += [path for group in found.groups for path in found.group_paths(group)]
        for path in sorted(paths, key=lambda path: path.endswith("/index.json.blob")):
            self.put(f".cnt/{path}", (datastore / path).read_bytes())

    def put(self, key: str, data: bytes) -> None:
        self.client.put(f"{self._name}/{key}", data)

    def delete(self, key: str) -> None:
        self.client.delete(f"{self._name}/{key}")

    def data(self, key: str) -> bytes:
        return self.client.objects[f"{self._name}/{key}"].data

    def all_keys(self) -> list[str]:
        return sorted(key.removeprefix(f"{self._name}/") for key in self.client.objects)
