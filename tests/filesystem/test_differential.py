"""Random sequences of calls give the same results on the mount and on a twin directory beside it."""

import os
import shutil
import stat
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.filesystem.conftest import PassThroughProcess
from tests.filesystem.posix_calls import outcome

names = st.sampled_from(["a", "b", "c"])
paths = st.one_of(names, st.tuples(names, names).map("/".join), st.tuples(names, names, names).map("/".join))
modes = st.sampled_from(["0000", "0644", "0711", "0755", "0777", "1777", "2775", "4755", "6777", "02070"])
callers = st.sampled_from(["", "", "34:34 ", "34:50,34 ", "35:35,50 "])
ids = st.sampled_from(["-1", "0", "34", "35", "50"])


def _call(name: str, *arguments: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(callers, st.just(name), *arguments).map(lambda parts: parts[0] + " ".join(parts[1:]))


calls = st.one_of(
    _call("create", paths, modes),
    _call("mkdir", paths, modes),
    _call("mkdir", paths, modes),
    _call("make", st.sampled_from("fdlps"), paths),
    _call("symlink", paths, paths),
    _call("link", paths, paths),
    _call("rename", paths, paths),
    _call("renameat2", paths, paths, st.sampled_from(["0", "NOREPLACE", "EXCHANGE", "BOTH"])),
    _call("unlink", paths),
    _call("rmdir", paths),
    _call("remove", paths),
    _call("chmod", paths, modes),
    _call("chown", paths, ids, ids),
    _call("lchown", paths, ids, ids),
    _call("truncate", paths, st.sampled_from(["0", "1", "5000", "100000"])),
    _call("utimes", paths, st.sampled_from(["1 2", "1700000000 5", "now now"])),
    _call("write", paths, st.sampled_from(["text", "x" * 5000])),
    _call("read", paths),
    _call("list", paths),
    _call(
        "open", paths, st.sampled_from(["RDONLY", "RDWR|CREAT", "WRONLY|TRUNC", "RDWR|CREAT|EXCL", "RDONLY|NOFOLLOW"])
    ),
    _call("setxattr", paths, st.just("user.a"), st.just("value")),
    _call("getxattr", paths, st.just("user.a")),
    _call("readlink", paths),
    _call("stat", paths, st.just("mode,uid,gid,nlink,kind")),
)


def _tree(top: Path) -> dict[str, tuple[object, ...]]:
    """All that can be said of everything below, but for times that no call has set."""
    found: dict[str, tuple[object, ...]] = {}
    for directory, directories, files in os.walk(top):
        for name in (*directories, *files):
            path = Path(directory, name)
            status = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
            size = -1 if path.is_dir() and not path.is_symlink() else status.st_size
            times = [int(time) for time in (status.st_atime, status.st_mtime) if time < 1_750_000_000]
            found[str(path.relative_to(top))] = (
                status.st_mode, status.st_nlink, status.st_uid, status.st_gid, size, status.st_blocks, content, times,
            )  # fmt: skip
    return found


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(calls, min_size=20, max_size=60))
def test_same_as_native(shared_mount: PassThroughProcess, sequence: list[str]) -> None:
    twin = Path(tempfile.mkdtemp(dir=shared_mount.backing))
    mounted = Path(tempfile.mkdtemp(dir=shared_mount.mountpoint))
    try:
        for directory in (twin, mounted):
            directory.chmod(0o777)
        for line in sequence:
            outcomes = []
            for directory in (twin, mounted):
                os.chdir(directory)
                outcomes.append(outcome(line))
            assert outcomes[1] == outcomes[0], line
        assert _tree(mounted) == _tree(twin)
        assert _tree(shared_mount.backing / mounted.name) == _tree(twin)
    finally:
        os.chdir("/")
        shutil.rmtree(twin)
        shutil.rmtree(mounted)
