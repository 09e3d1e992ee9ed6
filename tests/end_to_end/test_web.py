"""`mirrorfs web` beside a real mount: what it shows is so, with no more rights than its unit has."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from mirrorfs.service import units
from tests.end_to_end.mirrors import PROGRAM, MirrorUnderTest
from tests.end_to_end.test_crashes import TINY
from tests.harness.writer import DatastoreWriter
from tests.json_schema import STATUS_SCHEMA, violations

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts are root's")


class Page:
    """The page of a mirror, served by the command."""

    def __init__(self, mirror: MirrorUnderTest) -> None:
        self._mirror = mirror
        self.process: subprocess.Popen[str] | None = None
        self.url = ""

    def start(self, *, rights: tuple[str, ...] = ()) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        self.process = subprocess.Popen(
            [*rights, *PROGRAM, "web", str(self._mirror.datastore), "--listen", f"127.0.0.1:{port}"],
            env=self._mirror.environment(),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stderr is not None
        assert self.process.stderr.readline() == f"the page is at http://127.0.0.1:{port}/\n"
        self.url = f"http://127.0.0.1:{port}/"

    def get(self, path: str, *, method: str = "GET") -> bytes:
        request = urllib.request.Request(f"{self.url}{path}", method=method)  # noqa: S310
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            body: bytes = answer.read()
        return body

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        assert self.process.stderr is not None
        with self.process.stderr:
            return self.process.wait(30)


@pytest.fixture
def page(mirror: MirrorUnderTest) -> Iterator[Page]:
    made = Page(mirror)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()


def _rights_of_the_unit() -> tuple[str, ...]:
    lines = [line.partition("=") for line in units.template(units.PAGE, "x").splitlines()]
    words = [word for key, _, value in lines if key == "CapabilityBoundingSet" for word in value.split()]
    kept = ",".join(f"+{word.removeprefix('CAP_').lower()}" for word in words)
    return ("setpriv", "--no-new-privs", "--inh-caps=-all", f"--bounding-set=-all,{kept}", "--")


def test_it_shows_what_status_tells(mirror: MirrorUnderTest, page: Page) -> None:
    mirror.mount("--retention-max-delete-fraction", "0.2")
    with DatastoreWriter(mirror.datastore, seed=9, default_plan=TINY) as writer:
        made = [writer.backup("vm/100") for _ in range(3)]
        mirror.wait()
        writer.forget_group("vm/100")
        writer.backup("ct/200")
    mirror.run("wait", str(mirror.datastore), "--timeout", "60")
    page.start(rights=_rights_of_the_unit())
    live, status = json.loads(page.get("live.json")), mirror.status()
    shown = live["status"]
    assert list(violations({**shown, "snapshots": [], "store_options": {}}, STATUS_SCHEMA)) == []
    for key in ("word", "why", "to_do", "datastore", "bucket", "problems", "chunk_store", "chunks"):
        assert shown[key] == status[key]
    assert (shown["word"], live["error"]) == ("held", None)
    assert [one["snapshot"] for one in shown["retention"]["held"]] == [snapshot.path for snapshot in made]
    assert live["approve"] == f"mirrorfs retention approve {mirror.datastore}"
    assert json.loads(page.get("snapshots.json")) == status["snapshots"]
    assert len(json.loads(page.get("history.json"))["points"]) == 1
    assert page.get("").startswith(b"<!doctype html>")

    mirror.kill_mount()
    mirror.detach_dead()
    while (live := json.loads(page.get("live.json")))["error"] is None:
        continue
    assert "mirrorfs is mounted on" in live["error"] or "was killed" in live["error"]
    assert live["status"]["word"] == "held", "what was known is still shown"
    assert page.stop() == 0


def test_it_is_served_before_there_is_a_mount(mirror: MirrorUnderTest, page: Page) -> None:
    page.start()
    live = json.loads(page.get("live.json"))
    assert live["status"] is None
    assert "no mirrorfs is mounted" in live["error"]
    for path, status in (("nothing", 404), ("", 405)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            page.get(path, method="GET" if path else "POST")
        assert refused.value.status == status
        refused.value.close()
