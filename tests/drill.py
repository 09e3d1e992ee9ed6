"""What scripts/drill runs: everything is lost, and each way back brings it back, byte for byte.

A way is a function that is given the scene and tells in figures what it has done; `WAYS` has them in their order. A way
that comes new is a function more, and a line there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.end_to_end.mirrors import PROGRAM, MirrorUnderTest
from tests.harness.auditor import Auditor
from tests.harness.backup import WrittenSnapshot
from tests.harness.bucket import Bucket
from tests.harness.content import MEBIBYTE, BackupPlan, plan_of_size
from tests.harness.mutation import SCRUB_IN_A_HURRY, environment_of
from tests.harness.scan import compare_datastores
from tests.harness.steps import StepFile
from tests.harness.writer import DatastoreWriter
from tests.recovery.mirror import objects_of
from tests.stores.fault_proxy import FaultProxy
from tests.stores.fault_rules import Fault
from tests.stores.seaweedfs import StoreServer, running_seaweedfs

_COMMAND_SECONDS = 3600.0
_SHORT_SIZE, _USUAL_SIZE = MEBIBYTE, 200 * MEBIBYTE
_SHORT_CHUNK, _USUAL_CHUNK = 64 * 1024, 4 * MEBIBYTE
_SUFFIXES = {"": 1, "K": 1024, "M": MEBIBYTE, "G": 1024 * MEBIBYTE}
# What ends by itself, and costs no more than a try.
_ODD = (Fault.ODD, Fault.SERVER_ERROR, Fault.CORRUPT_ANSWER, Fault.TRUNCATE, Fault.SHORTEN, Fault.DROP_BEFORE)
_ODD_PROBABILITY = 0.12
_MOST_TRIES = 20
_SEED = 13
_OWN_ACCORD_SECONDS = 900.0
_LOOK_SECONDS = 0.2
_MEMORY = Path("/dev/shm")


class DrillFailed(Exception):
    """A way back did not bring everything back."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What a way has done: what it was about, bytes that were compared, how long the undisturbed part of it took (s),
    how often it was killed or interrupted on its way, and what else is to be said.
    """

    way: str
    compared: int
    seconds: float
    interruptions: int = 0
    remark: str = ""

    @property
    def row(self) -> str:
        """A row of the table."""
        rate = f"{self.compared / self.seconds / 1e6:.1f}" if self.compared and self.seconds else "–"
        compared = f"{self.compared / 1e6:.1f}" if self.compared else "–"
        return f"| {self.way} | {compared} | {self.seconds:.1f} | {rate} | {self.interruptions} | {self.remark} |"


@dataclass(slots=True)
class Scene:
    """The stage: a store behind a proxy, the mirror, and `original`, a copy of what was lost, only to be compared with.

    `snapshots` are those that there are.
    """

    base: Path
    store: StoreServer
    proxy: FaultProxy
    mirror: MirrorUnderTest
    steps: StepFile
    plan: BackupPlan
    snapshots: list[WrittenSnapshot] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)

    @property
    def original(self) -> Path:
        return self.base / "original"

    def say(self, text: str) -> None:
        """Tell what happens."""
        print(f"[{time.monotonic() - self._began:6.1f} s] {text}", flush=True)

    # -- commands ------------------------------------------------------------------------------------------

    def command(self, name: str, *arguments: str, url: str | None = None) -> list[str]:
        """The words of a command on the bucket, past the proxy."""
        return [name, url or self.mirror.url, *arguments, "--endpoint-url", self.store.endpoint_url]

    def run(self, words: Sequence[str], *, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command that has to end with this exit code."""
        done = self.mirror.run(*words, timeout=_COMMAND_SECONDS)
        if done.returncode != code:
            raise DrillFailed(f"'mirrorfs {' '.join(words)}' ended with {done.returncode}, not {code}: {done.stderr}")
        return done

    def timed(self, words: Sequence[str], *, code: int = 0) -> tuple[subprocess.CompletedProcess[str], float]:
        """The same, and how long it took."""
        began = time.monotonic()
        done = self.run(words, code=code)
        return done, time.monotonic() - began

    def killed_at(self, steps: Sequence[str], words: Sequence[str]) -> int:
        """Run a command again and again, killed with -9 at each of these steps; tells how often that was."""
        for step in steps:
            self.steps.arm(step)
            done = self.mirror.run(*words, timeout=_COMMAND_SECONDS)
            if done.returncode != -signal.SIGKILL:
                raise DrillFailed(f"'mirrorfs {words[0]}' was not killed at {step}: {done.returncode} {done.stderr}")
        return len(steps)

    def killed_after_line(self, pattern: str, words: Sequence[str]) -> int:
        """Run a command, and kill it with -9 when it says a line on standard error that fits the pattern."""
        process = subprocess.Popen(
            [*PROGRAM, *words], env=self.mirror.environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        assert process.stderr is not None
        with process.stderr as lines:
            found = any(re.search(pattern, line.decode()) for line in lines)
            process.kill()
        process.wait()
        if not found:
            raise DrillFailed(f"'mirrorfs {words[0]}' ended before it said {pattern!r}")
        return 1

    def wait_until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait for what a process does by itself, and tells nobody. Raises DrillFailed after a while."""
        deadline = time.monotonic() + _OWN_ACCORD_SECONDS
        while not holds():
            if time.monotonic() > deadline:
                raise DrillFailed(f"in {_OWN_ACCORD_SECONDS:.0f} s it has not happened that {what}")
            time.sleep(_LOOK_SECONDS)

    # -- comparing -----------------------------------------------------------------------------------------

    def compare(self, target: Path, only: frozenset[str] | None = None) -> int:
        """Compare with the original byte for byte; tells how many bytes that were. Raises DrillFailed."""
        comparison = compare_datastores(self.original, target, only=only)
        if comparison.differences or not comparison.snapshots:
            first = [f"{found.path}: {found.sentence}" for found in comparison.differences[:3]]
            raise DrillFailed(f"{target} is not what was lost: {len(comparison.differences)} differences, {first}")
        return comparison.compared_bytes

    def audit(self) -> None:
        """Check P1 with the auditor, which shares nothing with mirrorfs."""
        client = self.store.access.client()
        violations = Auditor(Bucket(client, self.mirror.bucket, self.mirror.name), deep=True).audit_bucket()
        if violations:
            raise DrillFailed(f"P1 does not hold: {violations[:3]}")

    @contextmanager
    def target(self, name: str) -> Iterator[Path]:
        """A place to restore into, gone at the end."""
        path = self.base / name
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    # -- objects -------------------------------------------------------------------------------------------

    def objects(self) -> dict[str, bytes]:
        """All that the bucket has, by key below the name."""
        client, name = self.store.access.client(), self.mirror.name
        return {
            key.removeprefix(f"{name}/"): client.get_object(Bucket=self.mirror.bucket, Key=key)["Body"].read()
            for key in self.store.access.keys(self.mirror.bucket, f"{name}/.")
        }

    def read(self, key: str) -> bytes | None:
        """What an object holds, None if there is none."""
        client = self.store.access.client()
        try:
            body: bytes = client.get_object(Bucket=self.mirror.bucket, Key=f"{self.mirror.name}/{key}")["Body"].read()
        except client.exceptions.NoSuchKey:
            return None
        return body

    def put(self, key: str, body: bytes | None) -> bytes:
        """Put an object, or delete it (None), as somebody else; tells what was there."""
        client, full = self.store.access.client(), f"{self.mirror.name}/{key}"
        before: bytes = b""
        if key != ".in-use" or body is None:
            before = client.get_object(Bucket=self.mirror.bucket, Key=full)["Body"].read()
        if body is None:
            client.delete_object(Bucket=self.mirror.bucket, Key=full)
        else:
            client.put_object(Bucket=self.mirror.bucket, Key=full, Body=body)
        return before


# -- the ways ----------------------------------------------------------------------------------------------


def replay_run(scene: Scene) -> Figures:
    """The host died with work left. The disk and its state directory are brought to another one, and mirrored to their
    end from there; then they are lost too.
    """
    mirror = scene.mirror
    rescued, state = scene.base / "rescued", scene.base / "rescued-state"
    shutil.copytree(mirror.datastore, rescued)
    shutil.copytree(mirror.state, state, ignore=shutil.ignore_patterns("*.sock", "*.log"))
    words = ["replay", "run", str(state), "--datastore", str(rescued), "--to", mirror.url, *mirror.store_options()]
    killed = scene.killed_at(["chunk.after-put", "publication.before-manifest", "publication.manifest-put"], words)
    _, seconds = scene.timed(words)
    scene.audit()
    if mirror.published() != sorted(snapshot.path for snapshot in scene.snapshots):
        raise DrillFailed(f"not all snapshots are published after 'replay run': {mirror.published()}")
    # Now everything is lost. What is compared with has a name that no command is told.
    os.rename(rescued, scene.original)
    shutil.rmtree(state)
    shutil.rmtree(mirror.state)
    shutil.rmtree(mirror.datastore)
    mirror.datastore.mkdir()
    return Figures("`replay run` after the death of the host", 0, seconds, killed, "the last backups were not sent yet")


def verify(scene: Scene) -> Figures:
    """The bucket alone tells that it is good; and exactly what is damaged, if something is."""
    scene.run(scene.command("verify"))
    done, seconds = scene.timed(scene.command("verify", "--deep", "--json"))
    answer = json.loads(done.stdout)
    return Figures("`verify --deep`", answer["bytes_read"], seconds, 0, f"{answer['chunks_read']} chunks")


def restore(scene: Scene) -> Figures:
    """From the bucket alone, interrupted, into an empty directory."""
    with scene.target("restored") as target:
        words = scene.command("restore", str(target))
        killed = scene.killed_after_line(r"^\[1/", words)
        scene.run(words)
        scene.compare(target)
    with scene.target("restored") as target:
        _, seconds = scene.timed(scene.command("restore", str(target)))
        return Figures("`restore`", scene.compare(target), seconds, killed, "timed without the interruption")


def restore_from_an_odd_store(scene: Scene) -> Figures:
    """The store answers now and then as no S3 does, cuts answers short, or spoils them."""
    scene.proxy.storm(_SEED, _ODD, _ODD_PROBABILITY, 0.2)
    try:
        with scene.target("from-odd") as target:
            words = ["restore", scene.mirror.url, str(target), "--endpoint-url", scene.proxy.endpoint_url]
            began = time.monotonic()
            failed = _insist(scene, words, target)
            seconds, faults = time.monotonic() - began, sum(scene.proxy.injected.values())
            compared = scene.compare(target)
        return Figures("`restore` from an odd store", compared, seconds, failed, f"{faults} faults")
    finally:
        scene.proxy.clear()


def _insist(scene: Scene, words: Sequence[str], target: Path) -> int:
    """Give a restore again until it is complete, as its messages say; tells how often it had failed."""
    for failed in range(_MOST_TRIES):
        done = scene.mirror.run(*words, timeout=_COMMAND_SECONDS)
        if done.returncode == 0:
            return failed
        if "left out" in done.stderr:
            # The store has said of an object that it is not there: what is there is finished, and not gone on with.
            shutil.rmtree(target)
    raise DrillFailed(f"the restore from an odd store failed {_MOST_TRIES} times: {done.stderr}")


def damage(scene: Scene) -> Figures:
    """A chunk, an index and a manifest are spoilt in the bucket: what they cost is named, and all else comes back."""
    victims, spoilt = scene.snapshots[-2:], {}
    own = set(victims[0].chunks) - {
        chunk for other in scene.snapshots if other is not victims[0] for chunk in other.chunks
    }
    chunk = f".chunks/{min(own)[:4]}/{min(own)}"
    for key in (chunk, f".cnt/{victims[1].path}/drive-scsi0.img.fidx"):
        spoilt[key] = scene.put(key, b"spoilt")
    began = time.monotonic()
    answer = json.loads(scene.run(scene.command("verify", "--deep", "--json"), code=1).stdout)
    seconds = time.monotonic() - began
    named = answer["damaged_snapshots"]
    if named != sorted(victim.path for victim in victims):
        raise DrillFailed(f"'verify --deep' names {named}")
    whole = frozenset(snapshot.path for snapshot in scene.snapshots if snapshot not in victims)
    with scene.target("partly") as target:
        done = scene.run(scene.command("restore", str(target)), code=1)
        if any(victim.path not in done.stderr for victim in victims):
            raise DrillFailed(f"'restore' does not name what it leaves out: {done.stderr}")
        compared = scene.compare(target, whole)
    for key, body in spoilt.items():
        scene.put(key, body)
    scene.run(scene.command("verify", "--deep"))
    return Figures("`restore` of a damaged bucket", compared, seconds, 0, "2 spoilt; seconds of `verify --deep`")


def drill(scene: Scene) -> Figures:
    """The command of that name, killed at its steps, from the bucket as it is."""
    scratch, reports = scene.base / "scratch", scene.base / "reports"
    scratch.mkdir()
    words = scene.command("drill", "--latest", "100", "--scratch", str(scratch), "--keep-report", str(reports))
    killed = scene.killed_at(["drill.scratch-made", "drill.restored", "drill.scratch-emptied"], words)
    _, seconds = scene.timed(words)
    if list(scratch.iterdir()):
        raise DrillFailed(f"a drill has left {list(scratch.iterdir())}")
    report = json.loads(next(reports.glob("drill-*.json")).read_text())
    if not report["good"] or len(report["snapshots"]) != len(scene.snapshots):
        raise DrillFailed(f"the report of the drill says {report}")
    return Figures("`drill`", report["bytes_read"], seconds, killed, "restores, and reads all of it once more")


def mount_again(scene: Scene) -> Figures:
    """The restored datastore is mirrored again to the same name; nothing is sent again."""
    mirror = scene.mirror
    mirror.datastore.rmdir()
    scene.run(scene.command("restore", str(mirror.datastore)))
    began = time.monotonic()
    mirror.mount("--take-over")
    mirror.wait(600)
    seconds, sent = time.monotonic() - began, mirror.status()["uploaded"]
    mirror.succeed("umount", "--drain", str(mirror.datastore), timeout=600)
    scene.audit()
    compared, remark = scene.compare(mirror.datastore), f"{sent['bytes'] / 1e6:.1f} MB sent again"
    return Figures("`mount` of what was restored", compared, seconds, 0, remark)


def restore_into(scene: Scene) -> Figures:
    """A disk has lost snapshots and chunks of a datastore that is in use: they are put back into it."""
    datastore, victims = scene.mirror.datastore, scene.snapshots[-2:]
    needed = {chunk for snapshot in scene.snapshots if snapshot not in victims for chunk in snapshot.chunks}
    for victim in victims:
        shutil.rmtree(datastore / victim.path)
        for chunk in set(victim.chunks) - needed:
            (datastore / ".chunks" / chunk[:4] / chunk).unlink(missing_ok=True)
    words = scene.command("restore", "--into", str(datastore))
    killed = scene.killed_at(["insertion.inserted", "into.staged", "into.before-placing", "into.placed"], words)
    _, seconds = scene.timed(words)
    return Figures("`restore --into`", scene.compare(datastore), seconds, killed, f"{len(victims)} snapshots were lost")


def heal(scene: Scene) -> Figures:
    """A disk and the bucket have each lost chunks that the other has: both are made whole, below a mount."""
    mirror, datastore = scene.mirror, scene.mirror.datastore
    mirror.mount()
    mirror.wait(600)
    chunks = sorted({chunk for snapshot in scene.snapshots for chunk in snapshot.chunks})
    missing, spoilt, quarantined, spoilt_in_bucket, missing_in_bucket = (
        f".chunks/{chunk[:4]}/{chunk}" for chunk in chunks[:5]
    )
    (datastore / missing).unlink()
    (datastore / spoilt).write_bytes(b"spoilt")
    (datastore / quarantined).rename(datastore / f"{quarantined}.0.bad")
    scene.put(spoilt_in_bucket, b"spoilt")
    scene.put(missing_in_bucket, None)
    scene.put(f".cnt/{scene.snapshots[0].path}/drive-scsi0.img.fidx", b"spoilt")
    words = ["heal", str(datastore)]
    killed = scene.killed_at(["insertion.inserted"], words)
    _, seconds = scene.timed(words)
    done, bucket_seconds = scene.timed(["heal", str(datastore), "--bucket", "--json"])
    healed = json.loads(done.stdout)["healed"]
    if len(healed) != 3:
        raise DrillFailed(f"'heal --bucket' has sent {healed}")
    mirror.wait(600)
    mirror.succeed("umount", "--drain", str(datastore), timeout=600)
    scene.audit()
    remark = f"3 chunks each way and an index; the bucket's took {bucket_seconds:.1f} s"
    return Figures("`heal`, `heal --bucket`", scene.compare(datastore), seconds, killed, remark)


def scrub(scene: Scene) -> Figures:
    """Objects rot in the bucket, and the mount is told nothing: its scrub finds them, and puts back what was there. The
    uploader is killed between the finding and the sending.
    """
    mirror, before, killed = scene.mirror, scene.objects(), len(scene.steps.fired)
    chunks = sorted({chunk for snapshot in scene.snapshots for chunk in snapshot.chunks})
    flipped, cut, missing = (f".chunks/{chunk[:4]}/{chunk}" for chunk in chunks[-3:])
    index, manifest = (f".cnt/{scene.snapshots[0].path}/{name}" for name in ("drive-scsi0.img.fidx", "index.json.blob"))
    hurry = environment_of(SCRUB_IN_A_HURRY)
    mirror.extra_environment |= hurry
    try:
        mirror.mount("--verify-percent-per-day", "100", "--nice", "0")
        mirror.wait(600)
        scene.steps.arm("chunk.doubted")
        for key in (flipped, index):
            scene.put(key, before[key][:-1] + bytes([before[key][-1] ^ 1]))
        for key in (cut, manifest):
            scene.put(key, before[key][:-1])
        scene.put(missing, None)
        began = time.monotonic()
        rotten = (flipped, cut, missing, index, manifest)
        scene.wait_until(
            lambda: all(scene.read(key) == before[key] for key in rotten), "the scrub finds what is rotten"
        )
        seconds = time.monotonic() - began
        mirror.wait(600)
        if mirror.status()["problems"]:
            raise DrillFailed(f"after the scrub there are problems: {mirror.status()['problems']}")
        mirror.succeed("umount", "--drain", str(mirror.datastore), timeout=600)
    finally:
        for name in hurry:
            del mirror.extra_environment[name]
    scene.audit()
    after = scene.objects()
    differing = [key for key in before if not key.startswith(".mirrorfs/") and after.get(key) != before[key]]
    if differing:
        raise DrillFailed(f"the scrub has not put back what was there: {differing[:3]}")
    compared = sum(map(len, before.values()))
    remark = f"{len(rotten)} objects rotten, all {len(before)} read"
    return Figures("`mount`: its scrub", compared, seconds, len(scene.steps.fired) - killed, remark)


def handover_and_takeback(scene: Scene) -> Figures:
    """The bucket goes to a PBS, which backs up, forgets and leaves; it comes back, and nothing is lost."""
    mirror, began = scene.mirror, time.monotonic()
    words = scene.command("handover", "--remove-own")
    killed = scene.killed_at(["handover.marked", "handover.before-giving-up", "handover.given-up"], words)
    scene.run(words)
    scene.put(".in-use", b'{"hostname": "pbs4"}')
    scene.run(scene.command("takeback"), code=1)
    elsewhere = scene.base / "elsewhere"
    with DatastoreWriter(elsewhere, seed=_SEED + 1, default_plan=scene.plan) as writer:
        writer.create(chunk_directories="when needed")
        made = writer.backup("vm/700")
    for key, body in objects_of(elsewhere).items():
        client = scene.store.access.client()
        client.put_object(Bucket=mirror.bucket, Key=f"{mirror.name}/{key}", Body=body)
    forgotten = scene.snapshots[-1].path
    for key in [key for key in scene.objects() if key.startswith(f".cnt/{forgotten}/")]:
        scene.put(key, None)
    scene.put(".in-use", None)
    words = scene.command("takeback")
    killed += scene.killed_at(["takeback.before-mark", "takeback.marked"], words)
    told = scene.run(words).stdout
    if made.path not in told or forgotten not in told:
        raise DrillFailed(f"'takeback' does not name what has become of the bucket: {told}")
    with scene.target("made") as target:
        scene.run(scene.command("restore", str(target), "--snapshot", made.path))
        comparison = compare_datastores(elsewhere, target, only=frozenset({made.path}))
        if comparison.differences or not comparison.snapshots:
            raise DrillFailed(f"what the PBS has made does not come back: {comparison.differences[:3]}")
    mirror.mount()
    mirror.wait(600)
    if mirror.published() != sorted([made.path, *(snapshot.path for snapshot in scene.snapshots)]):
        raise DrillFailed(f"after 'takeback' the bucket has {mirror.published()}")
    mirror.succeed("umount", "--drain", str(mirror.datastore), timeout=600)
    scene.audit()
    seconds = time.monotonic() - began
    return Figures("`handover`, a PBS's backup, `takeback`", comparison.compared_bytes, seconds, killed, "all of it")


Way = Callable[[Scene], Figures]

WAYS: Sequence[Way] = (
    # From here on nothing is left but the bucket.
    replay_run,
    verify,
    restore,
    restore_from_an_odd_store,
    damage,
    drill,
    # And from here on there is a mirror again.
    mount_again,
    restore_into,
    heal,
    scrub,
    handover_and_takeback,
)


# -- before them -------------------------------------------------------------------------------------------


def back_up(scene: Scene) -> None:
    """Backups as a PBS makes them, mirrored; the last ones are not, because the host dies."""
    mirror = scene.mirror
    mirror.mount()
    with DatastoreWriter(mirror.datastore, seed=_SEED, default_plan=scene.plan) as writer:
        made = [writer.backup("vm/100"), writer.backup("vm/100")]
        writer.create_namespace("customers/a")
        made.append(writer.backup("host/vault", namespace="customers/a", encrypted=True))
        writer.set_notes(made[1].name, "before the upgrade")
        writer.set_protected(made[1].name)
        writer.upload_log(made[0].name)
        writer.set_group_notes("vm/100", "the web shop")
        mirror.wait(600)
        os.kill(mirror.uploader_pid(), signal.SIGSTOP)
        made += [writer.backup("vm/100"), writer.backup("ct/200")]
    mirror.kill_all()
    mirror.detach_dead()
    scene.snapshots = made


def run_all(size: int, chunk_size: int, parent: Path | None) -> list[Figures]:
    """Run every way on images of `size` bytes, in a directory of its own in `parent`. Raises DrillFailed."""
    base = Path(tempfile.mkdtemp(prefix="mirrorfs-test-drill-", dir=parent))
    # PBS's user must be able to enter the datastore, as on a real server.
    base.chmod(0o755)
    try:
        with running_seaweedfs() as store, FaultProxy(store.endpoint_url) as proxy:
            mirror = MirrorUnderTest(base, store, store.create_bucket(), store.endpoint_url)
            steps = StepFile(base / "step")
            mirror.extra_environment |= steps.environment
            scene = Scene(base, store, proxy, mirror, steps, plan_of_size(size, chunk_size=chunk_size))
            try:
                mirror.create()
                back_up(scene)
                scene.say(f"{len(scene.snapshots)} backups; the host died before the last of them were sent")
                return [_told(scene, way) for way in WAYS]
            finally:
                mirror.tear_down()
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _told(scene: Scene, way: Way) -> Figures:
    figures = way(scene)
    scene.say(f"{figures.way}: {figures.seconds:.1f} s, killed {figures.interruptions} times; {figures.remark}")
    return figures


def table(figures: Sequence[Figures]) -> str:
    """The figures as they may be pasted into docs/performance.md."""
    head = ["| way back | MB compared | s | MB/s | killed or failed | |", "| --- | ---: | ---: | ---: | ---: | --- |"]
    return "\n".join([*head, *(one.row for one in figures)])


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMG]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 200M")
    return int(match[1]) * _SUFFIXES[match[2]]


def main() -> int:
    """Run the drill; 0 only if every way brought everything back."""
    parser = argparse.ArgumentParser(prog="scripts/drill", description=__doc__)
    parser.add_argument("--size", type=_size, default=_USUAL_SIZE, help="of the image of each backup (200M)")
    parser.add_argument("--short", action="store_true", help="a few MB, as the test suite does it")
    parser.add_argument("--base", type=Path, help="where datastores and store lie, in a directory that is removed")
    given = parser.parse_args()
    size, chunk_size = (_SHORT_SIZE, _SHORT_CHUNK) if given.short else (given.size, _USUAL_CHUNK)
    base = given.base
    if given.short and base is None and _MEMORY.is_dir():
        # Each restore makes 65,536 directories, which tells nothing new here.
        base = _MEMORY
    try:
        figures = run_all(size, chunk_size, base)
    except (DrillFailed, AssertionError) as failure:
        print(f"\nFAILED: {failure}", file=sys.stderr)
        return 1
    print(f"\n{table(figures)}\n\nEverything came back, by each of {len(figures)} ways.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
