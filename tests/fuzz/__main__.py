"""`scripts/soak --fuzz`: give each reader inputs of all kinds, for as long as one likes."""

from __future__ import annotations

import random
import sys
import time
import traceback

import click
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.readers import READERS, Reader

_EXAMPLES_AT_ONCE = 500


@click.command()
@click.option("--minutes", type=float, default=10.0, show_default=True, help="For how long.")
@click.option("--seed", "first_seed", type=int, help="Where to begin; the same seed gives the same inputs.")
@click.option("--reader", "names", multiple=True, type=click.Choice(sorted(READERS)), help="Only this one.")
def main(minutes: float, first_seed: int | None, names: tuple[str, ...]) -> None:
    """Give every parser and reader of mirrorfs inputs that others could have written, sound and spoiled.

    Each must give a value that holds what it promises, or raise the error that it documents, with a short message. What
    fails is told with the smallest input that was found.

    \b
    Examples:
      scripts/soak --fuzz
      scripts/soak --fuzz --minutes 120
      scripts/soak --fuzz --seed 7 --reader manifests

    Exit codes: 0 nothing was found, 1 something was, 2 wrong usage.
    """
    number = random.SystemRandom().randrange(2**31) if first_seed is None else first_seed
    over = time.monotonic() + 60 * minutes
    given_so_far = 0
    while True:
        for name in names or READERS:
            error = _fuzz(READERS[name], number)
            if error is not None:
                click.echo(f"{name} fails with --seed {number} --reader {name!r}:\n{error}", err=True)
                sys.exit(1)
            given_so_far += _EXAMPLES_AT_ONCE
            if time.monotonic() >= over:
                click.echo(f"{given_so_far} inputs, nothing found (last seed {number})")
                return
        click.echo(f"{given_so_far} inputs, nothing found yet (seed {number})")
        number += 1


def _fuzz(reader: Reader, number: int) -> str | None:
    limited = settings(
        max_examples=_EXAMPLES_AT_ONCE,
        deadline=None,
        database=None,
        print_blob=True,
        phases=(Phase.generate, Phase.shrink, Phase.explain),
        suppress_health_check=list(HealthCheck),
    )
    try:
        seed(number)(limited(given(reader.inputs)(reader.check)))()
    except Exception as error:  # noqa: BLE001 - whatever a reader raises is what is looked for
        return "".join(traceback.format_exception(error))
    return None


if __name__ == "__main__":
    main()
