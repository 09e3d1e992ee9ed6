"""Taking secrets out of a text that somebody will send to somebody else."""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Iterable, Mapping

_KEYS_OF_SERVICES = "/etc/mirrorfs/credentials"
TAKEN_OUT = "(taken out)"
_TELLING = r"(?:secret|passw|token|credential|signature|private|access_key)"
_PATTERNS = (
    # name = value, "name": "value", name: value, ?X-Amz-Signature=value
    re.compile(rf"""(?i)([\w.-]*{_TELLING}[\w.-]*["']?\s*[=:]\s*["']?)([^\s"'&,]+)"""),
    # Authorization: Bearer value
    re.compile(r"""(?i)(\b(?:authorization["']?\s*[=:]\s*["']?(?:\w+\s+)?|bearer\s+))([^\s"',]+)"""),
    # https://user:password@host
    re.compile(r"(://)([^/\s@\"']+)(?=@)"),
    re.compile(r"()\b((?:AKIA|ASIA)[0-9A-Z]{16})\b"),
)
_SHORTEST = 6


class Secrets:
    """Knows the keys that this machine has, by the environment and the files of boto3's, and how others look."""

    def __init__(self, environment: Mapping[str, str], known: Iterable[str] = ()) -> None:
        """Read what there is to be read; a file that cannot be is about no secret that could come out here. `known` are
        further values that may be one.
        """
        self._values = {value for name, value in environment.items() if re.search(f"(?i){_TELLING}", name)}
        for variable, usual in (("AWS_SHARED_CREDENTIALS_FILE", "credentials"), ("AWS_CONFIG_FILE", "config")):
            for path in (environment.get(variable), os.path.expanduser(f"~/.aws/{usual}"), _KEYS_OF_SERVICES):
                self._values |= set() if path is None else _values_in(path)
        self._values |= set(known)
        self._values = {value for value in self._values if len(value) >= _SHORTEST and not os.path.exists(value)}

    def without(self, text: str) -> str:
        """Return the text without them."""
        for value in sorted(self._values, key=len, reverse=True):
            text = text.replace(value, TAKEN_OUT)
        for pattern in _PATTERNS:
            text = pattern.sub(rf"\g<1>{TAKEN_OUT}", text)
        return text


def _values_in(path: str) -> set[str]:
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read(path)
    except (configparser.Error, OSError, UnicodeDecodeError):
        return set()
    return {
        value
        for section in parser.sections()
        for name, value in parser.items(section)
        if name.startswith("aws_") or re.search(_TELLING, name)
    }
