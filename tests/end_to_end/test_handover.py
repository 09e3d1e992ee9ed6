"""`mirrorfs handover` and `takeback`: a bucket goes to a PBS and comes back, whatever interrupts that."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mirrorfs.cli import handover as cli_handover
from mirrorfs.cli import takeback as cli_takeback
from mirrorfs.steps import STEPS
from tests.end_to_end.mirrors import MirrorUnderTest
from tests.harness.backup import WrittenSnapshot
from tests.harness.content import BackupPlan, BlobPlan, ImagePlan
from tests.harness.scan import compare_datastores
from tests.harness.steps import StepFile
from tests.harness.writer import DatastoreWriter
from tests.recovery.mirror import objects_of

TINY = BackupPlan(images=(ImagePlan("drive-scsi0.img", 3 * 65536, 65536),), blobs=(BlobPlan("qemu-server.conf", 300),))


class Pbs:
    """What a PBS 4 does to the bucket that it has attached, by plain requests."""

    def __init__(self, mirror: MirrorUnderTest) -> None:
        self._mirror = mirror
        self._client = mirror.store.access.client()

    def attach(self) -> None:
        """As it does with --reuse-datastore true; refused where `.in-use` names another."""
        assert self.in_use() is None
        self.put({".in-use": json.dumps({"hostname": "pbs4"}).encode()})

    def in_use(self) -> str | None:
        body = self.read(".in-use")
        return None if body is None else str(json.loads(body)["hostname"])

    def read(self, key: str) -> bytes | None:
        try:
            answer = self._client.get_object(Bucket=self._mirror.bucket, Key=f"{self._mirror.name}/{key}")
        except self._client.exceptions.NoSuchKey:
            return None
        return answer["Body"].read()

    def put(self, objects: dict[str, bytes]) -> None:
        for key, body in objects.items():
            self._client.put_object(Bucket=self._mirror.bucket, Key=f"{self._mirror.name}/{key}", Body=body)

    def delete(self, keys: list[str]) -> None:
        for key in keys:
            self._client.delete_object(Bucket=self._mirror.bucket, Key=f"{self._mirror.name}/{key}")

    def backup(self, base: Path, group: str) -> WrittenSnapshot:
        """A backup of its own, and what it consists of."""
        with DatastoreWriter(base / "elsewhere", seed=77) as writer:
            writer.create(chunk_directories="when needed")
            written = writer.backup(group, plan=TINY)
        self.put(objects_of(base / "elsewhere"))
        return written

    def forget(self, snapshot: str) -> None:
        self.delete([key for key in self.listing() if key.startswith(f".cnt/{snapshot}/")])

    def collect(self, chunks: set[str]) -> None:
        self.delete([f".chunks/{digest[:4]}/{digest}" for digest in chunks])

    def remove_datastore(self) -> None:
        self.delete([".in-use"])

    def listing(self) -> list[str]:
        return [
            key.removeprefix(f"{self._mirror.name}/")
            for key in self._mirror.store.access.keys(self._mirror.bucket, f"{self._mirror.name}/")
        ]


def handover(mirror: MirrorUnderTest, *options: str) -> list[str]:
    return ["handover", mirror.url, *mirror.store_options(), *options]


def takeback(mirror: MirrorUnderTest, *options: str) -> list[str]:
    return ["takeback", mirror.url, *mirror.store_options(), *options]


def refusal(mirror: MirrorUnderTest, arguments: list[str]) -> str:
    done = mirror.run(*arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    error = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(error) == 1, done.stderr
    return error[0]


@pytest.fixture
def filled(mirror: MirrorUnderTest) -> tuple[MirrorUnderTest, list[WrittenSnapshot]]:
    """A mirror with three snapshots, unmounted."""
    mirror.mount()
    with mirror.writer() as writer:
        written = [writer.backup("vm/1", plan=TINY), writer.backup("vm/1", plan=TINY), writer.backup("ct/2", plan=TINY)]
    mirror.succeed("umount", "--drain", str(mirror.datastore))
    return mirror, written


def test_there_and_back(filled: tuple[MirrorUnderTest, list[WrittenSnapshot]], base: Path) -> None:
    mirror, (first, second, third) = filled
    pbs = Pbs(mirror)
    said = mirror.succeed(*handover(mirror))
    assert f"{mirror.url} is handed over: 3 snapshots, all of them good" in said
    pbs.attach()

    assert "was handed over to a Proxmox Backup Server" in refusal(mirror, mirror.mount_arguments())
    assert "is in use by pbs4" in refusal(mirror, takeback(mirror))
    assert "pbs4 has it now" in mirror.succeed(*handover(mirror))

    made = pbs.backup(base, "vm/7")
    pbs.forget(third.path)
    pbs.collect(set(third.chunks) - set(first.chunks) - set(second.chunks))
    pbs.remove_datastore()

    before = pbs.listing()
    told = mirror.succeed(*takeback(mirror, "--dry-run"))
    assert pbs.listing() == before
    assert "was handed over" in refusal(mirror, mirror.mount_arguments())
    assert told.splitlines()[-1] == "Nothing was changed."
    told = mirror.succeed(*takeback(mirror))
    assert f"2 snapshots are the same at {mirror.url}" in told
    assert "1 snapshots are in the bucket alone" in told
    assert f"\n  {made.path}\n" in told
    assert f"1 snapshots are in the datastore alone: the next mount sends them.\n  {third.path}\n" in told
    assert pbs.listing() == before

    # The command that it tells, without --take-over.
    assert f"mirrorfs mount {mirror.datastore} --to {mirror.url}\n" in told
    mirror.mount()
    mirror.wait()
    assert mirror.published() == sorted([first.path, second.path, third.path, made.path])
    assert made.path in json.dumps(mirror.status()["retention"]["held"])
    assert mirror.auditor().audit_bucket() == []
    # What the PBS has made comes into the datastore from there, and is held no more.
    mirror.succeed(
        "restore", mirror.url, "--into", str(mirror.datastore), "--snapshot", made.path, *mirror.store_options()
    )
    assert compare_datastores(base / "elsewhere", mirror.datastore, only=frozenset({made.path})).differences == ()
    mirror.wait()
    assert mirror.audit() == []


def test_a_mounted_mirror_is_stopped_when_it_is_asked_for(mirror: MirrorUnderTest) -> None:
    mirror.mount()
    with mirror.writer() as writer:
        written = writer.backup("vm/1", plan=TINY)
        assert "is mounted, and mirrored to" in refusal(mirror, handover(mirror))
        assert Pbs(mirror).in_use() is not None
        said = mirror.succeed(*handover(mirror, "--stop"))
        assert "is handed over: 1 snapshots" in said
        assert Pbs(mirror).in_use() is None
        before = Pbs(mirror).listing()
        # The mount goes on, and nothing of it reaches the bucket.
        writer.backup("vm/1", plan=TINY)
        done = mirror.run("wait", str(mirror.datastore))
        assert done.returncode == 1
        assert "was handed over to a Proxmox Backup Server" in done.stderr
        assert mirror.published() == [written.path]
        assert Pbs(mirror).listing() == before
        # Once more, with the mount still there.
        assert "is handed over" in mirror.succeed(*handover(mirror, "--stop"))
    mirror.umount()
    mirror.succeed(*takeback(mirror))
    mirror.mount()
    mirror.wait()
    assert mirror.audit() == []


def test_take_over_takes_it_back_too(filled: tuple[MirrorUnderTest, list[WrittenSnapshot]]) -> None:
    mirror, _ = filled
    mirror.succeed(*handover(mirror))
    mirror.mount("--take-over")
    mirror.wait()
    assert mirror.audit() == []
    mirror.umount()
    # The mark is gone with that.
    mirror.mount()
    mirror.wait()


def test_what_is_ours_goes_if_asked_and_the_claim_stays(mirror: MirrorUnderTest) -> None:
    mirror.mount("--retention-delete-after", "30d")
    with mirror.writer() as writer:
        writer.backup("vm/1", plan=TINY)
        gone = writer.backup("vm/1", plan=TINY)
        mirror.wait()
        writer.forget(gone.name)
    mirror.succeed("umount", "--drain", str(mirror.datastore))
    pbs = Pbs(mirror)
    # What the mirror was killed over.
    pbs.put({".mirrorfs/staging/x": b"?"})
    assert f".mirrorfs/deleted/{gone.path}/index.json.blob" in pbs.listing()
    said = mirror.succeed(*handover(mirror, "--dry-run"))
    assert "could be handed over" in said
    assert "1 deleted snapshots are kept there" in said
    assert pbs.in_use() is not None
    assert "1 deleted snapshots are kept there" in mirror.succeed(*handover(mirror))
    assert f".mirrorfs/deleted/{gone.path}/index.json.blob" in pbs.listing()
    # It may be asked for later, too.
    assert "objects of mirrorfs' own are removed" in mirror.succeed(*handover(mirror, "--remove-own"))
    assert [key for key in pbs.listing() if key.startswith(".mirrorfs/")] == [".mirrorfs/claim.json"]


def test_killed_at_each_step_and_given_again(filled: tuple[MirrorUnderTest, list[WrittenSnapshot]], base: Path) -> None:
    mirror, _ = filled
    pbs, file, published = Pbs(mirror), StepFile(base / "step"), mirror.published()
    mirror.extra_environment |= file.environment
    pbs.put({".mirrorfs/staging/x": b"?"})
    commands = {"handover.": handover(mirror, "--remove-own"), "takeback.": takeback(mirror)}
    for room, command in commands.items():
        steps = [step for step in STEPS if step.startswith(room)]
        # In their order: each time the command goes on where it was killed.
        for step in steps:
            file.arm(step)
            assert mirror.run(*command).returncode == -9, step
            assert file.fired[-1][0] == step
            assert mirror.auditor().audit_bucket() == []
        mirror.succeed(*command)
        if room == "handover.":
            assert pbs.in_use() is None
            assert [key for key in pbs.listing() if key.startswith(".mirrorfs/")] == [".mirrorfs/claim.json"]
            assert "was handed over" in refusal(mirror, mirror.mount_arguments())
    mirror.mount()
    mirror.wait()
    assert mirror.audit() == []
    assert mirror.published() == published


def test_it_is_refused(filled: tuple[MirrorUnderTest, list[WrittenSnapshot]], base: Path) -> None:
    mirror, (first, _, _) = filled
    pbs = Pbs(mirror)
    assert "was not handed over" in refusal(mirror, takeback(mirror))
    elsewhere = json.loads(pbs.read(".mirrorfs/claim.json") or b"")
    pbs.put({".mirrorfs/claim.json": json.dumps({**elsewhere, "hostname": "elsewhere"}).encode()})
    assert "on elsewhere, and that was at work 0 minutes ago" in refusal(mirror, handover(mirror))
    assert "is handed over" in mirror.succeed(*handover(mirror, "--stop"))
    assert "which is not here: give the datastore" in refusal(mirror, takeback(mirror))
    assert "holds no datastore" in refusal(mirror, takeback(mirror, "--datastore", str(base)))
    assert "cannot open the datastore" in refusal(mirror, takeback(mirror, "--datastore", str(base / "x")))
    assert "--take-over" in mirror.succeed(*takeback(mirror, "--datastore", str(mirror.datastore)))
    pbs.put({".mirrorfs/claim.json": json.dumps(elsewhere).encode()})

    pbs.put({".in-use": b'{"hostname": "pbs4"}'})
    assert "is in use by pbs4 already" in refusal(mirror, handover(mirror))
    assert pbs.in_use() == "pbs4"
    mirror.succeed(*takeback(mirror, "--overwrite-in-use"))
    mirror.mount()
    mirror.wait()
    mirror.umount()
    assert mirror.audit() == []

    pbs.collect({next(iter(first.chunks))})
    assert "Not everything at" in refusal(mirror, handover(mirror))
    assert str(pbs.in_use()).startswith(f"{elsewhere['hostname']} (mirrorfs of")
    assert "of them damaged" in mirror.succeed(*handover(mirror, "--despite-damage"))


def test_names_that_no_pbs_can_attach(mirror: MirrorUnderTest) -> None:
    for name in ("ab", "a/b", "n" * 33):
        url = f"s3://{mirror.bucket}/{name}"
        said = refusal(mirror, ["handover", url, *mirror.store_options()])
        assert "No Proxmox Backup Server can open" in said
    mirror.url = f"s3://{mirror.bucket}/{'n' * 33}"
    done = mirror.run(*mirror.mount_arguments())
    assert done.returncode == 0
    assert "the name in the bucket has 33 characters" in done.stderr


def test_nothing_there_and_bad_usage(mirror: MirrorUnderTest) -> None:
    nothing = [f"s3://{mirror.bucket}/nothing", *mirror.store_options()]
    assert "There is no datastore" in refusal(mirror, ["handover", *nothing])
    assert "No mirror has claimed" in refusal(mirror, ["takeback", *nothing])
    absent = ["s3://no-such-bucket-at-all/store1", *mirror.store_options()]
    assert "NoSuchBucket" in refusal(mirror, ["handover", *absent])
    for command in ("handover", "takeback"):
        done = mirror.run(command, "s3://bucket")
        assert done.returncode == 2
        assert "s3://BUCKET/NAME" in done.stderr


def test_the_commands_that_it_prints_are_words_of_a_shell(
    filled: tuple[MirrorUnderTest, list[WrittenSnapshot]],
) -> None:
    mirror, _ = filled
    said = mirror.succeed(*handover(mirror, "--dry-run"))
    lines = [shlex.split(line) for line in said.splitlines() if line.startswith("  proxmox-backup-manager")]
    assert [line[1:4] for line in lines] == [
        ["s3", "endpoint", "create"], ["s3", "check", mirror.name], ["datastore", "create", mirror.name],
    ]  # fmt: skip
    assert "speaks https only" in said
    for secret in mirror.store.environment().values():
        if re.fullmatch(r"[\w+/]{16,}", secret):
            assert secret not in said


@pytest.mark.parametrize("command", [cli_handover.command, cli_takeback.command])
def test_help_has_examples_and_exit_codes(command: click.Command) -> None:
    said = CliRunner().invoke(command, ["--help"]).output
    assert "Examples:" in said
    assert "Exit codes:" in said
