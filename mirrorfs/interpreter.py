"""How mirrorfs starts another Python process: with nothing in it that depends on where somebody stands.

Python puts the working directory in front of its path for `-m` and `-c`, and takes more places from PYTHON* variables.
A directory that root happens to stand in may belong to anybody: a file `lmdb.py` in it would run as root. So each
interpreter is started with the arguments, the environment and the working directory of this module, all three.
"""

from __future__ import annotations

import os
import sys

WORKING_DIRECTORY = "/"

# Names of files for boto3 and OpenSSL that a user may have given relative to where he stands.
_PATHS = ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")


def command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of mirrorfs by the interpreter of this process.

    `-P`: neither the working directory nor the script's is looked into for modules.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """Return the environment for `command`: that of this process without PYTHON*, files of boto3's by absolute path.

    A path that begins with `~` is left to boto3, which knows that.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    relative = {name: inherited[name] for name in _PATHS if inherited.get(name, "~")[:1] not in ("", "~", "/")}
    return {**inherited, **{name: os.path.abspath(value) for name, value in relative.items()}}


def program(name: str) -> str:
    """Return the path of a command of mirrorfs that was installed together with this interpreter."""
    return os.path.join(os.path.dirname(os.path.abspath(sys.executable)), name)
