"""No Python process of mirrorfs runs code from where root happens to stand, or from PYTHON* variables."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorfs import interpreter
from mirrorfs.database.environment import Environment, examine

_PACKAGE = Path(interpreter.__file__).parent
_STARTS_PROGRAMS = ("subprocess", "os.exec", "os.spawn", "os.posix_spawn", "os.system", "os.popen")
# Programs that are no Python: mount(8), umount(8), systemctl(1).
_OTHER_PROGRAMS = {
    "filesystem/mount.py": 1,
    "chunkstore/attachment.py": 1,
    "service/manager.py": 1,
    # The administrator's own command, and sendmail.
    "notification/delivery.py": 1,
}
_MODULES = (
    "mirrorfs.database.examination",
    "mirrorfs.supervision",
    "mirrorfs.notification",
    "mirrorfs.replication",
    "mirrorfs.replication.sending",
    "mirrorfs.chunkstore",
)


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A directory of somebody else's, with modules in it that leave a mark when they are imported."""
    directory = tmp_path / "planted"
    directory.mkdir()
    for name in ("lmdb", "boto3", "trio", "json", "logging", "sitecustomize"):
        mark = directory / "ran"
        (directory / f"{name}.py").write_text(f"open({str(mark)!r}, 'w').close()\nraise SystemExit(9)\n")
    return directory


def test_examining_a_database_takes_nothing_from_the_working_directory(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "database"
    Environment(str(database), databases=[b"meta"], format_version=1).close()
    monkeypatch.chdir(planted)
    examine(str(database))
    examine("../database")
    assert not (planted / "ran").exists()


@pytest.mark.parametrize("module", _MODULES)
@pytest.mark.parametrize("by", ["directory", "variable"])
def test_no_module_is_taken_from_elsewhere(
    planted: Path, monkeypatch: pytest.MonkeyPatch, module: str, by: str
) -> None:
    if by == "variable":
        monkeypatch.setenv("PYTHONPATH", str(planted))
    # Each of the three protects alone, as far as it goes.
    where = planted if by == "directory" else interpreter.WORKING_DIRECTORY
    done = subprocess.run(
        interpreter.command(module, "/none"),
        env=interpreter.environment(),
        cwd=where,
        input=b"",
        capture_output=True,
        check=False,
    )
    assert done.returncode != 9, done.stderr
    assert not (planted / "ran").exists()


def test_the_environment_has_no_word_for_python_and_no_path_that_depends_on_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("PYTHONPATH", "PYTHONSTARTUP", "PYTHONHOME", "PYTHONINSPECT", "PYTHONPLATLIBDIR"):
        monkeypatch.setenv(name, "/elsewhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "config")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "~/credentials")
    monkeypatch.setenv("AWS_CA_BUNDLE", "/etc/bundle.pem")
    made = interpreter.environment()
    assert [name for name in made if name.startswith("PYTHON")] == []
    assert made["AWS_CONFIG_FILE"] == str(tmp_path / "config")
    assert made["AWS_SHARED_CREDENTIALS_FILE"] == "~/credentials"
    assert made["AWS_CA_BUNDLE"] == "/etc/bundle.pem"


def test_every_program_is_started_in_this_way() -> None:
    wrong = {
        str(path.relative_to(_PACKAGE)): list(_wrong(ast.parse(path.read_text())))
        for path in sorted(_PACKAGE.rglob("*.py"))
        if path.name != "interpreter.py"
    }
    for name, known in _OTHER_PROGRAMS.items():
        assert len(wrong.pop(name)) == known, name
    assert {name: found for name, found in wrong.items() if found} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import sys\nsys.executable",
        "from sys import executable",
        "import subprocess\nsubprocess.run(['python3', '-m', 'mirrorfs.replication'])",
        "import subprocess\nsubprocess.run(interpreter.command('m'), cwd='/')",
        "import subprocess\nsubprocess.Popen(interpreter.command('m'), env=interpreter.environment())",
        "import subprocess\nsubprocess.Popen(['ls'], cwd='/tmp', env=interpreter.environment())",
        "trio.lowlevel.open_process(['ls'])",
        "trio.run_process(interpreter.command('m'), env=os.environ, cwd=interpreter.WORKING_DIRECTORY)",
        "import os\nos.execv('/bin/sh', ['sh'])",
        "import os\nos.system('ls')",
        "import multiprocessing",
        "from concurrent.futures import ProcessPoolExecutor",
        "from subprocess import run\nrun(['python3'])",
        "from os import execv",
        "import subprocess as started\nstarted.run(['python3'])",
    ],
)
def test_the_guard_finds_what_is_started_otherwise(source: str) -> None:
    assert list(_wrong(ast.parse(source)))


def _wrong(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="sys"), attr="executable"):
                yield node.lineno, "uses sys.executable"
            case ast.ImportFrom(module="sys", names=names) if "executable" in [name.name for name in names]:
                yield node.lineno, "uses sys.executable"
            case ast.ImportFrom(module="subprocess" | "os" as module, names=names) if any(
                f"{module}.{name.name}".startswith(_STARTS_PROGRAMS) for name in names
            ):
                yield node.lineno, "takes what starts programs out of its module, where it is not recognized"
            case ast.Import(names=names) if any(name.name == "subprocess" and name.asname for name in names):
                yield node.lineno, "calls subprocess by another name, by which it is not recognized"
            case ast.Import(names=names) if any("multiprocessing" in name.name for name in names):
                yield node.lineno, "starts interpreters by multiprocessing"
            case ast.ImportFrom(module=str(module), names=names) if "multiprocessing" in module or (
                "ProcessPoolExecutor" in [name.name for name in names]
            ):
                yield node.lineno, "starts interpreters by multiprocessing"
            case ast.Call() if _starts_a_program(node) and not _is_guarded(node):
                yield node.lineno, "starts a program without command, environment and directory of interpreter"


def _starts_a_program(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    return name.startswith(_STARTS_PROGRAMS) or name.endswith((".open_process", ".run_process", "Popen"))


def _is_guarded(call: ast.Call) -> bool:
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    return (
        bool(call.args)
        and ast.unparse(call.args[0]).startswith("interpreter.command(")
        and given.get("env") == "interpreter.environment()"
        and given.get("cwd") == "interpreter.WORKING_DIRECTORY"
    )
