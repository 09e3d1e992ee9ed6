"""What others wrote comes out of mirrorfs as text: it steers no terminal, forges no line and hides no name."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import mirrorfs
from mirrorfs import output
from mirrorfs.cli import screen
from mirrorfs.cli.errors import Failure
from mirrorfs.cli.main import main
from mirrorfs.output import LineFormatter, printable, say, say_json
from mirrorfs.supervision import users
from mirrorfs.supervision.metrics import MirrorCollector

_PACKAGE = Path(mirrorfs.__file__).parent
_HOSTILE = "\x1b]0;owned\x07\n2026-11-27 12:00:00,000 mount INFO well\r\x9b2J\x7f\u202egnp.exe\u2066\udcff\u2028\x85"
_FORBIDDEN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def _is_clean(text: str) -> bool:
    return _FORBIDDEN.search(text) is None


@given(st.text(alphabet=st.characters(codec=None)))
def test_nothing_but_visible_characters_is_left(text: str) -> None:
    shown = printable(text)
    assert _is_clean(shown)
    assert "\n" not in shown
    assert all(unicodedata.category(character)[0] != "C" for character in shown)
    assert printable(shown) == shown


@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "S"])))
def test_what_is_visible_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_each_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say("first", _HOSTILE)
    say(_HOSTILE, err=True)
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 2
    assert printed.err.count("\n") == 1
    assert _is_clean(printed.out + printed.err)


def test_a_terminal_that_knows_no_unicode(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    say("Straße \U0001f600")
    assert raw.getvalue() == b"Stra\\xdfe \\U0001f600\n"


_JSON = st.recursive(
    st.none() | st.integers() | st.text(alphabet=st.characters(codec=None)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet=st.characters(codec=None)), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(_JSON, st.sampled_from([None, 1, 2]))
def test_json_stays_json_and_loses_nothing(value: object, indent: int | None) -> None:
    taken, sys.stdout = sys.stdout, io.StringIO()
    try:
        say_json(value, indent=indent)
        printed = sys.stdout.getvalue()
    finally:
        sys.stdout = taken
    assert printed.isascii()
    assert _is_clean(printed)
    assert json.loads(printed) == value


def _formatted(work: object, *, message: str = "%s", stack: bool = False) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter("%(asctime)s mount %(levelname)s %(message)s"))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    if isinstance(work, BaseException):
        try:
            raise work
        except type(work):
            logger.exception(message, work, stack_info=stack)
    else:
        logger.warning(message, work, stack_info=stack)
    return stream.getvalue()


_RECORD = re.compile(r"\d{4}-\d\d-\d\d ")


@pytest.mark.parametrize(
    "work",
    [
        _HOSTILE,
        {_HOSTILE: _HOSTILE},
        KeyError(_HOSTILE),
        ValueError(_HOSTILE),
        OSError(2, _HOSTILE, _HOSTILE),
        ExceptionGroup(_HOSTILE, [ValueError(_HOSTILE), KeyError(_HOSTILE)]),
    ],
)
@pytest.mark.parametrize("stack", [False, True])
def test_no_record_of_the_log_can_be_forged(work: object, stack: bool) -> None:
    lines = _formatted(work, stack=stack).splitlines()
    assert _is_clean("\n".join(lines))
    assert [number for number, line in enumerate(lines) if _RECORD.match(line)] == [0]
    assert all(line.startswith("    ") for line in lines[1:])


def test_the_notes_of_an_exception_are_its_text_too() -> None:
    error = ValueError("x")
    error.add_note(_HOSTILE)
    lines = _formatted(error).splitlines()
    assert all(line.startswith("    ") for line in lines[1:])


_PROCESS = """
import sys, threading, warnings
from mirrorfs.output import begin_log
begin_log("mount")
hostile = {hostile!a}
warnings.warn(hostile)
class Dying:
    def __del__(self):
        raise ValueError(hostile)
del_me = Dying()
del del_me
def fail():
    raise ValueError(hostile)
thread = threading.Thread(target=fail)
thread.start()
thread.join()
fail()
"""


def test_what_python_prints_by_itself_is_a_record_too() -> None:
    done = subprocess.run([sys.executable, "-c", _PROCESS.format(hostile=_HOSTILE)], capture_output=True, check=False)
    assert done.returncode == 1
    lines = done.stderr.decode().splitlines()
    assert _is_clean("\n".join(lines))
    records = [line for line in lines if not line.startswith("    ")]
    assert [re.sub(r"^\S+ \S+ ", "", line).split(" ")[:2] for line in records] == [
        ["mount", "WARNING"],
        ["mount", "ERROR"],
        ["mount", "ERROR"],
        ["mount", "CRITICAL"],
    ]


def test_a_log_for_programs_is_json_line_by_line() -> None:
    program = _PROCESS.format(hostile=_HOSTILE).replace(
        'begin_log("mount")', 'begin_log("mount", log_format=LogFormat.JSON)'
    )
    program = program.replace("import begin_log", "import LogFormat, begin_log")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 1
    assert _is_clean(done.stderr.decode("ascii"))
    records = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(record["process"], record["level"]) for record in records] == [
        ("mount", "WARNING"),
        ("mount", "ERROR"),
        ("mount", "ERROR"),
        ("mount", "CRITICAL"),
    ]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", record["time"]) for record in records)
    assert all(_HOSTILE in record["traceback"] for record in records[1:])
    assert records[0]["logger"] == "py.warnings"


_ON_A_FULL_DISK = """
import logging, os, resource
from mirrorfs.output import begin_log
begin_log("mount")
log = logging.getLogger()
log.info("before")
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (os.fstat(2).st_size + 10, limits[1]))
log.info("cut off")
log.info("not written")
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
log.info("after")
"""


def test_a_log_that_cannot_be_written_ends_nothing_and_goes_on_when_it_can(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as log:
        done = subprocess.run([sys.executable, "-c", _ON_A_FULL_DISK], stderr=log, check=False, timeout=60)
    assert done.returncode == 0
    before, cut_off, missing, after = path.read_text().splitlines()
    assert before.endswith("mount INFO before")
    assert len(cut_off) == 10
    assert missing.endswith("mount WARNING 2 records are missing here: they could not be written")
    assert after.endswith("mount INFO after")


def test_a_failure_shows_its_lines_and_no_others() -> None:
    @click.command()
    def command() -> None:
        raise Failure("it failed:", f"  {_HOSTILE}")

    shown = CliRunner().invoke(command, []).stderr
    assert shown.count("\n") == 2
    assert _is_clean(shown)


@pytest.mark.parametrize(
    "arguments",
    [
        [f"--{_HOSTILE}"],
        [_HOSTILE],
        ["restore", f"s3://bucket/{_HOSTILE}", "/nowhere"],
        ["restore", "s3://bucket/x", "/nowhere", "--snapshot", _HOSTILE],
        ["restore", "s3://bucket/x", "/nowhere", _HOSTILE],
        ["snapshots", "s3://bucket/x", f"--{_HOSTILE}"],
        ["status", _HOSTILE.replace("\udcff", "")],
        ["mount", "/nowhere", "--to", _HOSTILE],
    ],
)
def test_errors_about_arguments_are_clean(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code in (1, 2)
    assert "Error: " in result.stderr
    assert _is_clean(result.output)
    assert "\n2026-11-27" not in result.output


def test_an_uncaught_error_of_a_command_is_clean() -> None:
    source = f"from mirrorfs.output import escape_tracebacks\nescape_tracebacks()\nraise ValueError({_HOSTILE!a})"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, check=False)
    assert done.returncode == 1
    assert b"Traceback" in done.stderr
    assert _is_clean(done.stderr.decode())


_COLUMNS = (screen.Column("Snapshot", copied=True), screen.Column("Size", is_number=True), screen.Column("Notes"))


class _Stream(io.StringIO):
    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


def _table(monkeypatch: pytest.MonkeyPatch, *rows: tuple[str, str, str], terminal: bool) -> str:
    stream = _Stream(is_terminal=terminal)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("TERM", "xterm")
    screen.show_table(_COLUMNS, [screen.Row(row) for row in rows])
    # Weight and colour are rich's own.
    return re.sub("\x1b\\[[0-9;]*m", "", stream.getvalue())


@pytest.mark.parametrize("terminal", [False, True])
def test_tables_interpret_nothing(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    notes = "[red]x[/red] [link=http://a]b[/link] :smile: [bold"
    shown = _table(monkeypatch, ("vm/100", "1 MB", notes), ("vm/101", _HOSTILE, _HOSTILE), terminal=terminal)
    assert notes in shown
    assert _is_clean(shown)
    assert not any(line.startswith("2026-11-27") for line in shown.splitlines())


@pytest.mark.parametrize("terminal", [False, True])
def test_tables_cut_long_cells_but_not_names(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    shown = _table(monkeypatch, ("vm/" + "1" * 150, "1 MB", "n" * 100_000), terminal=terminal)
    assert "1" * 150 in shown
    assert "n" * 99 + "…" in shown
    assert "n" * 100 not in shown


def test_the_bar_interprets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = _Stream(is_terminal=True)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.setenv("TERM", "xterm")
    with screen.Bar("[red]Listing") as bar:
        bar.update(f"[red]{_HOSTILE}", completed=1, total=2, state=f"[blue]{_HOSTILE}")
    # Colours, and going back to the begin of the line, are rich's own.
    drawn = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]|\r", "", stream.getvalue())
    assert "[red]" in drawn
    assert _is_clean(drawn)


def test_the_view_interprets_nothing_and_shows_no_more_than_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = _Stream(is_terminal=True)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "10")
    monkeypatch.setenv("TERM", "xterm")
    with screen.View() as view:
        view.show([screen.ViewLine("[red]first", is_head=True), screen.ViewLine(_HOSTILE * 10, is_bad=True)])
        drawn = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]|\r", "", stream.getvalue())
        assert "[red]first" in drawn
        assert _is_clean(drawn)
        assert max(map(len, drawn.splitlines())) <= 80
        stream.truncate(0)
        view.show([screen.ViewLine(f"line {number}") for number in range(1000)])
        assert stream.getvalue().count("line ") < 30


def test_the_labels_of_metrics_are_clean() -> None:
    (family, *_) = MirrorCollector(lambda: [(_HOSTILE, None)]).collect()
    assert all(_is_clean(label) and "\n" not in label for label in family.samples[0].labels.values())


_PRINTS = re.compile(
    r"(click\.(echo|secho|echo_via_pager|progressbar|clear)|print|pprint|sys\.(stdout|stderr)\.(buffer\.)?write\w*"
    r"|sys\.__std(out|err)__|logging\.(basicConfig|StreamHandler|Formatter)|traceback\.print_\w+|warnings\.\w+"
    r"|[\w.]*Console|[\w.]*RichHandler)"
)
_MAY_DRAW = {"cli/screen.py": {"rich.console.Console"}}


def _printing_calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=function) if _PRINTS.fullmatch(ast.unparse(function)):
                yield ast.unparse(function)
            case ast.Call(func=function, args=[argument]) if ast.unparse(function) in (
                "sys.exit",
                "SystemExit",
            ) and _may_be_text(argument):
                yield f"{ast.unparse(function)} with a text"
            case ast.Call(func=function, args=[ast.Constant(value=1 | 2), *_]) if ast.unparse(function) == "os.write":
                yield "os.write"
            case ast.ImportFrom(module="click" | "rich" | "rich.console" | "traceback" | "logging", names=names) if {
                name.name for name in names
            } & {"echo", "secho", "print", "Console", "print_exc", "basicConfig", "StreamHandler"}:
                yield f"from {node.module} import"


def _may_be_text(argument: ast.expr) -> bool:
    match argument:
        case ast.Constant(value=value):
            return isinstance(value, str)
        case ast.Call(func=ast.Name(id="main")) | ast.Name() | ast.IfExp():
            # Numbers, as mypy knows.
            return False
    return True


def test_nothing_else_prints() -> None:
    found = {
        (name, call)
        for path in _PACKAGE.rglob("*.py")
        if path != Path(output.__file__)
        for name in [str(path.relative_to(_PACKAGE))]
        for call in _printing_calls(ast.parse(path.read_text()))
        if call not in _MAY_DRAW.get(name, set())
    }
    assert found == set()


@pytest.mark.parametrize(
    "source",
    [
        "click.echo(name)",
        "from click import echo",
        "print(name)",
        "sys.stderr.write(name)",
        "sys.stdout.buffer.write(name)",
        "rich.console.Console().print(name)",
        "from rich.console import Console",
        "logging.basicConfig()",
        "logging.StreamHandler()",
        "traceback.print_exc()",
        "sys.exit(f'no {name}')",
        "raise SystemExit('no')",
        "os.write(2, name)",
    ],
)
def test_the_guard_finds_what_prints(source: str) -> None:
    assert list(_printing_calls(ast.parse(source)))


def test_a_process_that_umount_names_is_shown_clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The name that a process gives itself (prctl PR_SET_NAME) may be any 15 bytes."""
    Path(tmp_path / "comm").write_bytes(b"\x1b[2J\nmount ok\x9b\n")
    name = users._name(tmp_path)
    assert _is_clean(name)
    assert "\n" not in name


def test_every_module_is_looked_at() -> None:
    assert len(list(_PACKAGE.rglob("*.py"))) > 80
    assert os.path.exists(output.__file__)
