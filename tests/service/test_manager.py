"""What systemd is told, played by a program in its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mirrorfs.cli import uninstall
from mirrorfs.cli.errors import Failure
from mirrorfs.service import installation, manager
from mirrorfs.service.manager import ManagerFailed

Play = Callable[[str], Path]


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Has a shell script in the place of systemctl, and gives the file in which it notes its arguments."""

    def play(script: str) -> Path:
        program, told = tmp_path / "systemctl", tmp_path / "told"
        program.write_text(f'#!/bin/sh\necho "$@" >> {told}\n{script}\n')
        program.chmod(0o755)
        monkeypatch.setattr(manager, "_SYSTEMCTL", str(program))
        monkeypatch.setattr(manager, "is_running", lambda: True)
        return told

    return play


def test_it_is_told(systemctl: Play) -> None:
    told = systemctl("")
    manager.reload()
    manager.stop_all_but_the_mount("store1")
    units = "mirrorfs-drill@store1.timer mirrorfs-verify@store1.timer mirrorfs-web@store1.service"
    assert told.read_text() == f"daemon-reload\nstop {units}\n"


def test_what_it_answers_is_told(systemctl: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    systemctl("echo no bus >&2; exit 1")
    with pytest.raises(ManagerFailed, match=r"^'systemctl daemon-reload' failed: no bus$"):
        manager.reload()
    monkeypatch.setattr(manager, "_SYSTEMCTL", "/none/systemctl")
    with pytest.raises(ManagerFailed, match="could not be run"):
        manager.reload()


def test_a_timer_that_cannot_be_stopped_keeps_nothing_from_being_taken_away(
    systemctl: Play, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken: list[str] = []

    def take_away(_root: str, name: str) -> list[str]:
        taken.append(name)
        return []

    monkeypatch.setattr(installation, "is_installed", lambda _root, _name: True)
    monkeypatch.setattr(installation, "uninstall", take_away)
    monkeypatch.setattr(installation, "leftovers", lambda _root, _name: [])
    told = systemctl('[ "$1" = daemon-reload ] || { echo not loaded >&2; exit 5; }')
    uninstall._take_away("/", "store1")
    assert taken == ["store1"]
    assert told.read_text().endswith("\ndaemon-reload\n")
    assert "not loaded" in capsys.readouterr().err
    systemctl("exit 1")
    with pytest.raises(Failure, match="Run 'systemctl daemon-reload"):
        uninstall._take_away("/", "store1")
