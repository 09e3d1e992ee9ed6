"""A real Prometheus takes the metrics of a real mirror, and answers every panel and every alert of contrib/."""

from __future__ import annotations

import json
import re
import select
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.mirrors import MirrorUnderTest

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="Debian's package prometheus has it")

_CONTRIB = Path(__file__).parents[2] / "contrib"
_READY = "Server is ready to receive web requests"
_SECONDS = 60.0


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def _await_line(process: subprocess.Popen[bytes], text: str) -> None:
    assert process.stderr is not None
    while select.select([process.stderr], [], [], _SECONDS)[0]:
        line = process.stderr.readline()
        assert line, f"it has ended with {process.wait()}"
        if text in line.decode():
            return
    raise AssertionError(f"it does not say {text!r}")


@contextmanager
def _running(*command: str, said: str, environment: dict[str, str] | None = None) -> Iterator[None]:
    process = subprocess.Popen(
        # Not buffered: what has been read is not seen by select(2) any more.
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    try:
        _await_line(process, said)
        yield
    finally:
        process.kill()
        process.communicate()


def _ask(port: int, path: str, **parameters: str) -> Any:  # noqa: ANN401
    url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=_SECONDS) as answer:
        return json.load(answer)["data"]


def _panels() -> dict[str, list[str]]:
    panels = json.loads((_CONTRIB / "grafana-dashboard.json").read_text())["panels"]
    return {panel["title"]: [target["expr"] for target in panel.get("targets", [])] for panel in panels}


def _as_grafana_asks(expression: str) -> str:
    """With "All" chosen, and what Grafana makes of the interval at which this Prometheus looks."""
    return re.sub(r"\$(__rate_interval|datastore)", lambda found: {"datastore": ".*"}.get(found[1], "4s"), expression)


def test_panels_and_alerts_are_answered(mirror: MirrorUnderTest) -> None:
    mirror.mount()
    with mirror.writer() as writer:
        writer.backup("vm/100")
    mirror.wait()
    here, there = _free_port(), _free_port()
    configuration = mirror.base / "prometheus.yml"
    shutil.copy(_CONTRIB / "prometheus-rules.yml", mirror.base / "rules.yml")
    configuration.write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
        "rule_files: [rules.yml]\n"
        f"scrape_configs: [{{job_name: mirrorfs, static_configs: [{{targets: ['127.0.0.1:{here}']}}]}}]\n"
    )
    exporter = [*mirror.program, "metrics", str(mirror.datastore), "--listen", f"127.0.0.1:{here}"]
    prometheus = ["prometheus", f"--config.file={configuration}", f"--storage.tsdb.path={mirror.base / 'tsdb'}"]
    with (
        _running(*exporter, said="serving metrics", environment=mirror.environment()),
        _running(*prometheus, f"--web.listen-address=127.0.0.1:{there}", said=_READY),
    ):
        # Nothing tells when it has looked often enough (a rate needs two looks), so it is asked each second.
        asked = [(title, expression) for title, expressions in _panels().items() for expression in expressions]
        # Nothing was drilled here: a drill would leave its note on this machine.
        unanswered = [entry for entry in asked if "mirrorfs_drill_last_timestamp_seconds" not in entry[1]]
        assert len(asked) - 1 == len(unanswered) > 10
        while unanswered:
            time.sleep(1)
            unanswered = [
                (title, expression)
                for title, expression in unanswered
                if not _ask(there, "query", query=_as_grafana_asks(expression))["result"]
            ]
        while True:
            (group,) = _ask(there, "rules")["groups"]
            if all(rule["health"] != "unknown" for rule in group["rules"]):
                break
            time.sleep(1)
        assert {rule["name"]: rule.get("lastError") for rule in group["rules"] if rule["health"] != "ok"} == {}
        active = {rule["name"]: rule["state"] for rule in group["rules"] if rule["state"] != "inactive"}
        assert active == {"MirrorfsNeverDrilled": "pending"}
