"""`mirrorfs replay run`: what a dead host has left is mirrored to its end, wherever, in however many tries."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
from typing import Any

import pytest

from mirrorfs.journal.journal import JournalWriter
from tests.end_to_end.mirrors import PROGRAM, MirrorUnderTest
from tests.harness.auditor import Auditor, audit_continuously
from tests.harness.backup import WrittenSnapshot
from tests.harness.bucket import Bucket
from tests.harness.content import BackupPlan, BlobPlan, ImagePlan
from tests.harness.steps import StepFile
from tests.stores.fault_proxy import FaultProxy
from tests.stores.fault_rules import Fault

TINY = BackupPlan(images=(ImagePlan("drive-scsi0.img", 3 * 65536, 65536),), blobs=(BlobPlan("qemu-server.conf", 300),))


class DeadHost:
    """A mirror whose host died with work left: one snapshot published and gone since, two new ones."""

    def __init__(self, mirror: MirrorUnderTest) -> None:
        self.mirror = mirror
        mirror.mount()
        with mirror.writer() as writer:
            kept = writer.backup("vm/1", plan=TINY)
            gone = writer.backup("vm/1", plan=TINY)
            mirror.wait()
            uploader = mirror.uploader_pid()
            # It hears of nothing that comes now.
            os.kill(uploader, signal.SIGSTOP)
            new = [writer.backup("vm/2", plan=TINY), writer.backup("ct/3", plan=TINY)]
            writer.set_notes(kept.name, "the last words")
            writer.forget(gone.name)
        mirror.kill_all()
        mirror.detach_dead()
        self.present = sorted([kept.path, *(snapshot.path for snapshot in new)])
        self.new: list[WrittenSnapshot] = new
        self.state = mirror.base / "copy"
        shutil.copytree(mirror.state, self.state, ignore=shutil.ignore_patterns("*.sock", "*.log"))
        self.state.chmod(0o700)

    def arguments(self, *options: str, name: str | None = None) -> list[str]:
        url = self.mirror.url if name is None else f"s3://{self.mirror.bucket}/{name}"
        return [
            "replay", "run", str(self.state), "--datastore", str(self.mirror.datastore), "--to", url,
            *self.mirror.store_options(), *options,
        ]  # fmt: skip

    def run(self, *options: str, name: str | None = None) -> str:
        return self.mirror.succeed(*self.arguments(*options, name=name))

    def refused(self, *options: str, name: str | None = None) -> str:
        done = self.mirror.run(*self.arguments(*options, name=name))
        assert done.returncode == 1, done.stdout + done.stderr
        # What is logged begins with a time.
        lines = [
            line for line in done.stderr.splitlines() if not re.match(r"\d{4}-\d\d-\d\d |asking|comparing|mir", line)
        ]
        return "\n".join(lines)

    def plan(self, *options: str) -> list[dict[str, Any]]:
        told = self.mirror.succeed(
            "replay", "plan", str(self.state), "--datastore", str(self.mirror.datastore), "--json", *options
        )
        return [json.loads(line) for line in told.splitlines()]

    def traces(self) -> dict[str, bytes]:
        """Everything that only looking must leave as it is: the copy, and the bucket."""
        files = {str(path): path.read_bytes() for path in self.state.rglob("*") if path.is_file()}
        objects = self.mirror.store.access.keys(self.mirror.bucket, self.mirror.name)
        return files | dict.fromkeys(objects, b"")

    def audit(self, name: str) -> list[Any]:
        auditor = Auditor(Bucket(self.mirror.store.access.client(), self.mirror.bucket, name), deep=True)
        return [*auditor.audit_bucket(), *auditor.audit_datastore(self.mirror.datastore)]

    def summary(self, *options: str) -> dict[str, Any]:
        done = self.mirror.run("replay", "list", str(self.state), "--json", *options)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


@pytest.fixture
def host(mirror: MirrorUnderTest) -> DeadHost:
    return DeadHost(mirror)


def test_a_dead_hosts_mirror_is_brought_to_its_end(host: DeadHost) -> None:
    mirror = host.mirror
    assert host.summary("--pending")["pending"] > 0
    told = host.run()
    assert f"{mirror.url} is up to date: 3 snapshots" in told
    assert mirror.published() == host.present
    assert mirror.audit() == []
    assert host.summary()["pending"] == 0
    # Again, and by the host itself when it is there again: nothing is amiss.
    host.run("--all")
    mirror.mount()
    mirror.wait()
    assert mirror.published() == host.present
    assert mirror.audit() == []


def test_an_empty_name_gets_all_of_it_and_goes_on_where_it_was(host: DeadHost) -> None:
    before = {path.name: path.read_bytes() for path in (host.state / "journal").iterdir()}
    other = f"{host.mirror.name}-other"
    host.run(name=other)
    assert host.audit(other) == []
    (made,) = host.state.glob("replay-*")
    position = host.mirror.run("replay", "list", str(made), "--state").returncode
    assert position == 0
    chunks = host.mirror.store.access.keys(host.mirror.bucket, f"{other}/.chunks/")
    again = host.run(name=other)
    # The claim, and what the store is probed with.
    assert int(re.search(r"(\d+) objects", again)[1]) < 6  # type: ignore[index]
    assert host.mirror.store.access.keys(host.mirror.bucket, f"{other}/.chunks/") == chunks
    assert {path.name: path.read_bytes() for path in (host.state / "journal").iterdir()} == before
    # The first mirror's state is for the first mirror.
    assert host.summary()["pending"] > 0


@pytest.mark.parametrize(
    ("step", "number"),
    [
        ("claim.after-put", 1),
        ("chunk.after-put", 2),
        ("publication.committed", 1),
        ("publication.before-manifest", 1),
        ("removal.manifest-deleted", 1),
        ("position.after-save", 1),
    ],
)
def test_a_run_that_is_killed_is_gone_on_with(host: DeadHost, step: str, number: int) -> None:
    mirror = host.mirror
    stop = threading.Event()
    audit = audit_continuously(mirror.auditor(), stop)
    try:
        steps = StepFile(mirror.base / "step")
        mirror.extra_environment.update(steps.environment)
        steps.arm(step, number)
        assert mirror.run(*host.arguments()).returncode == -signal.SIGKILL
        assert [fired for fired, _ in steps.fired] == [step]
        host.run()
    finally:
        stop.set()
        incomplete = audit.finish()
    assert incomplete == []
    assert mirror.published() == host.present
    assert mirror.audit() == []


def test_only_the_journal_is_left(host: DeadHost) -> None:
    shutil.rmtree(host.state / "state")
    # Who it was is not known any more: the rules are those of a mount on another machine.
    (host.state / "journal").rename(host.state.parent / "journal")
    shutil.rmtree(host.state)
    host.state = host.mirror.base / "rest"
    host.state.mkdir(0o700)
    (host.mirror.base / "journal").rename(host.state / "journal")
    elsewhere = host.mirror.base / "rescued"
    host.mirror.datastore.rename(elsewhere)
    host.mirror.datastore = elsewhere
    assert "is the mirror of" in host.refused()
    assert "give --take-over" in host.refused() or "once with --take-over" in host.refused()
    # That it was seen to go was in the state.
    assert "1 snapshots are gone from the datastore, and are held" in host.refused("--take-over")
    host.run("--allow-removals")
    assert host.mirror.published() == host.present
    assert host.mirror.audit() == []


def test_only_the_state_is_left(host: DeadHost) -> None:
    shutil.rmtree(host.state / "journal")
    assert "has no journal" in host.refused("--journal-only")
    # Nobody has seen the one go that is gone: it is held until somebody says that it may.
    told = host.refused()
    assert "1 snapshots are gone from the datastore, and are held in the bucket" in told
    assert set(host.mirror.published()) > set(host.present)
    host.run("--allow-removals")
    assert host.mirror.published() == host.present
    assert host.mirror.audit() == []


def test_a_damaged_journal_is_driven_as_far_as_it_goes(host: DeadHost) -> None:
    file = host.state / "journal" / "data.mdb"
    os.truncate(file, os.path.getsize(file) // 2)
    assert host.mirror.run("replay", "list", str(host.state)).returncode == 1
    done = host.mirror.run(*host.arguments("--allow-removals"))
    assert done.returncode == 0, done.stderr
    assert "What that means" in done.stderr
    assert host.mirror.published() == host.present
    assert host.mirror.audit() == []


def test_a_part_of_the_journal(host: DeadHost) -> None:
    done = host.mirror.run("replay", "list", str(host.state), "--json", "--kind", "manifest", "--path", "ct/*")
    sequence = next(json.loads(line)["sequence"] for line in done.stdout.splitlines() if '"record"' in line)
    pending = host.summary()["pending"]
    other = f"{host.mirror.name}-part"
    host.run("--from", str(sequence), "--journal-only", "--work-dir", str(host.mirror.base / "work"), name=other)
    published = host.mirror.store.access.keys(host.mirror.bucket, f"{other}/.cnt/ct/3/")
    assert f"{other}/.cnt/{host.new[1].path}/index.json.blob" in published
    assert not host.mirror.store.access.keys(host.mirror.bucket, f"{other}/.cnt/vm/2/")
    assert host.summary()["pending"] == pending
    last = host.summary()["records"] + 10_000
    assert f"there is no record {last}" in host.refused("--from", str(last))


def test_a_copy_that_may_only_be_read_stays_as_it_is(host: DeadHost) -> None:
    before = {path: path.read_bytes() for path in host.state.rglob("*") if path.is_file()}
    host.run("--work-dir", str(host.mirror.base / "work"))
    after = {path: path.read_bytes() for path in host.state.rglob("*") if path.is_file()}
    after.pop(host.state / "mount.lock", None)
    before.pop(host.state / "mount.lock", None)
    assert after == before
    assert host.mirror.published() == host.present
    assert host.mirror.audit() == []


def test_what_is_not_to_be_driven_is_refused(host: DeadHost) -> None:
    mirror = host.mirror
    elsewhere = mirror.base / "rescued"
    mirror.datastore.rename(elsewhere)
    assert "Is its disk mounted?" in host.refused()
    mirror.datastore.mkdir()
    assert "is its disk mounted?" in host.refused()
    assert "mount once" not in host.refused()
    mirror.datastore.rmdir()
    elsewhere.rename(mirror.datastore)
    mirror.state, host.state = host.state, host.state
    mirror.mount()
    assert "in use by another mirrorfs" in host.refused()
    assert "in use by another mirrorfs" in host.refused("--work-dir", str(mirror.base / "work"))
    mirror.umount()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_says_how_to_go_on(
    proxied_mirror: MirrorUnderTest, fault_proxy: FaultProxy, number: signal.Signals
) -> None:
    host = DeadHost(proxied_mirror)
    fault_proxy.refuse_connections()
    # Who asks for the first time hears at once that nobody answers.
    assert "give the same command again to go on" in host.refused()
    fault_proxy.accept_connections()
    fault_proxy.server_error("PUT", "*/.chunks/*")
    process = subprocess.Popen(
        [*PROGRAM, *host.arguments()], env=host.mirror.environment(), stderr=subprocess.PIPE, text=True
    )
    assert fault_proxy.wait_until_injected(1, Fault.SERVER_ERROR, "PUT")
    process.send_signal(number)
    _, told = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "Interrupted. What is mirrored stays; give the same command again to go on." in told
    assert "Traceback" not in told
    fault_proxy.clear()
    host.run()
    assert host.mirror.audit() == []


def actions(steps: list[dict[str, Any]]) -> dict[str, str]:
    return {step["name"]: step["action"] for step in steps if step["type"] == "step"}


def test_a_plan_tells_what_a_run_does_and_does_nothing(host: DeadHost) -> None:
    mirror = host.mirror
    before, published = host.traces(), mirror.published()
    *steps, summary = host.plan()
    planned = actions(steps)
    kept, (gone,) = set(published) & set(host.present), set(published) - set(host.present)
    new = set(host.present) - set(published)
    assert {name for name, action in planned.items() if action == "delete"} == {f"{gone}/"}
    assert {f"{path}/" for path in new} <= {name for name, action in planned.items() if action == "send"}
    assert {planned[f"{path}/"] for path in kept} == {"compare"}
    assert planned["ct/3/owner"] == "nothing"
    assert all(step["why"] for step in steps)
    assert summary["notes"] == []
    # Each record that is not dealt with, and nothing twice.
    records = [step["sequence"] for step in steps if step["sequence"] is not None]
    assert sorted(set(records)) == records
    assert len(records) == host.summary()["pending"]
    for options in (("--to", mirror.url), ("--to", f"{mirror.url}-new"), ("--all", "--journal-only")):
        host.plan(*options, *mirror.store_options())
    assert host.traces() == before
    host.run()
    assert mirror.published() == host.present
    after = actions(host.plan("--all", "--to", mirror.url, *mirror.store_options())[:-1])
    assert set(after.values()) <= {"nothing", "leave"}


def test_a_plan_for_a_bucket_that_the_state_does_not_know(host: DeadHost) -> None:
    mirror = host.mirror
    empty = actions(host.plan("--to", f"{mirror.url}-new", *mirror.store_options()))
    assert {empty[f"{path}/"] for path in host.present} == {"send"}
    assert "delete" not in empty.values()
    host.run("--journal-only", "--all", name=f"{mirror.name}-part")
    shutil.rmtree(host.state / "state")
    *steps, summary = host.plan("--to", f"{mirror.url}-part", *mirror.store_options())
    assert summary["notes"] == []
    # What a lost state had put there is compared, not sent again.
    assert {actions(steps)[f"{path}/"] for path in host.present} == {"compare"}
    *_, summary = host.plan()
    assert "what the bucket holds is not known" in summary["notes"][0]
    elsewhere = mirror.base / "rescued"
    mirror.datastore.rename(elsewhere)
    mirror.datastore = elsewhere
    *_, summary = host.plan("--to", mirror.url, *mirror.store_options())
    assert "'replay run' would be refused" in summary["notes"][0]


def test_a_plan_names_what_cannot_be_mirrored(host: DeadHost) -> None:
    manifest = host.mirror.datastore / host.new[0].path / "index.json.blob"
    manifest.write_bytes(b"damaged")
    planned = {step["name"]: step for step in host.plan() if step["type"] == "step"}
    step = planned[f"{host.new[0].path}/"]
    assert step["action"] == "none"
    assert "manifest" in step["why"]
    told = host.refused()
    assert f"{host.new[0].path}: {step['why']}" in told


@pytest.mark.timeout(140)
def test_a_plan_tells_where_names_of_chunks_are_compared(host: DeadHost) -> None:
    """As a mount has it done that may not have heard of all of their changes."""
    journal = JournalWriter(str(host.state / "journal"))
    journal.append(b".chunks")
    journal.close()
    planned = {step["name"]: step for step in host.plan() if step["type"] == "step"}
    assert planned[".chunks"]["action"] == "compare"
    host.run()
    assert host.mirror.published() == host.present
