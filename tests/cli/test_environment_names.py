"""Each option has a variable, named after the command and the long option."""

from __future__ import annotations

import click
import pytest

from mirrorfs.cli.main import main

_ROOT = click.Context(main, info_name="mirrorfs", auto_envvar_prefix="MIRRORFS")


def _options() -> list[tuple[str, str, str]]:
    assert isinstance(main, click.Group)
    found = []
    for name in main.list_commands(_ROOT):
        command = main.get_command(_ROOT, name)
        assert command is not None
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                long = next(option for option in parameter.opts if option.startswith("--"))
                found.append((name, long, parameter.name or ""))
    return found


def test_the_variables_the_guide_names_are_among_them() -> None:
    expected = {("mount", "--to"), ("mount", "--options"), ("status", "--json"), ("restore", "--snapshot")}
    assert expected <= {(command, long) for command, long, _ in _options()}


@pytest.mark.parametrize(("command_name", "long", "parameter_name"), _options())
def test_its_name(command_name: str, long: str, parameter_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(main, click.Group)
    command = main.get_command(_ROOT, command_name)
    assert command is not None
    option = next(parameter for parameter in command.params if parameter.name == parameter_name)
    variable = f"MIRRORFS_{command_name}_{long.removeprefix('--')}".replace("-", "_").upper()
    monkeypatch.setenv(variable, "value")
    context = click.Context(command, info_name=command_name, parent=_ROOT)
    assert option.resolve_envvar_value(context) == "value", f"{variable} is not heard"
