"""Alerts and dashboard ask for metrics that there are, with labels that these have."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mirrorfs.cli.metrics_text import reference
from mirrorfs.supervision.metrics import MirrorCollector

_CONTRIB = Path(__file__).parents[2] / "contrib"
_RULES = _CONTRIB / "prometheus-rules.yml"
_ALERTS = dict(re.findall(r"- alert: (\w+)\n\s+expr: (.+)\n", _RULES.read_text()))


def _expressions(value: Any) -> list[str]:  # noqa: ANN401
    if isinstance(value, list):
        return [expression for one in value for expression in _expressions(one)]
    if not isinstance(value, dict):
        return []
    own = [value["expr"]] if isinstance(value.get("expr"), str) else []
    return own + [expression for one in value.values() for expression in _expressions(one)]


_PANELS = _expressions(json.loads((_CONTRIB / "grafana-dashboard.json").read_text()))


def _known() -> set[str]:
    return {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in MirrorCollector(list).collect()
    }


def test_all_are_looked_at() -> None:
    assert len(_ALERTS) == _RULES.read_text().count("alert:") > 10
    assert len(_PANELS) > 10


@pytest.mark.parametrize("expression", [*_ALERTS.values(), *_PANELS])
def test_they_ask_for_what_there_is(expression: str) -> None:
    asked = set(re.findall(r"mirrorfs_\w+", expression))
    assert asked
    assert asked <= _known()


def test_the_documents_name_each_metric() -> None:
    assert (_CONTRIB.parent / "docs" / "metrics.md").read_text() == reference(), "run scripts/metrics-reference"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Debian's package prometheus has it")
def test_prometheus_understands_the_rules() -> None:
    done = subprocess.run(["promtool", "check", "rules", _RULES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
