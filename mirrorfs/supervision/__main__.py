"""`python -m mirrorfs.supervision`: a mount in the background, as `mirrorfs mount` starts it; not to be called by hand.

Settings come as JSON on standard input; one line of JSON goes to standard output when it is known how it went:
{"ready": NOTE} or {"error": SENTENCE}. The log goes to standard error.
"""

from __future__ import annotations

import os
import sys

from mirrorfs.output import say_json
from mirrorfs.supervision.foreground import run_in_foreground
from mirrorfs.supervision.settings import MountSettings


def main() -> int:
    """Run the mount until it is gone."""
    settings = MountSettings.decode(sys.stdin.buffer.read())
    error = run_in_foreground(settings, lambda note: _answer({"ready": note}))
    if error is not None:
        _answer({"error": error})
        return 1
    return 0


def _answer(answer: dict[str, str]) -> None:
    if sys.stdout.closed:
        return
    say_json(answer)
    # Whoever started us has its answer, and may wait for the end of this pipe.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


if __name__ == "__main__":
    sys.exit(main())
