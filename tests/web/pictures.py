"""Pictures of the page for the documents, of a real mirror: python -m tests.web.pictures DIRECTORY.

A day of it is two minutes long: points are noted each half second, and said to be some minutes apart. pngquant makes
the pictures small.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from mirrorfs.cli.web import _read
from mirrorfs.web import overview, serving
from mirrorfs.web.gate import Gate
from mirrorfs.web.history import History
from mirrorfs.web.overview import Drilled, Overview, Reading
from mirrorfs.web.pages import Pages
from tests.end_to_end.mirrors import MirrorUnderTest
from tests.harness.content import plan_of_size
from tests.harness.writer import DatastoreWriter
from tests.stores.seaweedfs import running_seaweedfs
from tests.web.browser import running_browser

_POINT_SECONDS = 0.5
_DAY_SECONDS = 120.0
_MIB = 1 << 20
_NIGHT = (("vm/100", 30), ("vm/101", 12), ("vm/104", 20), ("ct/200", 6), ("host/mail", 16), ("host/files", 40))
_SHOWN_PATH = "/mnt/datastore/store1"


class _LongDay(History):
    """Says that its points are as far apart as the picture needs."""

    def told(self) -> dict[str, Any]:
        told, now = super().told(), time.time()
        last = max(1, len(told["points"]) - 1)
        for number, point in enumerate(told["points"]):
            point[0] = round(now - (last - number) * 86000 / last)
        return told


def _live(mirror: MirrorUnderTest) -> None:
    """Two nights of backups, somebody who forgets too much, and a disk that rots."""
    with DatastoreWriter(mirror.datastore, seed=3) as writer:
        writer.create_namespace("customers")
        for _ in range(2):
            for group, size in _NIGHT:
                writer.backup(group, plan=plan_of_size(size * _MIB))
                time.sleep(1.5)
            writer.backup("vm/310", namespace="customers", plan=plan_of_size(24 * _MIB))
            mirror.wait(120)
            time.sleep(15)
        for group in ("vm/104", "host/files"):
            for snapshot in writer.snapshots(group):
                writer.forget(snapshot)
                break
        writer.forget_group("ct/200")
        damaged = writer.backup("vm/101", plan=plan_of_size(12 * _MIB))
        mirror.run("wait", str(mirror.datastore), "--timeout", "60")
        writer.corrupt_chunk(min(damaged.chunks))
        writer.verify(damaged.name)
        writer.backup("vm/100", plan=plan_of_size(30 * _MIB))


def _reading(mirror: MirrorUnderTest) -> Reading:
    reading = _read(str(mirror.datastore), None)
    drills = [Drilled(group, time.time() - 86400 * number, good=True) for number, (group, _) in enumerate(_NIGHT)]
    return _renamed(replace(reading, drills=drills), str(mirror.datastore))


def _renamed(reading: Reading, path: str) -> Reading:
    """The datastore of the picture lies where one would, not in a directory of a test."""

    def other(value: Any) -> Any:  # noqa: ANN401
        match value:
            case str():
                return value.replace(path, _SHOWN_PATH)
            case dict():
                return {name: other(inner) for name, inner in value.items()}
            case list():
                return [other(inner) for inner in value]
        return value

    return replace(
        reading,
        status=other(reading.status),
        approve="mirrorfs retention approve store1",
        heal="mirrorfs heal store1",
    )


async def _serve(mirror: MirrorUnderTest, directory: Path, base: Path) -> None:
    told = Overview(lambda: _reading(mirror), _POINT_SECONDS)
    told._history = _LongDay()
    living = threading.Thread(target=_live, args=(mirror,))
    living.start()
    ends = trio.current_time() + _DAY_SECONDS
    listeners = await serving.listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serving.serve, listeners, told, Pages(told, Gate(None, is_local=True)), lambda: None)
        await trio.sleep_until(ends)
        await trio.to_thread.run_sync(_take, url, directory, base)
        nursery.cancel_scope.cancel()
    await trio.to_thread.run_sync(living.join)


def _take(url: str, directory: Path, base: Path) -> None:
    with running_browser(base / "browser") as browser:
        for name, width, height, dark in (("desktop", 1120, 0, False), ("phone", 390, 1500, True)):
            browser.show(url, width=width, dark=dark)
            browser.wait_for("document.querySelector('#groups tr') && document.querySelector('.plot path')")
            if name == "desktop":
                browser.evaluate("document.querySelectorAll('#groups button')[2].click()")
            whole = int(browser.evaluate("document.documentElement.scrollHeight"))
            browser.show(url, width=width, dark=dark, height=height or whole)
            browser.wait_for("document.querySelector('#groups tr') && document.querySelector('.plot path')")
            if name == "desktop":
                browser.evaluate("document.querySelectorAll('#groups button')[2].click()")
            browser.picture(directory / f"web-{name}.png", whole=False)
        assert browser.complaints == []


def main() -> None:
    """Make them."""
    directory = Path(sys.argv[1])
    directory.mkdir(exist_ok=True)
    overview._FRESH_SECONDS, overview._SHARE_OF_ASKING = _POINT_SECONDS / 2, 1.0
    with (
        tempfile.TemporaryDirectory(prefix="mirrorfs-test-", ignore_cleanup_errors=True) as path,
        running_seaweedfs() as store,
    ):
        store.access.client().create_bucket(Bucket="backups")
        mirror = MirrorUnderTest(Path(path), store, "backups", store.endpoint_url)
        mirror.create()
        try:
            mirror.mount("--retention-max-delete-fraction", "0.1", "--bandwidth-up", "6 MiB/s")
            trio.run(_serve, mirror, directory, Path(path))
        finally:
            mirror.tear_down()


if __name__ == "__main__":
    main()
