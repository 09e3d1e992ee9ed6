"""Each setting takes effect when the reference says so, and a reload is answered."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from mirrorfs.cli import mount, settings_file
from mirrorfs.cli.setting import TakesEffect, settings_of
from mirrorfs.supervision.changes import GIVEN_BY_THE_MOUNT, Changes, changes
from mirrorfs.supervision.settings import MountSettings

SETTINGS = settings_of(mount.command)
# A value that is not the default, as it stands in the file.
OTHERS = {
    "to": '"s3://backups/other"', "endpoint-url": '"https://s3.example.org"', "profile": '"other"',
    "region": '"eu-west-3"', "addressing-style": '"path"', "proxy": '"http://proxy.example:3128"',
    "ca-bundle": '"/etc/own.pem"', "fingerprint": f'"{"ab" * 32}"', "connect-timeout": '"3s"', "read-timeout": '"2m"',
    "request-timeout": "17", "slowest-rate": '"8 KiB/s"', "checksums": '"off"', "encryption": '"AES256"',
    "kms-key-id": '"key"\nencryption = "aws:kms"', "chunk-storage-class": '"STANDARD_IA"', "storage-class": '"OTHER"',
    "mountpoint": '"/mnt/other"', "state-dir": '"/var/lib/other"', "parallel": "16", "nice": "0",
    "disk-priority": '"idle"', "retry-ceiling": '"5m"', "require-store": "true", "retention-delete-after": '"30d"',
    "retention-max-delete-fraction": "0.5", "retention-unseen-after": '"2d"', "retention-lock-for": '"30d"',
    "bandwidth-up": '["07:00-19:00 20 MiB/s", "50 MiB/s"]', "bandwidth-down": '"20 MiB/s"',
    "bandwidth-requests": '"100/s"', "chunk-store": '"fuse"', "options": '["noatime"]', "while-in-use": "true",
    "verbose": "true", "verify-percent-per-day": "5", "workers": "3",
    "notify-command": '["/usr/bin/logger", "-t", "mirrorfs"]', "notify-mail": '"root"',
    "notify-behind-after": '"2h"', "notify-after": '"1m"', "log-format": '"json"',
}  # fmt: skip


def _understood(base: Path, text: str) -> MountSettings:
    base.joinpath("store1.toml").write_text(f'datastore = "/srv/store1"\n{text}\n')
    done = CliRunner().invoke(mount.command, ["store1", "--show-settings", str(base)])
    assert done.exit_code == 0, done.output
    return MountSettings.decode(done.output.encode())


@pytest.mark.parametrize(
    "setting",
    [setting for setting in SETTINGS.values() if setting.takes_effect not in (TakesEffect.ONCE, TakesEffect.PAGE)],
    ids=lambda setting: setting.long,
)
def test_it_takes_effect_as_the_reference_says(
    setting: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings_file, "SETTINGS_BASE", str(tmp_path))
    assert hasattr(setting, "long")
    known = SETTINGS[setting.long]
    to = "" if known.long == "to" else 'to = "s3://backups/store1"\n'
    before = _understood(tmp_path, 'to = "s3://backups/store1"')
    found = changes(before, _understood(tmp_path, f"{to}{known.long} = {OTHERS[known.long]}"))
    expected = {TakesEffect.AT_ONCE: found.at_once, TakesEffect.ANEW: found.anew, TakesEffect.MOUNT: found.wait}
    assert known.full_key in expected.pop(known.takes_effect)
    assert not any(expected.values())
    assert changes(before, before) == Changes()


def test_what_was_said_for_one_start_is_not_said_again_by_a_reload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings_file, "SETTINGS_BASE", str(tmp_path))
    before = _understood(tmp_path, 'to = "s3://backups/store1"')
    uploader = replace(before.uploader, take_over=True, allow_removals=True)
    assert changes(before, replace(before, uploader=uploader)) == Changes()
    assert {"take_over", "allow_removals"} <= set(GIVEN_BY_THE_MOUNT)


def test_settings_are_the_same_behind_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_file, "SETTINGS_BASE", str(tmp_path))
    text = "".join(f"{long} = {OTHERS[long]}\n" for long in SETTINGS if long in OTHERS and long != "encryption")
    understood = _understood(tmp_path, text)
    assert MountSettings.decode(json.dumps(asdict(understood)).encode()) == understood
