"""The check of the dependencies fails for what is known to be vulnerable, and for nothing else."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distribution

import pytest

from tests import audit

_BAD = {"info": {"version": "1.0"}, "vulnerabilities": [{"id": "PYSEC-2"}, {"id": "PYSEC-1"}]}
_GOOD = {"info": {"version": "1.0"}, "vulnerabilities": [{"id": "PYSEC-3", "withdrawn": "2026-01-01T00:00:00Z"}]}
_ANSWERS = {
    "/pypi/bad/1.0/json": _BAD,
    "/pypi/good/1.0/json": _GOOD,
    "/pypi/newest-is-bad/json": _BAD,
    "/pypi/newest-is-good/json": _GOOD,
    "/pypi/newer/json": {"info": {"version": "2.0"}, "vulnerabilities": []},
}


class _Index(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        answer = _ANSWERS.get(self.path)
        status = 503 if "broken" in self.path else 404 if answer is None else 200
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode() if "nonsense" not in self.path else b"<html>")

    def log_message(self, *_: object) -> None:
        """Not to the terminal."""


@pytest.fixture(scope="module")
def index() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Index) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("package", "vulnerabilities", "unknown"),
    [
        ("bad", ("PYSEC-1", "PYSEC-2"), ""),
        ("good", (), ""),
        ("newest-is-bad", ("PYSEC-1", "PYSEC-2"), ""),
        ("newest-is-good", (), ""),
        ("newer", (), "tells only of 2.0"),
        ("missing", (), "not in the index"),
        ("broken", (), "does not answer"),
    ],
)
def test_what_the_index_says(index: str, package: str, vulnerabilities: tuple[str, ...], unknown: str) -> None:
    finding = audit.ask(index, package, "1.0")
    assert finding.vulnerabilities == vulnerabilities
    assert unknown in finding.unknown
    assert bool(unknown) == bool(finding.unknown)


def test_vulnerable_packages_fail_and_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    findings = [audit.Finding("bad", "1.0", ("PYSEC-1",)), audit.Finding("good", "1.0")]
    assert audit.report(findings) == 1
    assert "bad 1.0 is vulnerable: PYSEC-1" in capsys.readouterr().out


def test_what_is_accepted_does_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "ACCEPTED", {"PYSEC-1": "not reached"})
    assert audit.report([audit.Finding("bad", "1.0", ("PYSEC-1",))]) == 0
    assert audit.report([audit.Finding("bad", "1.0", ("PYSEC-1", "PYSEC-2"))]) == 1


def test_a_service_that_is_away_fails_nothing_and_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main("http://127.0.0.1:9") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "nothing is known" in line
    assert "does not answer" in line


def test_all_that_is_needed_is_asked_for(index: str, capsys: pytest.CaptureFixture[str]) -> None:
    packages = dict(audit._installed(distribution("mirrorfs"), {"", "test"}))
    assert {"boto3", "botocore", "urllib3", "lmdb", "click", "pytest", "hypothesis"} <= set(packages)
    assert audit.main(index) == 0
    assert "not in the index" in capsys.readouterr().out
