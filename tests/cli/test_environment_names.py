"""Each option has a variable, named after the command and the long option."""

from __future__ import annotations

import click
import pytest

from mirrorfs.cli import mount
from mirrorfs.cli.errors import Failure
from mirrorfs.cli.main import main
from mirrorfs.cli.mount_helper import mount_arguments
from mirrorfs.cli.setting import Setting, TakesEffect

_ROOT = click.Context(main, info_name="mirrorfs", auto_envvar_prefix="MIRRORFS")


def _options() -> list[tuple[str, str, str]]:
    assert isinstance(main, click.Group)
    found = []
    for name in main.list_commands(_ROOT):
        command = main.get_command(_ROOT, name)
        assert command is not None
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not _is_for_one_start(parameter):
                long = next(option for option in parameter.opts if option.startswith("--"))
                found.append((name, long, parameter.name or ""))
    return found


def _is_for_one_start(option: click.Parameter) -> bool:
    return isinstance(option, Setting) and option.takes_effect is TakesEffect.ONCE


def test_what_is_for_one_start_is_not_taken_from_what_is_there_at_every_start(monkeypatch: pytest.MonkeyPatch) -> None:
    context = click.Context(mount.command, info_name="mount", parent=_ROOT)
    for_one_start = [option for option in mount.command.params if _is_for_one_start(option)]
    assert {option.name for option in for_one_start} == {"foreground", "take_over", "allow_removals"}
    for option in for_one_start:
        assert option.name is not None
        monkeypatch.setenv(f"MIRRORFS_MOUNT_{option.name.upper()}", "1")
        assert option.resolve_envvar_value(context) is None


@pytest.mark.parametrize("word", ["take-over", "allow-removals", "allow-removals=1"])
def test_what_is_for_one_start_cannot_stand_in_fstab(word: str) -> None:
    assert mount_arguments("/srv/store1", "/srv/store1", ["verbose"])[-1] == "--verbose"
    with pytest.raises(Failure, match="is for one start only"):
        mount_arguments("/srv/store1", "/srv/store1", ["verbose", word])


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
