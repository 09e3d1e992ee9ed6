"""What is different between two settings of a mount, and when it can hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mirrorfs.supervision.settings import MountSettings

# What a mount is, and what it was told once: these last as long as it does.
LASTING = ("datastore", "state_directory", "bucket", "prefix", "log_format")
# What was taken over once is not taken back from whoever has taken it over since, and what is allowed to go was gone
# at the start: the arguments, read again, still say both.
GIVEN_BY_THE_MOUNT = ("root_descriptor", "journal_sequence", "take_over", "allow_removals")
_OF_THE_MOUNT = ("mountpoint", "mount_options", "require_store", "while_in_use", "chunk_store")
_AT_ONCE = "limits"
_OF_THE_NOTIFIER = "notify"
# Fields that are not called as the setting that they come from.
_KEYS = {
    "state_directory": "state-dir",
    "bucket": "to",
    "prefix": "to",
    "mount_options": "options",
    "verify_percent_per_day": "verify.percent-per-day",
}
_TABLES = {"store": "", "retention": "retention.", "limits": "bandwidth.", "notify": "notify."}


@dataclass(frozen=True, slots=True)
class Changes:
    """Keys of settings that are others: those that hold `at_once`, `anew` in an uploader that begins again, and those
    that `wait` for the next mount.
    """

    at_once: tuple[str, ...] = ()
    anew: tuple[str, ...] = ()
    wait: tuple[str, ...] = ()


def changes(before: MountSettings, after: MountSettings) -> Changes:
    """Compare what a mount has with what it would be told now."""
    old, new = asdict(before), asdict(after)
    uploader_old, uploader_new = old["uploader"], new["uploader"]
    waiting = _different({name: old[name] for name in _OF_THE_MOUNT}, new)
    waiting += _different({name: uploader_old[name] for name in LASTING}, uploader_new)
    kept = (*LASTING, *GIVEN_BY_THE_MOUNT, _AT_ONCE)
    return Changes(
        at_once=_different({_AT_ONCE: uploader_old[_AT_ONCE]}, uploader_new)
        + _different({_OF_THE_NOTIFIER: old[_OF_THE_NOTIFIER]}, new),
        anew=_different({name: value for name, value in uploader_old.items() if name not in kept}, uploader_new),
        wait=tuple(dict.fromkeys(waiting)),
    )


def _different(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, ...]:
    keys: list[str] = []
    for name, value in old.items():
        if name in _TABLES:
            keys += [f"{_TABLES[name]}{part.replace('_', '-')}" for part in value if value[part] != new[name][part]]
        elif value != new[name]:
            keys.append(_KEYS.get(name, name.replace("_", "-")))
    return tuple(keys)
