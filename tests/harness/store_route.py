"""The way of requests from a mirror to its store, on which they can be harmed, and the ways past that for auditors."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from typing import Self

from tests.harness.bucket import Bucket, Taken
from tests.harness.formats import MANIFEST_NAME
from tests.harness.refusing_store import RefusingStore
from tests.harness.statistics import Statistics
from tests.stores.fault_proxy import FaultProxy
from tests.stores.server import AnyStore


class StoreRoute:
    """Use it in a with statement. Nothing stands before a store that is not reached by plain HTTP."""

    def __init__(self, store: AnyStore, bucket: str, name: str, statistics: Statistics) -> None:
        """`name` is the mirror's prefix in `bucket`."""
        self._store, self._bucket, self._name, self._statistics = store, bucket, name, statistics
        self._proxy: FaultProxy | None = None
        self._refusing: RefusingStore | None = None
        self._injected_before: dict[str, int] = {}
        self._planted: set[str] = set()
        self._taken: Taken = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if self._store.is_reached_by_http:
                self._refusing = stack.enter_context(RefusingStore(self._store.access))
                self._proxy = stack.enter_context(FaultProxy(self._refusing.endpoint_url))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def endpoint_url(self) -> str:
        """Where the mirror is to send its requests."""
        return self._store.access.endpoint_url if self._proxy is None else self._proxy.endpoint_url

    @property
    def offers(self) -> frozenset[str]:
        """What accidents may need: "store process" if the store may be killed, "proxy" if requests may be harmed."""
        offered = {"store process": self._store.may_be_killed, "proxy": self._proxy is not None}
        return frozenset(name for name, there in offered.items() if there)

    @property
    def proxy(self) -> FaultProxy:
        """What can harm requests, where `offers` says so."""
        if self._proxy is None:
            raise RuntimeError("there is no proxy before this store")
        return self._proxy

    @property
    def refusing(self) -> RefusingStore:
        """What can have single deletions refused, where `offers` says that there is a proxy."""
        if self._refusing is None:
            raise RuntimeError("there is nothing before this store")
        return self._refusing

    def bucket(self) -> Bucket:
        """What the mirror has in its bucket, read past everything."""
        return self._read_at(self._store.access.endpoint_url)

    def lagging_bucket(self, seconds: float, seed: int) -> Bucket | None:
        """The same with listings up to so many seconds old; None where nothing can stand before the store."""
        return None if self._proxy is None else self._read_at(self._proxy.lagging_endpoint(seconds, seed))

    def _read_at(self, endpoint_url: str) -> Bucket:
        client = self._store.access.client(endpoint_url=endpoint_url)
        return Bucket(client, self._bucket, self._name, self._planted, self._taken)

    def plant(self, objects: Mapping[str, bytes]) -> None:
        """Put objects below the prefix, past everything, as somebody else; the audits overlook just these."""
        client = self._store.access.client()
        self._planted.update(hashlib.md5(body, usedforsecurity=False).hexdigest() for body in objects.values())
        for key, body in objects.items():
            client.put_object(Bucket=self._bucket, Key=f"{self._name}/{key}", Body=body)

    def put_back(self, key: str, body: bytes | None) -> None:
        """Have what was there before stand there again; None: nothing."""
        client = self._store.access.client()
        if body is None:
            client.delete_object(Bucket=self._bucket, Key=f"{self._name}/{key}")
        else:
            client.put_object(Bucket=self._bucket, Key=f"{self._name}/{key}", Body=body)

    def put(self, objects: Mapping[str, bytes]) -> None:
        """Put objects below the prefix, past everything, one after the other; the audits judge them as any."""
        client = self._store.access.client()
        for key, body in objects.items():
            client.put_object(Bucket=self._bucket, Key=f"{self._name}/{key}", Body=body)

    def take(self, keys: Collection[str]) -> None:
        """Take objects away, past everything, as somebody else: no manifest that stands now is to blame for that."""
        bucket, client = self.bucket(), self._store.access.client()
        manifests = [key for key in bucket.list() if key.endswith(f"/{MANIFEST_NAME}")]
        versions = {key: version for key in manifests if (version := bucket.head(key)) is not None}
        self._taken.update(dict.fromkeys(keys, versions))
        for key in keys:
            client.delete_object(Bucket=self._bucket, Key=f"{self._name}/{key}")

    def forget_takings(self) -> None:
        """From now on the mirror answers again for what is not there."""
        self._taken.clear()

    def quieten(self) -> None:
        """End what befalls requests, and count what has befallen them."""
        if self._proxy is None:
            return
        self._proxy.clear()
        for name, count in self._proxy.injected.items():
            self._statistics.count_fault(f"store: {name}", count - self._injected_before.get(name, 0))
            self._injected_before[name] = count

    def let_late_requests_end(self) -> None:
        """Wait until the store has done what a mirror that has ended was asking for.

        The intention of such a request stands in its state. Who loses that at this very moment may get an object that
        nobody knows of (docs/semantics.md, P2).
        """
        if self._proxy is not None and not self._proxy.wait_until_idle():
            raise RuntimeError("requests of a mirror that has ended are still under way after a minute")
