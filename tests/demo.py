"""The demonstration that scripts/demo runs: what a newcomer sees of mirrorfs, and a check that all of it is true."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness.content import plan_of_size
from tests.harness.scan import file_sha256, scan_datastore
from tests.harness.writer import DatastoreWriter

MIB = 1024 * 1024
_BUCKET = "backups"
_NAME = "store1"
_IMAGE_SIZE = 220 * MIB
_SECRET_SIZE = 60 * MIB
_WAIT_SECONDS = 120.0
# Small enough that something is left to be done when the uploader is killed.
_PARALLEL = "2"
_HALF_OF_THE_CHUNKS = 40
_LOOK_SECONDS = 0.5


class DemoFailed(Exception):
    """Something that the demonstration promises did not hold."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the demonstration has its things."""

    base: Path

    @property
    def datastore(self) -> Path:
        return self.base / "datastore"

    @property
    def restored(self) -> Path:
        return self.base / "restored"

    @property
    def state(self) -> Path:
        return self.base / "state"

    @property
    def store(self) -> Path:
        return self.base / "store"


@dataclass(frozen=True, slots=True)
class Store:
    """The object store of the demonstration."""

    process: subprocess.Popen[str]
    endpoint_url: str
    environment: dict[str, str]


def main() -> int:
    """Run the demonstration; 0 only if every comparison held."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave everything up and say how to look around")
    keep = parser.parse_args().keep
    # PBS's user must be able to enter the datastore, as on a real server.
    place = Place(Path(tempfile.mkdtemp(prefix="mirrorfs-demo-")))
    place.base.chmod(0o755)
    store = None
    kept = False
    try:
        store = _start_store(place)
        compared = _demonstrate(Demo(place, store))
        kept = keep
    except DemoFailed as failure:
        print(f"\nFAILED: {failure}", file=sys.stderr)
        log = place.state / "mirrorfs.log"
        if log.exists():
            print(f"The end of the mount's log:\n{log.read_text()[-3000:]}", file=sys.stderr)
        return 1
    finally:
        if not kept:
            _take_away(place, store)
    if kept and store is not None:
        _tell_how_to_look_around(place, store)
    print(f"\nAll of it came back from the bucket: {compared}.")
    return 0


class Demo:
    """What the demonstration does, with a line for each step."""

    def __init__(self, place: Place, store: Store) -> None:
        self.place = place
        self.store = store
        self._began = time.monotonic()
        self.url = f"s3://{_BUCKET}/{_NAME}"

    def say(self, text: str) -> None:
        """Tell what happens."""
        print(f"[{time.monotonic() - self._began:5.1f} s] {text}", flush=True)

    def mirrorfs(self, *arguments: str, show: bool = True) -> str:
        """Run a mirrorfs command as the newcomer would type it."""
        if show:
            print(f"          # mirrorfs {' '.join(arguments)}", flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "mirrorfs.cli", *arguments],
            env=self.store.environment,
            capture_output=True,
            text=True,
            timeout=_WAIT_SECONDS + 30,
            check=False,
        )
        if show:
            for line in done.stdout.splitlines():
                print(f"          {line}", flush=True)
        if done.returncode != 0:
            raise DemoFailed(f"mirrorfs {arguments[0]} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def status(self) -> dict[str, Any] | None:
        """The uploader's status; None while it is being started again."""
        with contextlib.suppress(DemoFailed):
            answer: dict[str, Any] = json.loads(
                self.mirrorfs("status", str(self.place.datastore), "--json", show=False)
            )
            return answer
        return None


def _tell_how_chunks_are_reached(demo: Demo) -> None:
    status = demo.status()
    chunk_store = {} if status is None else status["chunk_store"]
    if chunk_store.get("in_use") == "native":
        demo.say("chunks are native: PBS writes and reads them at the speed of the disk, past FUSE")
    else:
        demo.say(f"chunks pass through FUSE: {chunk_store.get('reason', 'the mount does not say why')}")


def _demonstrate(demo: Demo) -> str:
    place, endpoint = demo.place, ["--endpoint-url", demo.store.endpoint_url]
    demo.say(f"an object store (SeaweedFS) runs at {demo.store.endpoint_url}")
    place.datastore.mkdir()
    with DatastoreWriter(place.datastore, default_plan=plan_of_size(_IMAGE_SIZE)) as writer:
        writer.create()
    demo.say("a datastore as PBS makes it: 65,536 chunk directories")
    demo.mirrorfs(
        "mount",
        str(place.datastore),
        "--to",
        demo.url,
        "--state-dir",
        str(place.state),
        "--parallel",
        _PARALLEL,
        *endpoint,
    )
    _tell_how_chunks_are_reached(demo)
    snapshots = _back_up_watched(demo)
    demo.say("everything is published:")
    demo.mirrorfs("snapshots", demo.url, *endpoint)
    _forget(demo, snapshots[0])
    demo.mirrorfs("snapshots", demo.url, *endpoint)
    expected = _fingerprints(place.datastore)
    demo.mirrorfs("umount", str(place.datastore))
    shutil.rmtree(place.datastore)
    shutil.rmtree(place.state)
    demo.say("the datastore and mirrorfs' own state are thrown away; the bucket is all that is left")
    demo.mirrorfs("restore", demo.url, str(place.restored), *endpoint)
    compared = _compare(expected, _fingerprints(place.restored))
    demo.say(f"compared byte by byte: {compared}")
    return compared


def _back_up_watched(demo: Demo) -> list[str]:
    """Back up while the backlog and the bucket are shown, and kill the uploader once, half-way."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        backups = pool.submit(_back_up, demo)
        _watch(demo, backups)
        made = backups.result()
    demo.mirrorfs("wait", str(demo.place.datastore), "--timeout", str(_WAIT_SECONDS))
    return made


def _back_up(demo: Demo) -> list[str]:
    with DatastoreWriter(demo.place.datastore, default_plan=plan_of_size(_IMAGE_SIZE), threads=2) as writer:
        made = []
        for kind in ("full", "incremental", "incremental"):
            began = time.monotonic()
            snapshot = writer.backup("vm/100")
            made.append(snapshot.path)
            demo.say(
                f"{kind} backup {snapshot.path}: {len(snapshot.inserted)} new of {len(snapshot.chunks)} chunks, "
                f"{time.monotonic() - began:.1f} s"
            )
        secret = writer.backup("host/vault", plan=plan_of_size(_SECRET_SIZE), encrypted=True)
        made.append(secret.path)
        demo.say(f"encrypted backup {secret.path}: {len(secret.inserted)} chunks that nobody here can read")
        writer.set_notes(made[1], "before the upgrade")
        writer.set_protected(made[1])
    return made


def _watch(demo: Demo, backups: Future[list[str]]) -> None:
    killed = False
    shown = None
    deadline = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < deadline:
        answer = demo.status()
        if answer is not None and "backlog" in answer:
            left = answer["backlog"]["items"]
            line = f"backlog {left:3} items; in the bucket: {answer['chunks']} chunks, {_published(answer)} snapshots"
            if line != shown:
                demo.say(line)
                shown = line
            if not killed and answer["chunks"] >= _HALF_OF_THE_CHUNKS:
                os.kill(answer["uploader"]["pid"], signal.SIGKILL)
                killed = True
                demo.say("the uploader is killed with kill -9: the mount goes on, and starts it again")
            elif killed and not left and backups.done():
                return
        # Not a wait for an event: a look at the status every now and then is what is shown.
        time.sleep(_LOOK_SECONDS)
    raise DemoFailed(f"not everything was published within {_WAIT_SECONDS:.0f} s")


def _published(answer: dict[str, Any]) -> int:
    return sum(snapshot["phase"] == "published" for snapshot in answer["snapshots"])


def _forget(demo: Demo, snapshot: str) -> None:
    with DatastoreWriter(demo.place.datastore) as writer:
        writer.forget(snapshot)
        removed = writer.collect_garbage(age_seconds=0, safety_seconds=0).removed
    demo.say(f"{snapshot} is forgotten, and garbage collection takes {len(removed)} chunks that only it needed")
    demo.mirrorfs("wait", str(demo.place.datastore), "--timeout", str(_WAIT_SECONDS))


def _fingerprints(datastore: Path) -> dict[str, str]:
    """SHA-256 of every file that matters: the snapshots', the groups', and each chunk that they reference."""
    found = scan_datastore(datastore)
    paths = {path for snapshot in found.finished.values() for path in found.content_paths(snapshot)}
    paths |= {path for snapshot in found.finished.values() for path in found.group_paths(snapshot.name.group)}
    digests = {digest for snapshot in found.finished.values() for digest in snapshot.chunks}
    paths |= {f".chunks/{digest[:4]}/{digest}" for digest in digests}
    return {path: file_sha256(datastore / path) for path in paths}


def _compare(expected: dict[str, str], found: dict[str, str]) -> str:
    different = [path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path)]
    if different or not expected:
        raise DemoFailed(f"{len(different)} of {len(expected)} files differ after the restore, such as {different[:3]}")
    chunks = sum(path.startswith(".chunks/") for path in expected)
    return f"{len(expected) - chunks} files and {chunks} chunks are the same"


def _start_store(place: Place) -> Store:
    place.store.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.stores.seaweedfs", "--data-dir", str(place.store), "--bucket", _BUCKET],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise DemoFailed("the object store did not start")
    access = json.loads(line)
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": access["access_key"],
        "AWS_SECRET_ACCESS_KEY": access["secret_key"],
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    return Store(process, access["endpoint_url"], environment)


def _take_away(place: Place, store: Store | None) -> None:
    if os.path.ismount(place.datastore):
        subprocess.run(["umount", "--lazy", str(place.datastore)], check=False)
    if store is not None:
        store.process.terminate()
        store.process.wait(timeout=30)
    shutil.rmtree(place.base)


def _tell_how_to_look_around(place: Place, store: Store) -> None:
    access = store.environment
    print(f"""
Everything is left up. Look around:
  export AWS_ACCESS_KEY_ID={access["AWS_ACCESS_KEY_ID"]} AWS_SECRET_ACCESS_KEY={access["AWS_SECRET_ACCESS_KEY"]}
  .venv/bin/mirrorfs snapshots s3://{_BUCKET}/{_NAME} --endpoint-url {store.endpoint_url}
  .venv/bin/mirrorfs mount {place.restored} --to s3://{_BUCKET}/second --endpoint-url {store.endpoint_url}
  .venv/bin/python -m tests.harness backup {place.restored} vm/100 --size 100M
  .venv/bin/mirrorfs status {place.restored} --watch
Take it away again:
  umount {place.restored}; kill {store.process.pid}; rm -r {place.base}""")


if __name__ == "__main__":
    sys.exit(main())
