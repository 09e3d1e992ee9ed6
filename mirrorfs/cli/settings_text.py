"""The settings as text: the reference docs/settings.md, and the commented file that `mirrorfs config init` writes."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping

import click

from mirrorfs.cli.setting import Setting, TakesEffect
from mirrorfs.cli.settings_file import DATASTORE_KEY

_LINE = 100

REFERENCE_BEGINNING = """\
# Settings

This page is made from the options of `mirrorfs mount` by `scripts/settings-reference`.
A test compares them.

`mirrorfs config init DATASTORE` writes the settings of a datastore to /etc/mirrorfs/NAME.toml.
NAME is then what the datastore is called: `mirrorfs status NAME`.
`mirrorfs config check NAME` tests them against the real store.
`mirrorfs config show NAME` prints what holds, and where each value comes from.

- The file is TOML. It belongs to root, and nobody else may write to it. No credentials stand in it.
- `datastore` is the absolute path of the datastore. It stands before the first table.
- A key is the long option without its dashes; `_` is as good as `-`.
- The command line wins over the environment, the environment over the file.
- The variable of a setting is `MIRRORFS_MOUNT_` and the option, in capitals, with underscores.
- An unknown key is an error that names the nearest one there is.
- Durations: `90s`, `30m`, `12h`, `30d`, `2w`.
- Rates: `20 MiB/s`, `160 Mbit/s`, `500k`, `1.5G`. `k`, `M`, `G` are powers of 1000.
- `mirrorfs reload NAME` has a mount read them again, and says what waits for the next mount.
"""


def reference(settings: Iterable[Setting]) -> str:
    """Return docs/settings.md."""
    lines = [REFERENCE_BEGINNING]
    for section, members in _by_section(settings).items():
        lines += ["## In the file" if section is None else f"## Table [{section}]", ""]
        for setting in members:
            lines += [f"### {setting.full_key}", "", *textwrap.wrap(setting.help or "", _LINE), ""]
            lines += [f"- option: `--{setting.long}`", f"- values: {setting.values}"]
            lines += [f"- default: {_shown_default(setting)}", f"- a change holds {setting.takes_effect.value}", ""]
    return "\n".join(lines).rstrip() + "\n"


def _shown_default(setting: Setting) -> str:
    if setting.required:
        return "none, it must be set"
    return f"`{setting.written_default}`" if setting.written_default else "not set"


def _by_section(settings: Iterable[Setting]) -> Mapping[str | None, list[Setting]]:
    """Group them by table, those of none first, as a TOML file must have them."""
    groups: dict[str | None, list[Setting]] = {None: []}
    for setting in settings:
        groups.setdefault(setting.section, []).append(setting)
    return groups


def commented_file(datastore: str, name: str, settings: Iterable[Setting], given: Mapping[str, list[str]]) -> str:
    """Return a settings file with every key; those that are not `given`, by long option, as comments.

    Raises ValueError for a value that cannot stand in such a file.
    """
    lines = [
        f"# How mirrorfs mirrors {datastore}.",
        f"# Test it: mirrorfs config check {name}. Have a mount take a change: mirrorfs reload {name}.",
        '# A key that is commented out has the default that stands there; "" is not set.',
        "",
        f"{DATASTORE_KEY} = {_written(datastore)}",
    ]
    for section, members in _by_section(one for one in settings if one.takes_effect is not TakesEffect.ONCE).items():
        lines += [] if section is None else ["", f"[{section}]"]
        for setting in members:
            about = f"{setting.help} Values: {setting.values}."
            lines += ["", *textwrap.wrap(about, _LINE, initial_indent="# ", subsequent_indent="# ")]
            lines.append(_line(setting, given.get(setting.long)))
    return "\n".join(lines) + "\n"


def _line(setting: Setting, given: list[str] | None) -> str:
    if given is None:
        return f"# {setting.key} = {_literal(setting, setting.written_default)}"
    if setting.multiple:
        return f"{setting.key} = [{', '.join(map(_written, given))}]"
    return f"{setting.key} = {_literal(setting, given[-1])}"


def _literal(setting: Setting, value: str) -> str:
    if setting.is_flag:
        return value
    match setting.type:
        case click.IntRange() if value:
            return str(int(value))
        case click.FloatRange() if value:
            return str(float(value))
    return _written(value)


def _written(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"{text!r} has a character that cannot stand in a settings file")
    return json.dumps(text, ensure_ascii=False)
