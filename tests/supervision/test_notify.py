"""The service manager hears how it is with the mount, and nobody else speaks for it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from mirrorfs.supervision.notify import READY, STOPPING, ServiceManager


@pytest.mark.parametrize("abstract", [False, True])
def test_it_hears_the_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = f"mirrorfs-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(5)
        listener.bind("\0" + name if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name if abstract else name)
        manager = ServiceManager()
        assert "NOTIFY_SOCKET" not in os.environ, "the uploader would inherit it"
        manager.tell(READY)
        manager.tell(STOPPING)
        assert [listener.recv(100), listener.recv(100)] == [b"READY=1", b"STOPPING=1"]


def test_nobody_there_and_a_full_queue_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    ServiceManager().tell(READY)
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        manager = ServiceManager()
        for _ in range(2000):
            manager.tell(READY)
    manager.tell(STOPPING)
