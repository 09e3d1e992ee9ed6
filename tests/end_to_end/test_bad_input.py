"""What an administrator gets wrong, or finds broken: one clear sentence, the right exit code, nothing half done."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import lmdb
import pytest
from click.testing import CliRunner

from mirrorfs.cli.main import main
from tests.end_to_end.mirrors import PROGRAM, MirrorUnderTest
from tests.end_to_end.test_crashes import TINY
from tests.harness.writer import DatastoreWriter
from tests.stores.fault_proxy import FaultProxy
from tests.stores.seaweedfs import StoreServer

_MARK = "MIRRORFS_TEST_MIRROR"
_NOBODY = 65534
Finished = subprocess.CompletedProcess[str]
# Path, size, mode, owner and modification time of everything.
Inventory = dict[str, tuple[int, int, int, int]]


@pytest.fixture
def filled(mirror: MirrorUnderTest) -> MirrorUnderTest:
    """A mirror, not mounted, of a datastore with one snapshot."""
    back_up(mirror.datastore, "vm/1")
    mirror.extra_environment[_MARK] = str(mirror.base)
    return mirror


@pytest.fixture
def untouched(filled: MirrorUnderTest) -> Iterator[MirrorUnderTest]:
    """`filled`, with a check that in the end nothing is mounted, no process is left and no file has changed."""
    before = inventory(filled.datastore)
    yield filled
    assert mounts_in(filled.base) == []
    assert processes_of(filled) == []
    assert inventory(filled.datastore) == before


def back_up(datastore: Path, group: str) -> str:
    with DatastoreWriter(datastore, seed=3, default_plan=TINY) as writer:
        return writer.backup(group).path


def inventory(datastore: Path) -> Inventory:
    found: Inventory = {}
    for directory, _, names in os.walk(datastore):
        for path in (Path(directory), *(Path(directory, name) for name in names)):
            status = path.lstat()
            size = 0 if path.is_dir() else status.st_size
            found[str(path)] = (size, status.st_mode, status.st_uid, status.st_mtime_ns)
    return found


def mounts_in(base: Path) -> list[str]:
    lines = Path("/proc/mounts").read_text().splitlines()
    return [line for line in lines if line.split()[1].startswith(f"{base}/")]


def processes_of(mirror: MirrorUnderTest) -> list[str]:
    mark = f"{_MARK}={mirror.base}".encode()
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and mark in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_text().replace("\0", " "))
    return found


def check_refused(done: Finished, *words: str, code: int = 1) -> None:
    """The one or two lines of a failure, in which each of `words` stands."""
    assert done.returncode == code, (done.stdout, done.stderr)
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert lines[0].startswith("Error: "), done.stderr
    assert 1 <= len(lines) <= 2, done.stderr
    assert "Errno" not in done.stderr
    for word in words:
        assert word in done.stderr, (word, done.stderr)


def eventually(holds: Callable[[], bool], seconds: float = 90.0) -> None:
    """Wait for what another process is to do by itself, and tells nobody."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


# --- the datastore and the mount point


def test_no_directory_and_no_datastore(untouched: MirrorUnderTest) -> None:
    file = untouched.base / "file"
    file.touch()
    arguments = untouched.mount_arguments()
    for path, words in (
        (untouched.base / "no such", ("there is no directory", "mounted")),
        (file, ("not a directory",)),
    ):
        done = untouched.run("mount", str(path), *arguments[2:])
        check_refused(done, str(path), *words)
    for path, words in ((untouched.base / "no such", ("there is no directory",)), (file, ("not a directory",))):
        check_refused(untouched.run(*untouched.mount_arguments("--mountpoint", str(path))), str(path), *words)
    assert not untouched.state.exists()


def test_a_mount_point_or_state_directory_in_the_wrong_place(untouched: MirrorUnderTest) -> None:
    inside = untouched.datastore / "vm"
    check_refused(untouched.run(*untouched.mount_arguments("--mountpoint", str(inside))), str(inside), "inside")
    state = str(untouched.datastore / "state")
    to = ("--to", untouched.url, *untouched.store_options())
    done = untouched.run("mount", str(untouched.datastore), *to, "--state-dir", state)
    check_refused(done, state, "inside", "--state-dir")


def test_already_mounted(filled: MirrorUnderTest) -> None:
    base, datastore = filled.base, str(filled.datastore)
    for name in ("mountpoint", "elsewhere"):
        (base / name).mkdir()
    other_state = ("--state-dir", str(base / "other state"))
    over, beside = (), ("--mountpoint", str(base / "mountpoint"))
    for first in (over, beside):
        filled.mount(*first)
        before = mounts_in(base)
        for second in (over, beside, (*other_state, "--mountpoint", str(base / "elsewhere"))):
            done = filled.run(*filled.mount_arguments(*second))
            check_refused(done, str(base), "already mounted", "mirrorfs status")
        assert mounts_in(base) == before
        assert not (base / "other state").exists()
        # By the datastore's name, wherever it is mounted.
        filled.wait()
        assert filled.status()["datastore"] == datastore
        assert datastore in filled.succeed("status")
        filled.umount()
    assert mounts_in(base) == []
    assert filled.audit() == []


def test_a_state_directory_in_use(filled: MirrorUnderTest) -> None:
    filled.mount()
    other = filled.base / "other"
    other.mkdir()
    done = filled.run("mount", str(other), *filled.mount_arguments()[2:])
    check_refused(done, str(filled.state), f"in use by another mirrorfs (process {filled.mount_pid()})")
    assert sum("fuse.mirrorfs" in mount for mount in mounts_in(filled.base)) == 1
    filled.umount()


def test_unknown_mount_options(untouched: MirrorUnderTest) -> None:
    done = untouched.run(*untouched.mount_arguments("-o", "noexec,frobnicate"))
    check_refused(done, str(untouched.datastore), "-o noexec,frobnicate")
    assert "frobnicate" in untouched.log


@pytest.mark.parametrize("command", ["mount", "umount", "status", "wait", "heal"])
def test_not_root(untouched: MirrorUnderTest, command: str) -> None:
    arguments = untouched.mount_arguments() if command == "mount" else [command, str(untouched.datastore)]
    os.chmod(untouched.base, 0o755)
    done = subprocess.run(
        [*PROGRAM, *arguments],
        env=untouched.environment(),
        user=_NOBODY,
        group=_NOBODY,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    check_refused(done, "only root can", "sudo")
    assert not untouched.state.exists()


@pytest.mark.xdist_group("mount-namespaces")
def test_no_fuse_device(untouched: MirrorUnderTest) -> None:
    script = """
        set -e
        mkdir "$0"
        mount -t tmpfs none "$0"
        for name in null urandom; do touch "$0/$name"; mount --bind "/dev/$name" "$0/$name"; done
        mount --rbind "$0" /dev
        exec "$@"
    """
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, str(untouched.base / "dev"), *PROGRAM, *untouched.mount_arguments()],
        env=untouched.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    check_refused(done, "/dev/fuse", "modprobe fuse")


# --- usage


@pytest.mark.parametrize(
    "url",
    [
        "",
        "bucket/name",
        "http://bucket/name",
        "S3://bucket/name",
        "s3://",
        "s3:///name",
        "s3://bucket",
        "s3://bucket/",
        "s3://bucket//name",
        "s3://bucket/../name",
        "s3://bucket/na me",
        "s3://127.0.0.1/name",
        f"s3://bucket/{'n' * 300}",
    ],
)
def test_malformed_url(tmp_path: Path, url: str) -> None:
    _check_usage(["mount", str(tmp_path), "--to", url], url)


@pytest.mark.parametrize(
    "endpoint", ["", "store.example.com:9000", "ftp://store.example.com", "http://", "http://a:99999", "http://a b/"]
)
def test_malformed_endpoint(tmp_path: Path, endpoint: str) -> None:
    arguments = ["mount", str(tmp_path), "--to", "s3://bucket/name", "--endpoint-url", endpoint]
    _check_usage(arguments, "https://HOST[:PORT]")


def test_a_secret_in_the_endpoint_is_not_repeated(tmp_path: Path) -> None:
    endpoint = "https://AKIAEXAMPLE:verysecret@store.example.com"
    output = _check_usage(
        ["mount", str(tmp_path), "--to", "s3://bucket/name", "--endpoint-url", endpoint], "must not hold credentials"
    )
    assert "verysecret" not in output


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["frobnicate"], "frobnicate"),
        (["mount"], "DATASTORE"),
        (["mount", "/x"], "--to"),
        (["mount", "/x", "--to", "s3://b-b/n", "--frobnicate"], "--frobnicate"),
        (["mount", "/x", "--to", "s3://b-b/n", "--parallel", "0"], "--parallel"),
        (["mount", "/x", "--to", "s3://b-b/n", "--retry-ceiling", "soon"], "--retry-ceiling"),
        (["wait", "/x", "--timeout", "-1"], "--timeout"),
        (["umount"], "DATASTORE"),
    ],
)
def test_wrong_usage(arguments: list[str], word: str) -> None:
    _check_usage(arguments, word)


def _check_usage(arguments: list[str], word: str) -> str:
    result = CliRunner().invoke(main, arguments, prog_name="mirrorfs")
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    error = result.stderr.strip().splitlines()[-1]
    assert error.startswith("Error: ")
    assert word in error, error
    return result.output


def test_usage_errors_of_the_real_program(untouched: MirrorUnderTest) -> None:
    for arguments in (["frobnicate"], ["mount", str(untouched.datastore), "--to", "s3://bucket"]):
        done = untouched.run(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.strip().splitlines()[-1].startswith("Error: ")


# --- the store


def _no_bucket(mirror: MirrorUnderTest) -> None:
    mirror.bucket = "not-made-yet"


def _wrong_key(mirror: MirrorUnderTest) -> None:
    mirror.extra_environment["AWS_ACCESS_KEY_ID"] = "AKIAWRONG"


def _wrong_secret(mirror: MirrorUnderTest) -> None:
    mirror.extra_environment["AWS_SECRET_ACCESS_KEY"] = "wrong-secret"


def _nobody_listens(mirror: MirrorUnderTest) -> None:
    mirror.endpoint_url = "http://127.0.0.1:1"


def _no_credentials(mirror: MirrorUnderTest) -> None:
    mirror.extra_environment |= {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}


@pytest.mark.parametrize(
    ("spoil", "cause", "hint", "code"),
    [
        (_no_bucket, "NoSuchBucket", "create the bucket", 1),
        (_wrong_key, "InvalidAccessKeyId", "Check the access key", 1),
        (_wrong_secret, "SignatureDoesNotMatch", "Check the access key", 1),
        # That may be over soon, without anybody doing anything.
        (_nobody_listens, "Connection refused", "whether the store runs", 0),
        (_no_credentials, "Unable to locate credentials", "AWS_ACCESS_KEY_ID", 1),
    ],
)
def test_a_store_that_cannot_be_used(
    filled: MirrorUnderTest, spoil: Callable[[MirrorUnderTest], None], cause: str, hint: str, code: int
) -> None:
    spoil(filled)
    refused = filled.run(*filled.mount_arguments("--require-store"))
    check_refused(refused, filled.bucket, filled.endpoint_url, cause, hint, "--require-store")
    assert (mounts_in(filled.base), processes_of(filled)) == ([], [])
    done = filled.run(*filled.mount_arguments())
    assert done.returncode == 0
    assert len(done.stderr.strip().splitlines()) == 1
    for words in ("Replication waits: ", filled.bucket, cause, hint):
        assert words in done.stderr
    assert back_up(filled.datastore, "vm/2")
    eventually(lambda: not filled.status()["store"]["up"])
    assert cause in filled.status()["store"]["last_error"]
    shown = filled.run("status", str(filled.datastore))
    assert shown.returncode == code
    assert cause in shown.stdout
    late = filled.run("wait", str(filled.datastore), "--timeout", "0.5")
    check_refused(late, "not everything is published after 0.5 s", cause, hint)
    for secret in (filled.store.secret_key, "wrong-secret"):
        assert secret not in done.stderr + shown.stdout + late.stderr + filled.log
    filled.umount()
    assert processes_of(filled) == []


def test_it_goes_on_by_itself_when_the_bucket_is_made(filled: MirrorUnderTest) -> None:
    filled.bucket += "-later"
    assert "Replication waits" in filled.run(*filled.mount_arguments()).stderr
    made = back_up(filled.datastore, "vm/2")
    filled.store.create_bucket(filled.bucket)
    filled.wait()
    assert made in filled.published()
    assert filled.audit() == []


def test_it_goes_on_by_itself_when_the_store_is_started(
    proxied_mirror: MirrorUnderTest, fault_proxy: FaultProxy
) -> None:
    mirror = proxied_mirror
    fault_proxy.refuse_connections()
    assert "Replication waits" in mirror.run(*mirror.mount_arguments()).stderr
    made = back_up(mirror.datastore, "vm/2")
    fault_proxy.accept_connections()
    mirror.wait()
    assert mirror.published() == [made]
    assert mirror.audit() == []


def test_a_store_that_does_not_answer_at_all(proxied_mirror: MirrorUnderTest, fault_proxy: FaultProxy) -> None:
    mirror = proxied_mirror
    fault_proxy.hold()
    done = mirror.run(*mirror.mount_arguments())
    assert done.returncode == 0
    assert done.stderr.startswith(
        f"Replication waits: bucket {mirror.bucket} at {mirror.endpoint_url} has not answered"
    )
    assert "will be mirrored" in done.stdout
    shown = mirror.succeed("status", str(mirror.datastore))
    assert f"bucket {mirror.bucket} at {mirror.endpoint_url} has not answered yet" in shown
    made = back_up(mirror.datastore, "vm/2")
    fault_proxy.clear()
    mirror.wait()
    assert mirror.published() == [made]
    assert mirror.audit() == []


@pytest.mark.parametrize("kind", ["corrupt", "answer"])
def test_it_goes_on_by_itself_when_what_stands_between_has_been_repaired(
    proxied_mirror: MirrorUnderTest, fault_proxy: FaultProxy, kind: str
) -> None:
    """A refusal of all requests, met before the mirror runs, is no reason to give up for ever."""
    mirror = proxied_mirror
    if kind == "corrupt":
        fault_proxy.corrupt("PUT")
    else:
        fault_proxy.answer(400, "InvalidRequest", "PUT", "*/probe*")
    mirror.run(*mirror.mount_arguments())
    assert mounts_in(mirror.base)
    made = back_up(mirror.datastore, "vm/2")
    if kind == "answer":
        eventually(lambda: "InvalidRequest" in (mirror.status()["store"]["last_error"] or ""))
    fault_proxy.clear()
    eventually(lambda: made in mirror.published())
    assert mirror.run("status", str(mirror.datastore)).returncode == 0
    mirror.wait()
    assert mirror.audit() == []
    assert "Traceback" not in mirror.log


def test_interrupting_a_mount_that_waits_for_the_store(
    proxied_mirror: MirrorUnderTest, fault_proxy: FaultProxy
) -> None:
    mirror = proxied_mirror
    mirror.extra_environment[_MARK] = str(mirror.base)
    asked = fault_proxy.hold()
    with subprocess.Popen(
        [*PROGRAM, *mirror.mount_arguments()], env=mirror.environment(), stderr=subprocess.PIPE
    ) as process:
        assert asked.reached.wait(60)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 1
        assert process.stderr is not None
        assert process.stderr.read().strip() == b"Aborted!"
    assert (mounts_in(mirror.base), processes_of(mirror)) == ([], [])
    fault_proxy.clear()
    mirror.mount()


# --- whose prefix, whose state


def test_a_prefix_that_is_the_mirror_of_another_datastore(filled: MirrorUnderTest) -> None:
    filled.mount()
    filled.wait()
    filled.umount()
    (filled.base / "other").mkdir()
    other = MirrorUnderTest(filled.base / "other", filled.store, filled.bucket, filled.endpoint_url, filled.name)
    other.create()
    try:
        before = inventory(other.datastore)
        refused = other.run(*other.mount_arguments())
        check_refused(refused, other.url, f"is the mirror of {filled.datastore}", os.uname().nodename, "--take-over")
        assert mounts_in(filled.base) == []
        assert inventory(other.datastore) == before
        assert filled.audit() == []
        # To write here is one thing, to remove what the other has put here is another.
        other.mount("--take-over")
        made = back_up(other.datastore, "vm/2")
        other.wait()
        assert len(filled.published()) == 2
        other.umount()
        # Not even this is an answer: it may stand in a unit for ever.
        other.mount("--allow-removals")
        other.wait()
        assert len(filled.published()) == 2
        assert [removal["reason"] for removal in other.status()["retention"]["held"]] == ["stranger"]
        other.approve_removals()
        other.wait()
        assert other.published() == [made]
        assert other.audit() == []
        other.umount()
        # From now on it is the other's, without being asked again.
        other.mount()
        other.umount()
        check_refused(filled.run(*filled.mount_arguments()), f"is the mirror of {other.datastore}", "--take-over")
    finally:
        other.tear_down()


def test_a_prefix_in_use_by_a_proxmox_backup_server(filled: MirrorUnderTest) -> None:
    client, key = filled.store.access.client(), f"{filled.name}/.in-use"
    client.put_object(Bucket=filled.bucket, Key=key, Body=json.dumps({"hostname": "pbs-7"}).encode())
    check_refused(filled.run(*filled.mount_arguments()), filled.url, "pbs-7", ".in-use", "--take-over")
    assert (mounts_in(filled.base), processes_of(filled)) == ([], [])
    assert filled.published() == []
    filled.mount("--take-over")
    filled.wait()
    filled.umount()
    filled.mount()
    filled.umount()
    client.put_object(Bucket=filled.bucket, Key=key, Body=json.dumps({"hostname": "pbs-8"}).encode())
    check_refused(filled.run(*filled.mount_arguments()), "pbs-8")
    client.put_object(Bucket=filled.bucket, Key=key, Body=b"[")
    check_refused(filled.run(*filled.mount_arguments()), "of unknown name")


def _is_in_status(mirror: MirrorUnderTest, what: str) -> bool:
    return what in mirror.run("status", str(mirror.datastore)).stdout


def test_a_claim_that_nobody_can_read(untouched: MirrorUnderTest) -> None:
    key = f"{untouched.name}/.mirrorfs/claim.json"
    for body, what, code in (
        (b'{"mirror_id": "x", "of_tomorrow": 1}', "not a claim", 1),
        (b"\xff\xfe", "not a claim", 1),
        # Perhaps not the store's own answer, and over soon.
        (b"<html>log in</html>", "a portal", 0),
    ):
        untouched.store.access.client().put_object(Bucket=untouched.bucket, Key=key, Body=body)
        # It may be another's word, or a newer one: the mount comes up, and says what replication waits for.
        done = untouched.run(*untouched.mount_arguments())
        assert done.returncode == 0, done.stderr
        assert key in done.stderr
        assert what in done.stderr
        assert "delete" not in done.stderr
        eventually(partial(_is_in_status, untouched, what))
        assert untouched.run("status", str(untouched.datastore)).returncode == code
        found = untouched.store.access.client().get_object(Bucket=untouched.bucket, Key=key)["Body"].read()
        assert found == body
        untouched.umount()


def test_a_lost_state_directory_is_no_reason_to_refuse(filled: MirrorUnderTest) -> None:
    filled.mount()
    filled.wait()
    filled.umount()
    shutil.rmtree(filled.state)
    filled.mount()
    filled.wait()
    assert filled.audit() == []


def test_a_state_directory_of_something_else(filled: MirrorUnderTest) -> None:
    filled.mount()
    filled.umount()
    other = filled.base / "other"
    other.mkdir()
    arguments = filled.mount_arguments()
    check_refused(filled.run("mount", str(other), *arguments[2:]), str(filled.datastore), str(other), "--state-dir")
    own_name, filled.name = filled.name, "store2"
    check_refused(filled.run(*filled.mount_arguments()), f"/{own_name}", "/store2", "--state-dir")
    assert mounts_in(filled.base) == []


def test_a_state_directory_that_cannot_be_used(untouched: MirrorUnderTest) -> None:
    state = untouched.state
    state.touch()
    check_refused(untouched.run(*untouched.mount_arguments()), str(state), "not a directory")
    state.unlink()
    state.mkdir(mode=0o755)
    check_refused(untouched.run(*untouched.mount_arguments()), f"chmod 700 {state}")
    os.chmod(state, 0o700)
    os.chown(state, _NOBODY, _NOBODY)
    check_refused(untouched.run(*untouched.mount_arguments()), str(state), "65534")
    os.chown(state, 0, 0)
    for name in ("state", "journal"):
        (state / name).touch()
        check_refused(untouched.run(*untouched.mount_arguments()), str(state / name))
        (state / name).unlink()


def test_a_corrupt_state_is_set_aside_and_rebuilt(filled: MirrorUnderTest) -> None:
    filled.mount()
    filled.wait()
    filled.umount()
    data = filled.state / "state" / "data.mdb"
    good = data.read_bytes()
    for garbage in (b"garbage" * 10_000, b"short", good[:5000], bytes(len(good))):
        data.write_bytes(garbage)
        filled.mount()
        filled.wait()
        assert filled.audit() == []
        filled.umount()
        assert f"{data.parent} is damaged" in filled.log
        assert list(filled.state.glob("state.damaged-*")), "the damaged state is kept beside the new one"


def test_a_newer_state(filled: MirrorUnderTest) -> None:
    filled.mount()
    filled.wait()
    filled.umount()
    before = inventory(filled.datastore)
    for name in ("state", "journal"):
        with _format_of(filled.state / name, b"9"):
            refused = filled.run(*filled.mount_arguments())
            check_refused(refused, str(filled.state / name), "format 9", "install the newer mirrorfs")
    assert (mounts_in(filled.base), processes_of(filled)) == ([], [])
    assert inventory(filled.datastore) == before
    filled.mount()
    filled.wait()
    assert filled.audit() == []


@contextlib.contextmanager
def _format_of(directory: Path, version: bytes) -> Iterator[None]:
    before = _exchange_format(directory, version)
    yield
    _exchange_format(directory, before)


def _exchange_format(directory: Path, version: bytes) -> bytes:
    with lmdb.open(str(directory), max_dbs=16) as environment:
        database = environment.open_db(b"format")
        with environment.begin(write=True, db=database) as transaction:
            before: bytes | None = transaction.replace(b"format", version)
    assert before is not None
    return before


def test_a_state_whose_making_was_interrupted(filled: MirrorUnderTest) -> None:
    state = filled.state / "state"
    state.mkdir(parents=True, mode=0o700)
    os.chmod(filled.state, 0o700)
    for make in (_nothing, _empty_file, _empty_environment, _format_only):
        make(state)
        filled.mount()
        filled.umount()
        shutil.rmtree(state)
        state.mkdir()


def _nothing(directory: Path) -> None:
    assert list(directory.iterdir()) == []


def _empty_file(directory: Path) -> None:
    (directory / "data.mdb").touch()


def _empty_environment(directory: Path) -> None:
    lmdb.open(str(directory), max_dbs=16).close()


def _format_only(directory: Path) -> None:
    with lmdb.open(str(directory), max_dbs=16) as environment:
        database = environment.open_db(b"format")
        with environment.begin(write=True, db=database) as transaction:
            transaction.put(b"format", b"1")


def test_a_corrupt_journal_is_set_aside(filled: MirrorUnderTest) -> None:
    journal = filled.state / "journal"

    def cut_off() -> None:
        os.truncate(journal / "data.mdb", 5000)

    def overwrite() -> None:
        (journal / "data.mdb").write_bytes(b"garbage" * 10_000)

    def spoil_the_session_note() -> None:
        (journal / "session.json").write_text("{")

    filled.mount()
    filled.umount()
    for number, damage in enumerate((cut_off, overwrite, spoil_the_session_note)):
        made = back_up(filled.datastore, f"vm/{2 + number}")
        damage()
        filled.mount()
        filled.wait()
        assert filled.log.count("the whole datastore is compared") == number + 1
        assert (journal / "data.mdb.distrusted").exists()
        assert made in filled.published()
        assert filled.audit() == []
        filled.umount()


def test_the_disk_of_the_datastore_is_not_mounted(filled: MirrorUnderTest) -> None:
    """An empty directory where the datastore was is not a datastore in which everything was deleted."""
    filled.mount()
    filled.wait()
    filled.umount()
    published = filled.published()
    filled.datastore.rename(filled.base / "disk")
    filled.datastore.mkdir()
    words = (str(filled.datastore), "is its disk mounted?", "--allow-removals")
    check_refused(filled.run(*filled.mount_arguments()), *words)
    assert (mounts_in(filled.base), processes_of(filled)) == ([], [])
    # With the state lost as well, it is found only when the bucket has been read.
    filled.state.rename(filled.base / "lost")
    filled.mount()
    eventually(lambda: filled.status()["uploader"]["refused"] is not None)
    shown = filled.run("status", str(filled.datastore))
    assert shown.returncode == 1
    assert "is its disk mounted?" in shown.stdout
    check_refused(filled.run("wait", str(filled.datastore)), "nothing is mirrored", *words)
    filled.umount()
    assert filled.published() == published
    # What the message said to do when it was on purpose.
    filled.mount("--allow-removals")
    filled.wait()
    assert filled.published() == []


# --- umount, status, wait, signals


def test_what_is_not_mounted(untouched: MirrorUnderTest) -> None:
    for path in (untouched.datastore, untouched.base / "no such"):
        for command in ("umount", "status", "wait"):
            check_refused(untouched.run(command, str(path)), f"no mirrorfs is mounted on {path}", "mirrorfs status")
    # Other file systems are not ours to unmount.
    check_refused(untouched.run("umount", "/proc"), "no mirrorfs is mounted on /proc")


def test_unmounting_what_is_in_use(filled: MirrorUnderTest) -> None:
    filled.mount()
    with (filled.datastore / ".lock").open() as lock:
        refused = filled.run("umount", str(filled.datastore))
        check_refused(refused, str(filled.datastore), "in use", "stays mounted", f"(process {os.getpid()})")
        assert f"(process {filled.mount_pid()})" not in refused.stderr
        assert os.fstat(lock.fileno()).st_size == 0
    with subprocess.Popen(["sleep", "60"], cwd=filled.datastore / "vm") as sleeper:
        refused = filled.run("umount", str(filled.datastore))
        check_refused(refused, f"in use by sleep (process {sleeper.pid})")
        sleeper.kill()
    made = back_up(filled.datastore, "vm/2")
    filled.wait()
    assert made in filled.published()
    filled.umount()
    assert processes_of(filled) == []


def test_a_dead_mount(filled: MirrorUnderTest) -> None:
    path = str(filled.datastore)
    filled.mount()
    filled.kill_mount()
    for command in ("status", "wait"):
        check_refused(filled.run(command, path), path, "was killed", "mount it again")
    listed = filled.succeed("status")
    assert re.search(rf"^{re.escape(path)} .*dead.*mount it again", listed, re.MULTILINE)
    filled.mount()
    made = back_up(filled.datastore, "vm/2")
    filled.wait()
    assert made in filled.published()
    assert sum("fuse.mirrorfs" in mount for mount in mounts_in(filled.base)) == 1
    filled.kill_mount()
    assert "unmounted now" in filled.succeed("umount", path)
    assert mounts_in(filled.base) == []
    assert path not in filled.succeed("status")
    eventually(lambda: processes_of(filled) == [])


@pytest.mark.parametrize("condition", ["idle", "store down"])
def test_a_signal_ends_a_foreground_mount(
    proxied_mirror: MirrorUnderTest, fault_proxy: FaultProxy, condition: str
) -> None:
    mirror = proxied_mirror
    mirror.extra_environment[_MARK] = str(mirror.base)
    command = [*PROGRAM, *mirror.mount_arguments("--foreground")]
    with subprocess.Popen(
        command, env=mirror.environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 60)[0]
        assert "is mounted and mirrored to" in process.stdout.readline()
        made = back_up(mirror.datastore, "vm/1")
        if condition == "idle":
            mirror.wait()
        else:
            fault_proxy.refuse_connections()
            made = back_up(mirror.datastore, "vm/2")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert mounts_in(mirror.base) == []
    assert json.loads((mirror.state / "journal" / "session.json").read_text())["clean"] is True
    assert processes_of(mirror) == []
    fault_proxy.clear()
    mirror.mount()
    mirror.wait()
    assert made in mirror.published()
    assert mirror.audit() == []


def test_a_failing_foreground_mount_says_the_same(untouched: MirrorUnderTest, store: StoreServer) -> None:
    untouched.bucket = "not-made-yet"
    done = untouched.run(*untouched.mount_arguments("--foreground", "--require-store"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip().splitlines()[-1].startswith("Error: Could not look into bucket not-made-yet ")
