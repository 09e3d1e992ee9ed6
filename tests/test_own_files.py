"""What root opens as its own is its own: nothing else is followed, changed or waited for, and a sentence says why."""

from __future__ import annotations

import ast
import os
import re
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs import own_files
from mirrorfs.cli import settings_file
from mirrorfs.cli.main import main
from mirrorfs.cli.settings_file import DatastoreCommand
from mirrorfs.database.directory import DirectoryLock, StateDirectory
from mirrorfs.database.environment import Environment, examine
from mirrorfs.database.errors import DatabaseError
from mirrorfs.journal.journal import JournalWriter
from mirrorfs.own_files import NotOwn
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.recovery.marker import MARKER_NAME
from mirrorfs.recovery.ownership import Owner
from mirrorfs.recovery.source import View
from mirrorfs.recovery.target import open_target
from mirrorfs.replication.questions import ask
from mirrorfs.state.damage import open_state
from mirrorfs.supervision import registry
from mirrorfs.supervision.registry import RunningMount

_SOMEBODY = 12345
_PRECIOUS = b"somebody else's, and precious"

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="root is who is to be protected"),
    # To wait for a planted pipe is one of the faults.
    pytest.mark.timeout(100),
]


@pytest.fixture(autouse=True)
def _usual_umask() -> Iterator[None]:
    previous = os.umask(0o022)
    yield
    os.umask(previous)


class Victim:
    """A file of root's that others must not have changed, and a directory."""

    def __init__(self, base: Path) -> None:
        self.directory = base / "victim"
        self.directory.mkdir()
        self.file = self.directory / "precious"
        self.file.write_bytes(_PRECIOUS)

    def is_untouched(self) -> bool:
        return self.file.read_bytes() == _PRECIOUS and os.listdir(self.directory) == ["precious"]


def _link(path: Path, victim: Victim) -> None:
    path.symlink_to(victim.file)


def _dangling(path: Path, victim: Victim) -> None:
    path.symlink_to(victim.directory / "new")


def _hard_link(path: Path, victim: Victim) -> None:
    os.link(victim.file, path)


def _fifo(path: Path, victim: Victim) -> None:
    os.mkfifo(path)


def _directory(path: Path, victim: Victim) -> None:
    path.mkdir()


def _device(path: Path, victim: Victim) -> None:
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))


def _socket(path: Path, victim: Victim) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        # A socket's path may have 107 bytes only.
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            listening.bind(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)


def _foreign(path: Path, victim: Victim) -> None:
    path.write_bytes(_PRECIOUS)
    os.chown(path, _SOMEBODY, _SOMEBODY)


def _writable(path: Path, victim: Victim) -> None:
    path.write_bytes(_PRECIOUS)
    path.chmod(0o666)


Plant = Callable[[Path, Victim], None]
_PLANTED: tuple[Plant, ...] = (
    _link,
    _dangling,
    _hard_link,
    _fifo,
    _directory,
    _device,
    _socket,
    _foreign,
    _writable,
)


@pytest.fixture
def victim(tmp_path: Path) -> Victim:
    return Victim(tmp_path)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    path = tmp_path / "place"
    path.mkdir(mode=0o700)
    return path


def planted(request: pytest.FixtureRequest) -> Plant:
    plant: Plant = request.param
    return plant


plants = pytest.fixture(params=_PLANTED, ids=lambda plant: plant.__name__.strip("_"), name="plant")(planted)


def _is_sentence(error: BaseException, name: str) -> bool:
    text = str(error)
    return name in text and "Errno" not in text and "Traceback" not in text and len(text) > len(name) + 20


class TestFiles:
    @pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_APPEND, os.O_RDWR | os.O_TRUNC])
    def test_what_is_something_else_is_refused(self, plant: Plant, place: Path, victim: Victim, flags: int) -> None:
        plant(place / "file", victim)
        before = os.lstat(place / "file")
        with pytest.raises(NotOwn) as refused:
            own_files.open_file(str(place / "file"), flags)
        assert _is_sentence(refused.value, str(place / "file"))
        assert os.lstat(place / "file")[:9] == before[:9]
        assert victim.is_untouched()

    def test_an_own_file_is_opened_made_appended_to_and_emptied(self, place: Path) -> None:
        path = str(place / "file")
        with pytest.raises(FileNotFoundError):
            own_files.open_file(path)
        for text, flags in ((b"a", os.O_APPEND), (b"b", os.O_APPEND), (b"c", os.O_TRUNC)):
            with os.fdopen(own_files.open_file(path, os.O_WRONLY | os.O_CREAT | flags), "wb") as file:
                file.write(text)
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert own_files.read_file(path) == b"c"

    def test_a_device_is_not_even_opened(self, place: Path) -> None:
        """To open some devices does something: one that nothing drives says ENXIO when it is opened."""
        os.mknod(place / "file", stat.S_IFCHR | 0o600, os.makedev(511, 255))
        with pytest.raises(NotOwn, match="a device"):
            own_files.open_file(str(place / "file"))

    def test_a_new_file_takes_the_name_and_leaves_what_had_it(self, plant: Plant, place: Path, victim: Victim) -> None:
        plant(place / "file", victim)
        if plant is _directory:
            with pytest.raises(NotOwn, match="a directory"):
                own_files.new_file(str(place / "file"))
        else:
            os.close(own_files.new_file(str(place / "file")))
            assert (place / "file").read_bytes() == b""
            assert os.lstat(place / "file").st_uid == 0
        assert victim.is_untouched()


class TestTheStateDirectory:
    @pytest.fixture
    def directory(self, place: Path) -> StateDirectory:
        directory = StateDirectory(str(place / "state"))
        directory.create()
        return directory

    def test_it_is_not_a_link(self, place: Path, victim: Victim) -> None:
        victim.directory.chmod(0o700)
        os.symlink(victim.directory, place / "link")
        os.lchown(place / "link", _SOMEBODY, _SOMEBODY)
        place.chmod(0o1777)
        with pytest.raises(DatabaseError, match=str(_SOMEBODY)):
            StateDirectory(str(place / "link")).create()
        result = CliRunner().invoke(
            main, ["mount", str(place), "--to", "s3://bucket/b", "--state-dir", str(place / "link")]
        )
        assert result.exit_code == 1
        assert str(_SOMEBODY) in result.stderr
        assert victim.is_untouched()

    def test_it_may_be_behind_a_link_of_roots(self, place: Path) -> None:
        (place / "disk").mkdir(mode=0o700)
        (place / "link").symlink_to("disk")
        directory = StateDirectory(str(place / "link"))
        directory.create()
        DirectoryLock(directory, "mount").acquire()
        JournalWriter(directory.journal).close()
        open_state(directory, doubtful=True).close()
        assert {"journal", "state", "mount.lock"} <= set(os.listdir(place / "disk"))

    @pytest.mark.parametrize(("owner", "mode"), [(_SOMEBODY, 0o755), (0, 0o777), (0, 0o775)])
    def test_nobody_else_can_exchange_it(self, place: Path, owner: int, mode: int) -> None:
        between = place / "between"
        between.mkdir()
        os.chown(between, owner, _SOMEBODY)
        between.chmod(mode)
        with pytest.raises(DatabaseError, match="others than root may change the directory"):
            StateDirectory(str(between / "state")).create()

    def test_it_may_be_in_a_sticky_directory(self, place: Path) -> None:
        place.chmod(0o1777)
        StateDirectory(str(place / "state")).create()
        (place / "theirs").mkdir(mode=0o700)
        os.chown(place / "theirs", _SOMEBODY, _SOMEBODY)
        with pytest.raises(DatabaseError, match=str(_SOMEBODY)):
            StateDirectory(str(place / "theirs" / "state")).create()

    @pytest.mark.parametrize("name", ["mount.lock", "uploader.lock"])
    def test_the_lock(self, plant: Plant, directory: StateDirectory, victim: Victim, name: str) -> None:
        plant(Path(directory.path, name), victim)
        with pytest.raises(DatabaseError) as refused:
            DirectoryLock(directory, name.removesuffix(".lock")).acquire()
        assert _is_sentence(refused.value, name)
        assert victim.is_untouched()

    def test_the_log(self, plant: Plant, directory: StateDirectory, place: Path, victim: Victim) -> None:
        plant(Path(directory.log_file), victim)
        (place / "datastore").mkdir()
        arguments = ["mount", str(place / "datastore"), "--to", "s3://bucket/b", "--state-dir", directory.path]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 1
        assert "mirrorfs.log" in result.stderr
        assert result.stderr.count("\n") == 1
        assert victim.is_untouched()

    def test_the_control_socket(self, plant: Plant, directory: StateDirectory, victim: Victim) -> None:
        plant(Path(directory.control_socket), victim)
        if plant is _socket:
            # What an uploader that was killed has left.
            directory.create()
            with pytest.raises(ConnectionRefusedError):
                ask(directory.control_socket, "status", 5)
        else:
            with pytest.raises(DatabaseError, match=r"control\.sock"):
                directory.create()
            with pytest.raises(NotOwn, match=r"control\.sock"):
                ask(directory.control_socket, "status", 5)
        assert victim.is_untouched()

    def test_a_control_socket_of_somebody_else(self, directory: StateDirectory, victim: Victim) -> None:
        _socket(Path(directory.control_socket), victim)
        os.chown(directory.control_socket, _SOMEBODY, _SOMEBODY)
        with pytest.raises(NotOwn, match=str(_SOMEBODY)):
            ask(directory.control_socket, "status", 5)

    @pytest.mark.parametrize("name", ["data.mdb", "lock.mdb", "session.json"])
    def test_the_files_of_the_journal(self, plant: Plant, directory: StateDirectory, victim: Victim, name: str) -> None:
        JournalWriter(directory.journal).close()
        os.unlink(Path(directory.journal, name))
        plant(Path(directory.journal, name), victim)
        with pytest.raises((DatabaseError, NotOwn)) as refused:
            JournalWriter(directory.journal)
        assert _is_sentence(refused.value, name)
        assert victim.is_untouched()

    def test_what_an_interrupted_session_note_left_is_not_followed(
        self, plant: Plant, directory: StateDirectory, victim: Victim
    ) -> None:
        os.mkdir(directory.journal, 0o700)
        plant(Path(directory.journal, "session.json.tmp"), victim)
        if plant is _directory:
            with pytest.raises(NotOwn, match="a directory"):
                JournalWriter(directory.journal)
        else:
            JournalWriter(directory.journal).close()
        assert victim.is_untouched()

    @pytest.mark.parametrize("name", ["data.mdb", "lock.mdb"])
    @pytest.mark.parametrize("doubtful", [False, True])
    def test_the_files_of_the_state(
        self, plant: Plant, directory: StateDirectory, victim: Victim, name: str, doubtful: bool
    ) -> None:
        open_state(directory, doubtful=False).close()
        os.unlink(Path(directory.state, name))
        plant(Path(directory.state, name), victim)
        with pytest.raises(DatabaseError) as refused:
            open_state(directory, doubtful=doubtful)
        assert _is_sentence(refused.value, name)
        assert victim.is_untouched()

    @pytest.mark.parametrize("link", [False, True])
    def test_a_database_elsewhere(self, directory: StateDirectory, place: Path, link: bool) -> None:
        elsewhere = place / "elsewhere"
        Environment(str(elsewhere), databases=(b"meta",), format_version=1).close()
        before = {path.name: path.read_bytes() for path in elsewhere.iterdir()}
        if link:
            os.symlink(elsewhere, directory.state)
            os.lchown(directory.state, _SOMEBODY, _SOMEBODY)
            os.chmod(directory.path, 0o1777)
        else:
            os.rename(elsewhere, directory.state)
            os.chown(directory.state, _SOMEBODY, _SOMEBODY)
            elsewhere = Path(directory.state)
        for work in (lambda: open_state(directory, doubtful=False), lambda: examine(directory.state)):
            with pytest.raises(DatabaseError, match=str(_SOMEBODY)):
                work()
        assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == before


class TestTheNotesOfMounts:
    MOUNT = RunningMount("/mnt/a", "/mnt/a", "/state/a", 100)

    @pytest.fixture(autouse=True)
    def runtime(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(registry, "RUNTIME_BASE", str(place / "run"))
        monkeypatch.setattr(registry, "is_mounted", lambda mountpoint: mountpoint == "/mnt/a")
        return place / "run"

    def test_a_note_that_is_something_else(self, plant: Plant, runtime: Path, victim: Victim) -> None:
        runtime.mkdir()
        plant(runtime / "mnt-a.json", victim)
        with pytest.raises(NotOwn, match=r"mnt-a\.json"):
            registry.find("/mnt/a")
        result = CliRunner().invoke(main, ["status"])
        assert result.exit_code == 1
        assert "mnt-a.json" in result.stderr
        assert victim.is_untouched()

    def test_a_note_that_is_being_written(self, plant: Plant, runtime: Path, victim: Victim) -> None:
        runtime.mkdir()
        plant(runtime / "mnt-a.json.tmp", victim)
        if plant is _directory:
            with pytest.raises(NotOwn, match="a directory"):
                registry.register(self.MOUNT)
        else:
            registry.register(self.MOUNT)
            assert registry.find("/mnt/a") == self.MOUNT
        assert victim.is_untouched()

    def test_their_directory(self, runtime: Path, victim: Victim) -> None:
        runtime.symlink_to(victim.directory)
        os.lchown(runtime, _SOMEBODY, _SOMEBODY)
        runtime.parent.chmod(0o1777)
        with pytest.raises(NotOwn, match=str(_SOMEBODY)):
            registry.register(self.MOUNT)
        assert victim.is_untouched()


class TestTheSettings:
    @pytest.fixture
    def settings(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(settings_file, "SETTINGS_BASE", str(place))
        return place / "srv-store1.toml"

    def _run(self) -> tuple[int, str]:
        @click.command("try", cls=DatastoreCommand)
        @click.argument("datastore")
        @click.option("--to")
        def command(datastore: str, to: str | None) -> None:
            raise SystemExit(0)

        result = CliRunner().invoke(command, ["/srv/store1"])
        return result.exit_code, result.output

    def test_a_file_that_is_something_else(self, plant: Plant, settings: Path, victim: Victim) -> None:
        victim.file.write_bytes(b'to = "s3://elsewhere/x"\n')
        plant(settings, victim)
        if plant in (_foreign, _writable):
            settings.write_bytes(b'to = "s3://elsewhere/x"\n')
        code, text = self._run()
        if plant is _dangling:
            assert "symbolic link" in text
        assert code == 2
        assert "srv-store1.toml" in text

    def test_one_that_all_may_read_is_taken(self, settings: Path) -> None:
        settings.write_bytes(b'to = "s3://a/b"\n')
        assert self._run()[0] == 0


class TestTheTargetOfARestore:
    OWNER = Owner(34, 34)

    def _open(self, path: Path, owner: Owner = OWNER) -> None:
        with open_target(path, "s3://a/b", owner, View()) as target:
            target.files.write("vm/100/owner", b"root@pam")

    def test_an_own_directory(self, place: Path) -> None:
        self._open(place / "new")
        assert stat.S_IMODE(os.stat(place / "new").st_mode) == 0o755
        assert (place / "new/vm/100/owner").read_bytes() == b"root@pam"

    def test_links_of_roots_are_followed(self, place: Path) -> None:
        (place / "disk").mkdir()
        (place / "link").symlink_to("disk")
        (place / "absolute").symlink_to(place / "link")
        self._open(place / "absolute" / "new")
        self._open(place / "absolute" / ".." / "disk" / "." / "other")
        assert (place / "disk/new/vm/100/owner").exists()
        assert (place / "disk/other/vm/100/owner").exists()

    def test_a_link_that_leads_round_is_told(self, place: Path) -> None:
        (place / "a").symlink_to("b")
        (place / "b").symlink_to("a")
        with pytest.raises(RestoreError, match="symbolic links"):
            self._open(place / "a" / "new")

    @pytest.mark.parametrize("where", ["target", "target/x", "x/target/y"])
    def test_a_link_of_somebody_else_is_not_followed(self, place: Path, victim: Victim, where: str) -> None:
        shared = place / "shared"
        shared.mkdir()
        shared.chmod(0o1777)
        if where.startswith("x/"):
            shared = shared / "x"
            shared.mkdir()
            os.chown(shared, _SOMEBODY, _SOMEBODY)
        (shared / "target").symlink_to(victim.directory)
        os.lchown(shared / "target", _SOMEBODY, _SOMEBODY)
        with pytest.raises(RestoreError, match="target"):
            self._open(place / "shared" / where)
        assert victim.is_untouched()

    @pytest.mark.parametrize("mode", [0o777, 0o775])
    def test_a_link_in_a_directory_of_others_is_not_followed_whosever_it_is(
        self, place: Path, victim: Victim, mode: int
    ) -> None:
        shared = place / "shared"
        shared.mkdir()
        os.chown(shared, 0, _SOMEBODY)
        shared.chmod(mode)
        (shared / "target").symlink_to(victim.directory)
        with pytest.raises(RestoreError, match="others than root may change the directory"):
            self._open(shared / "target")
        assert victim.is_untouched()

    def test_a_directory_of_somebody_elses_may_be_on_the_way(self, place: Path) -> None:
        (place / "home").mkdir()
        os.chown(place / "home", _SOMEBODY, _SOMEBODY)
        self._open(place / "home" / "new")
        assert os.stat(place / "home/new").st_uid == 0

    @pytest.mark.parametrize(("owner", "mode"), [((_SOMEBODY, 0), 0o755), ((0, _SOMEBODY), 0o775), ((0, 0), 0o777)])
    def test_a_directory_that_others_may_change(self, place: Path, owner: tuple[int, int], mode: int) -> None:
        (place / "target").mkdir()
        os.chown(place / "target", *owner)
        (place / "target").chmod(mode)
        with pytest.raises(RestoreError, match="target"):
            self._open(place / "target")
        assert os.listdir(place / "target") == []

    @pytest.mark.parametrize(("owner", "mode"), [((34, 34), 0o755), ((0, 34), 0o2775)])
    def test_a_directory_of_whom_the_files_are_to_belong_to(
        self, place: Path, owner: tuple[int, int], mode: int
    ) -> None:
        (place / "target").mkdir()
        os.chown(place / "target", *owner)
        (place / "target").chmod(mode)
        self._open(place / "target")

    def test_the_mark(self, plant: Plant, place: Path, victim: Victim) -> None:
        plant(place / MARKER_NAME, victim)
        with pytest.raises(RestoreError) as refused:
            self._open(place)
        assert _is_sentence(refused.value, MARKER_NAME)
        assert victim.is_untouched()

    def test_something_that_is_no_directory(self, place: Path, victim: Victim) -> None:
        os.mkfifo(place / "fifo")
        for path in (place / "fifo", place / "fifo" / "x", victim.file):
            with pytest.raises(RestoreError, match=r"[Nn]ot a directory"):
                self._open(path)


_NAMES = st.sampled_from(["a", "b", "..", ".", "link", "up", "absolute"])


@given(st.lists(_NAMES, max_size=6))
def test_a_way_leads_where_realpath_says(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    base = tmp_path_factory.getbasetemp() / "ways"
    if not base.exists():
        (base / "a" / "b").mkdir(parents=True)
        (base / "b").mkdir()
        (base / "link").symlink_to("a")
        (base / "a" / "up").symlink_to("../b")
        (base / "b" / "absolute").symlink_to(base / "a")
    path = os.path.join(base, *names)
    try:
        os.stat(path)
    except FileNotFoundError:
        return
    assert own_files.resolved(path) == os.path.realpath(path)
    descriptor = own_files.open_directory(path)
    try:
        assert os.path.samestat(os.fstat(descriptor), os.stat(path))
    finally:
        os.close(descriptor)


def test_a_directory_that_is_exchanged_all_the_time_never_leads_out(tmp_path: Path, victim: Victim) -> None:
    """Somebody swaps a directory of his for a link to root's, as fast as he can."""
    home = tmp_path / "home"
    (home / "target").mkdir(parents=True)
    os.symlink(victim.directory, home / "link")
    for path in (home, home / "target", home / "link"):
        os.chown(path, _SOMEBODY, _SOMEBODY, follow_symlinks=False)
    swap = (
        "import ctypes, os, sys\n"
        "os.setuid(int(sys.argv[2]))\n"
        "os.chdir(sys.argv[1])\n"
        "libc = ctypes.CDLL(None)\n"
        "print('swapping', flush=True)\n"
        "while True: libc.renameat2(-100, b'target', -100, b'link', 2)\n"
    )
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.name.startswith(("pytest-", "popen-")):
            parent.chmod(0o755)
    command = ["/usr/bin/python3", "-c", swap, str(home), str(_SOMEBODY)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as swapping:
        assert swapping.stdout is not None
        assert swapping.stdout.readline() == b"swapping\n"
        try:
            outcomes = [_opened(home / "target", victim) for _ in range(2000)]
            while not {"refused", "own"} <= set(outcomes):
                outcomes.append(_opened(home / "target", victim))
        finally:
            swapping.kill()
    assert "victim" not in outcomes
    assert victim.is_untouched()


def _opened(path: Path, victim: Victim) -> str:
    try:
        descriptor = own_files.open_directory(str(path))
    except NotOwn:
        return "refused"
    except OSError:
        return "moved"
    try:
        return "victim" if os.path.samestat(os.fstat(descriptor), os.stat(victim.directory)) else "own"
    finally:
        os.close(descriptor)


# Directories (own ones are checked by the way to them, the others are the datastore's) and what is the kernel's.
_NOT_OWN = (
    "_DIRECTORY",
    "O_PATH",
    "'/proc/",
    "process / ",
    "'/dev/",
    "os.devnull",
    "_BOOT_ID",
    "_MACHINE_ID",
    "_OOM_SCORE",
    "pidfd_open",
)
# Files that the administrator names, which may be copies of somebody else's, and are only read; and the system's.
_NAMED_FILES = {
    "cli/doctor.py": "open(path, encoding",
    "cli/replay.py": "os.open(file, os.O_RDONLY",
    "database/data_file.py": "os.open(path, os.O_RDONLY | os.O_NONBLOCK",
    "service/units.py": "(resources.files('mirrorfs.service')",
}
_ROOMS = ("cli", "database", "journal", "replication", "service", "state", "supervision")
_OPENS = re.compile(
    r"open|os\.\w*open|io\.open|.*\.(read_text|read_bytes|write_text|write_bytes)|os\.makedirs|shutil\.copy\w*"
)


def _opening_calls(source: str) -> list[str]:
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [ast.unparse(call) for call in calls if _OPENS.fullmatch(ast.unparse(call.func))]


def test_every_own_file_is_opened_in_this_way() -> None:
    package = Path(own_files.__file__).parent
    found = [
        (name, call)
        for room in _ROOMS
        for path in sorted((package / room).rglob("*.py"))
        for name in [str(path.relative_to(package))]
        for call in _opening_calls(path.read_text())
        if not call.startswith(("os.fdopen(", _NAMED_FILES.get(name, "os.fdopen(")))
        and not any(part in call for part in _NOT_OWN)
    ]
    assert found == []


@pytest.mark.parametrize(
    "source", ["open(path)", "os.open(path, 0)", "Path(path).read_text()", "os.makedirs(path)", "io.open(path)"]
)
def test_the_guard_finds_what_is_opened_otherwise(source: str) -> None:
    assert _opening_calls(source) == [ast.unparse(ast.parse(source))]
