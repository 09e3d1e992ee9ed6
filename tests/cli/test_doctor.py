"""A report of a fault has what is needed, and no secret."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs import versions
from mirrorfs.cli import doctor, secrets, settings_file
from mirrorfs.cli.main import main
from mirrorfs.cli.secrets import TAKEN_OUT, Secrets

_KEY = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
_HOOK = "https://hooks.example/services/T0/B0/x9"


def test_keys_that_are_known_are_taken_out_wherever_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_KEYS_OF_SERVICES", str(tmp_path / "none"))
    credentials = tmp_path / "credentials"
    credentials.write_text(f"[default]\naws_access_key_id = my-odd-id\naws_secret_access_key = {_KEY}\n")
    known = Secrets(
        {
            "HOME": "/root",
            "AWS_SHARED_CREDENTIALS_FILE": str(credentials),
            "AWS_SESSION_TOKEN": "ses/sion=token",
            "AWS_REGION": "eu-central-1",
        }
    )
    for text in (f"x{_KEY}y", "id my-odd-id", "ses/sion=token"):
        taken = known.without(text)
        assert TAKEN_OUT in taken
        assert not any(value in taken for value in (_KEY, "my-odd-id", "ses/sion=token"))
    assert known.without(f"the file {credentials} in eu-central-1") == f"the file {credentials} in eu-central-1"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ('"secret_key": "abc123"', "abc123"),
        ("AWS_SECRET_ACCESS_KEY=abc123", "abc123"),
        ("password: abc123", "abc123"),
        ("proxy = http://me:abc123@proxy:3128", "abc123"),
        ("https://s/b?X-Amz-Credential=abc123&X-Amz-Signature=def456&x=1", "abc123"),
        ("https://s/b?X-Amz-Credential=abc123&X-Amz-Signature=def456&x=1", "def456"),
        ('["curl", "-H", "Authorization: Bearer abc123"]', "abc123"),
        ("Authorization: abc123", "abc123"),
        ("key AKIAIOSFODNN7EXAMPLE is refused", "AKIAIOSFODNN7EXAMPLE"),
    ],
)
def test_what_looks_like_a_secret_is_taken_out(text: str, secret: str) -> None:
    assert secret not in Secrets({}).without(text)


def test_a_disk_that_hangs_costs_one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs() -> Iterator[str]:
        yield f"process {os.getpid()}"
        signal.pause()

    monkeypatch.setattr(doctor, "_SILENT_SECONDS", 1.0)
    monkeypatch.setattr(doctor, "_PARTS", (("state", hangs), ("logs", lambda: iter(["all is well"]))))
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0
    found = re.fullmatch(
        r"\n== state\nprocess (\d+)\n\(nothing more for 1 s: does a disk hang\?.*\)\n\n== logs\nall is well\n",
        result.output,
    )
    assert found is not None, result.output
    assert not Path(f"/proc/{found[1]}").exists()


@given(st.text())
def test_taking_out_twice_takes_out_nothing_more(text: str) -> None:
    known = Secrets({"MY_TOKEN": "0123456789"})
    once = known.without(text)
    assert "0123456789" not in once
    assert len(known.without(once)) <= len(once) + len(TAKEN_OUT) * once.count(TAKEN_OUT)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees what there is to tell")
def test_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    etc, state = tmp_path / "etc", tmp_path / "state"
    (state / "store1").mkdir(parents=True)
    etc.mkdir()
    for module in (doctor, settings_file):
        monkeypatch.setattr(module, "SETTINGS_BASE", str(etc))
    monkeypatch.setattr(doctor, "DEFAULT_BASE", str(state))
    monkeypatch.setattr(doctor, "running_mounts", list)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", _KEY)
    (etc / "store1.toml").write_text(
        '# a comment\ndatastore = "/srv/store1"\nproxy = "http://me:abc123@proxy"\n'
        f'[notify]\ncommand = [\n  "/usr/bin/curl",\n  "{_HOOK}"\n]\n'
    )
    (etc / "broken.toml").write_text("= \n")
    (etc / "credentials").write_text("[default]\n")
    (state / "store1" / "mirrorfs.log").write_text("old\n" * 500 + f"refused {_KEY} \x1b[2J\ncannot reach {_HOOK}\n")
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 0, done.output
    for heading in (
        "versions",
        "machine",
        "environment",
        "mount table",
        "settings",
        "mounts",
        "state",
        "logs",
        "service",
    ):
        assert f"\n== {heading}\n" in done.output
    assert 'datastore = "/srv/store1"' in done.output
    assert "AWS_SECRET_ACCESS_KEY is set" in done.output
    assert f"refused {TAKEN_OUT} \\x1b[2J" in done.output
    assert '"/usr/bin/curl"' in done.output
    assert f"cannot reach {TAKEN_OUT}" in done.output
    assert done.output.count("old\n") == 198
    assert "could not be told" not in done.output
    assert not any(secret in done.output for secret in (_KEY, _HOOK, "abc123", "\x1b", "a comment"))


def test_one_part_that_fails_does_not_cost_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SETTINGS_BASE", str(tmp_path / "none"))
    monkeypatch.setattr(doctor, "_PARTS", (("settings", doctor._settings), ("environment", doctor._environment)))
    monkeypatch.setattr(doctor, "require_root", lambda _: None)
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 0
    assert "(could not be told: " in done.output
    assert "== environment" in done.output


class TestVersions:
    def test_they_are_shown(self) -> None:
        done = CliRunner().invoke(main, ["--version"])
        assert done.exit_code == 0
        first, second = done.output.splitlines()
        assert re.fullmatch(r"mirrorfs [0-9.]+, commit ([0-9a-f]{40,64}|unknown)", first)
        for name in ("Python", "Linux", "boto3", "lmdb", "pyfuse3", "trio"):
            assert re.search(rf"\b{name} [0-9]", second)

    @pytest.mark.parametrize("kind", ["built", "branch", "packed", "detached", "none", "nonsense"])
    def test_the_commit_is_found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
        package, git, commit = tmp_path / "mirrorfs", tmp_path / ".git", "0123456789abcdef" * 2 + "01234567"
        (git / "refs" / "heads").mkdir(parents=True)
        package.mkdir()
        monkeypatch.setattr(versions, "_PACKAGE", package)
        match kind:
            case "built":
                (package / "commit").write_text(f"{commit}\n")
            case "branch":
                (git / "HEAD").write_text("ref: refs/heads/main\n")
                (git / "refs" / "heads" / "main").write_text(f"{commit}\n")
            case "packed":
                (git / "HEAD").write_text("ref: refs/heads/main\n")
                (git / "packed-refs").write_text(
                    f"# pack-refs\n{commit[::-1]} refs/heads/a\n{commit} refs/heads/main\n"
                )
            case "detached":
                (git / "HEAD").write_text(f"{commit}\n")
            case "nonsense":
                (git / "HEAD").write_text("ref: refs/heads/../../x\n")
        assert versions.commit() == (None if kind in ("none", "nonsense") else commit)
