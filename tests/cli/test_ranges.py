"""Numbers on the command line and in settings are numbers."""

from __future__ import annotations

import click
import pytest

from mirrorfs.cli.main import main
from mirrorfs.cli.ranges import FiniteRange


def _ranges() -> list[tuple[str, click.Option]]:
    assert isinstance(main, click.Group)
    context = click.Context(main)
    commands = {name: main.get_command(context, name) for name in main.list_commands(context)}
    # The groups' own commands too.
    for name, command in list(commands.items()):
        if isinstance(command, click.Group):
            inner_names = command.list_commands(context)
            commands.update({f"{name} {inner}": command.get_command(context, inner) for inner in inner_names})
    return [
        (name, parameter)
        for name, command in commands.items()
        if command is not None
        for parameter in command.params
        if isinstance(parameter, click.Option) and isinstance(parameter.type, click.types.FloatParamType)
    ]


def test_the_ranges_of_settings_are_among_them() -> None:
    assert {"--retention-max-delete-fraction", "--verify-percent-per-day"} <= {one.opts[0] for _, one in _ranges()}


@pytest.mark.parametrize(("command", "option"), _ranges(), ids=lambda value: getattr(value, "name", value))
@pytest.mark.parametrize("text", ["nan", "-nan", "inf", "-inf", "1e999"])
def test_what_is_no_finite_number_is_refused(command: str, option: click.Option, text: str) -> None:
    with pytest.raises(click.BadParameter):
        option.type.convert(text, option, None)


@pytest.mark.parametrize("text", ["-1", "100.1", "100000"])
def test_no_more_than_the_whole_mirror_is_read_in_a_day(text: str) -> None:
    option = next(one for _, one in _ranges() if one.opts[0] == "--verify-percent-per-day")
    assert option.type.convert("100", option, None) == 100.0
    with pytest.raises(click.BadParameter, match="range"):
        option.type.convert(text, option, None)


@pytest.mark.parametrize(("text", "number"), [("0.5", 0.5), ("1", 1.0), ("1e-3", 0.001)])
def test_a_number_in_the_range_is_taken(text: str, number: float) -> None:
    assert FiniteRange(0.0, 1.0, min_open=True).convert(text, None, None) == number
