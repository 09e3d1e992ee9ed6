"""The metrics as text: the reference docs/metrics.md."""

from __future__ import annotations

import textwrap

from mirrorfs.supervision.metrics import MirrorCollector

_LINE = 100
_BEGINNING = """\
# Metrics

This page is made from the code by `scripts/metrics-reference`. A test compares them.

`mirrorfs metrics` prints or serves them: see [Operating](operating.md#metrics). Each has the label
`datastore`. What the uploader knows is missing while it does not answer.
"""


def reference() -> str:
    """Return docs/metrics.md."""
    lines = [_BEGINNING]
    for metric in sorted(MirrorCollector(list).collect(), key=lambda one: one.name):
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        labels = [label for label in getattr(metric, "_labelnames", ()) if label != "datastore"]
        more = f", with {' and '.join(f'`{label}`' for label in labels)}" if labels else ""
        text = f"A {metric.type}{more}. {metric.documentation}"
        lines += [f"## {name}", "", *textwrap.wrap(text, _LINE, break_long_words=False, break_on_hyphens=False), ""]
    return "\n".join(lines).rstrip() + "\n"
