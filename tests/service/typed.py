"""Whoever types the lines of a document into a shell in a Debian, as they stand there."""

from __future__ import annotations

import shlex
from collections.abc import Callable

_EXAMPLE_ENDPOINT = "https://s3.example.com"


class Typist:
    """Types into a shell in a directory. Nothing in a line is replaced but the address of the store."""

    def __init__(self, run: Callable[..., str], endpoint_url: str = "", directory: str = "/root") -> None:
        self._run, self._endpoint_url = run, endpoint_url
        self._before = [f"cd {directory}"]

    def literally(self, *lines: str, input_file: str = "/dev/null", terminal_editor: str | None = None) -> str:
        """Type lines, each of which must succeed; returns what they have printed.

        `input_file` is what they read; with `terminal_editor` they have a terminal, and that as editor.
        """
        printed = ""
        for line in lines:
            typed = line.replace(_EXAMPLE_ENDPOINT, self._endpoint_url)
            if terminal_editor is not None:
                typed = f"SYSTEMD_EDITOR={terminal_editor} script -qec {shlex.quote(typed)} /dev/null"
            script = "\n".join([*self._before, typed])
            printed += self._run("bash", "-e", "-o", "pipefail", "-c", f"exec <{input_file}\n{script}")
            # What a line exports holds for those that follow.
            self._before += [line] if line.startswith("export ") else []
        return printed
