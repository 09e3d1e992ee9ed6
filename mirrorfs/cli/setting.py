"""What can be set of a mirror: each setting is one option, and everything else about it is made from that.

The option, the key of the settings file, the environment's variable, the line in `--help`, the row in docs/settings.md
and the comment in a file that `mirrorfs config init` writes have one source, so that they cannot differ.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, TypeVar

import click

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

SECTIONS = ("retention", "bandwidth", "verify", "notify", "web")
"""The first words of settings that stand in a table of that name in the file."""


class TakesEffect(Enum):
    """When a changed setting holds, after 'mirrorfs reload' or SIGHUP; the values are what people are told."""

    AT_ONCE = "at 'mirrorfs reload', at once"
    ANEW = "at 'mirrorfs reload': the uploader begins anew"
    MOUNT = "at the next mount"
    PAGE = "when the page's service is started again, after 'mirrorfs install'"
    ONCE = "on the command line of one start only, not in file or environment"


class Setting(click.Option):
    """An option of `mirrorfs mount` that may stand in the settings file."""

    def __init__(
        self,
        declarations: Sequence[str],
        *,
        takes_effect: TakesEffect = TakesEffect.ANEW,
        values: str | None = None,
        **attributes: Any,  # noqa: ANN401
    ) -> None:
        """`values`: what may stand there, where its type does not tell."""
        # The environment is there at every start, that of a service too.
        super().__init__(declarations, allow_from_autoenv=takes_effect is not TakesEffect.ONCE, **attributes)
        self.takes_effect = takes_effect
        self._values = values

    @property
    def long(self) -> str:
        """The long option without its dashes, under which the file knows it too."""
        return next(option for option in self.opts if option.startswith("--")).removeprefix("--")

    @property
    def section(self) -> str | None:
        """The table of the file that it stands in."""
        first, _, rest = self.long.partition("-")
        return first if rest and first in SECTIONS else None

    @property
    def key(self) -> str:
        """Its name in its table."""
        return self.long if self.section is None else self.long.removeprefix(f"{self.section}-")

    @property
    def full_key(self) -> str:
        """Its name in the file, with the table's."""
        return self.key if self.section is None else f"{self.section}.{self.key}"

    @property
    def values(self) -> str:
        """What may stand there: unit and range."""
        if self._values is not None:
            return self._values
        match self.type:
            case click.Choice(choices=choices):
                return ", ".join(choices)
            case click.IntRange(min=least, max=most):
                return f"a number, {least} to {most}"
            case click.types.BoolParamType():
                return "true or false"
            case _:
                return f"a {self.type.name}, {self.range}" if self.range else self.metavar or "text"

    @property
    def written_default(self) -> str:
        """The default as it stands in a file; nothing if there is none."""
        default = self.to_info_dict()["default"]
        if self.is_flag:
            return "true" if default else "false"
        return "" if default is None or self.multiple else str(default)

    def optional(self) -> Setting:
        """Return it for a command that only takes down what is given: without default, and not from the environment."""
        other = copy.copy(self)
        other.required, other.default, other.envvar, other.allow_from_autoenv = False, None, None, False
        return other

    @property
    def range(self) -> str:
        """The range of a type that has one of its own, else nothing."""
        return str(getattr(self.type, "range", ""))

    def get_help_extra(self, ctx: click.Context) -> Any:  # noqa: ANN401
        """Add the range to what `--help` says behind the sentence."""
        extra = super().get_help_extra(ctx)
        if self.range:
            extra["range"] = self.range
        return extra


def settings_of(command: click.Command) -> Mapping[str, Setting]:
    """Return the settings that a command takes, by their long options."""
    return {setting.long: setting for setting in command.params if isinstance(setting, Setting)}


def setting(*declarations: str, **attributes: Any) -> Callable[[Decorated], Decorated]:  # noqa: ANN401
    """Give a command a setting; as click.option."""
    return click.option(*declarations, cls=Setting, **attributes)
