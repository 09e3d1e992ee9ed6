"""A command and a mail get the event whole, in time, without a shell and without secrets; what fails is a sentence."""

from __future__ import annotations

import email
import email.policy
import json
import os
from pathlib import Path

import pytest
import trio

from mirrorfs.notification import delivery
from mirrorfs.notification.delivery import NotDelivered, Way, ways
from mirrorfs.notification.event import Kind, event_of, trial_event
from mirrorfs.replication.verdict import Verdict, Word
from mirrorfs.supervision.settings import NotifySettings
from tests.ends_of_processes import ends_within

HOSTILE = "/srv/a\nBcc: everybody@example.com\x1b[2J; rm -rf / $(id) \u202e"
EVENT = event_of(Kind.BROKEN, HOSTILE, Verdict(Word.BROKEN, "It is broken.", "Mend it."))


def _program(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def _tell(way: Way) -> None:
    trio.run(way.tell, EVENT)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory of root's, as the way to it is."""
    return tmp_path


def test_a_command_gets_the_event_and_nothing_of_ours(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    program = _program(place / "tell", f'cat >{place}/in; env >{place}/env; echo "$1" "$#" >{place}/arguments')
    (way,) = ways(NotifySettings(command=(program, "a b; $(id)")))
    _tell(way)
    told = json.loads((place / "in").read_text())
    assert (told["event"], told["why"], told["to_do"]) == ("broken", "It is broken.", "Mend it.")
    assert told["datastore"] == "/srv/a\\nBcc: everybody@example.com\\x1b[2J; rm -rf / $(id) \\u202e"
    variables = dict(line.split("=", 1) for line in (place / "env").read_text().splitlines())
    assert variables["MIRRORFS_EVENT"] == "broken"
    assert variables["MIRRORFS_DATASTORE"] == told["datastore"]
    assert "secret" not in variables.values()
    assert (place / "arguments").read_text() == "a b; $(id) 1\n"


def test_a_mail_has_one_receiver_and_no_header_of_somebody_elses(place: Path) -> None:
    program = _program(place / "sendmail", f'cat >{place}/mail; echo "$@" >{place}/arguments')
    (way,) = ways(NotifySettings(mail="admin@example.com"), sendmail=program)
    _tell(way)
    mail = email.message_from_bytes((place / "mail").read_bytes(), policy=email.policy.default)
    assert mail["To"] == "admin@example.com"
    assert mail["Bcc"] is None
    assert "is broken" in mail["Subject"]
    assert "It is broken.\nMend it." in mail.get_body().get_content()  # type: ignore[union-attr]
    assert (place / "arguments").read_text() == "-t -i\n"


def test_what_it_prints_is_logged_and_bounded(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    _tell(Way("command", (_program(place / "tell", "echo hello >&2; yes | head -c 1000000"),)))
    assert "notify.command says: hello" in caplog.text
    assert len(caplog.records) <= 50


def test_one_that_hangs_is_ended_with_what_it_has_started(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "SECONDS", 1.0)
    program = _program(place / "tell", f"sleep 600 & echo $! >{place}/child; wait")
    with pytest.raises(NotDelivered, match="was ended, since it ran for 1 s"):
        _tell(Way("command", (program,)))
    # Only that it has been killed is to be waited for: by itself it ends much later.
    assert ends_within(int((place / "child").read_text()), 60)


def test_what_it_leaves_running_is_not_waited_for(place: Path) -> None:
    _tell(Way("command", (_program(place / "tell", f"sleep 600 & echo $! >{place}/child"),)))
    os.kill(int((place / "child").read_text()), 9)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [("exit 3", r"has failed \(exit code 3\)"), ("echo no route; kill -9 $$", r"\(signal 9\): no route")],
)
def test_one_that_fails_is_told(place: Path, body: str, sentence: str) -> None:
    with pytest.raises(NotDelivered, match=sentence):
        _tell(Way("command", (_program(place / "tell", body),)))


def test_what_is_not_roots_own_or_no_program_is_not_run(place: Path) -> None:
    program = Path(_program(place / "tell", f"touch {place}/run"))
    program.chmod(0o777)
    with pytest.raises(NotDelivered, match="others may write to it"):
        _tell(Way("command", (str(program),)))
    program.chmod(0o755)
    os.chown(program, 1000, 1000)
    with pytest.raises(NotDelivered, match="not run as root"):
        _tell(Way("command", (str(program),)))
    os.chown(program, 0, 0)
    program.chmod(0o644)
    with pytest.raises(NotDelivered, match="it is no program"):
        _tell(Way("command", (str(program),)))
    with pytest.raises(NotDelivered, match="cannot run /nowhere/tell: No such file"):
        _tell(Way("command", ("/nowhere/tell",)))
    with pytest.raises(NotDelivered, match="it is no program"):
        _tell(Way("command", (str(place),)))
    (place / "open").mkdir()
    inside = _program(place / "open" / "tell", "true")
    (place / "open").chmod(0o777)
    with pytest.raises(NotDelivered, match="not run as root"):
        _tell(Way("command", (inside,)))
    assert not (place / "run").exists()


def _refuses(program: Path) -> None:
    with pytest.raises(NotDelivered, match="is not run as root"):
        _tell(Way("command", (str(program),)))


def test_what_others_could_exchange_is_not_run(place: Path) -> None:
    good = Path(_program(place / "tell", f"touch {place}/run"))
    good.chmod(0o775)
    os.chown(good, 0, 1000)
    _refuses(good)
    good.chmod(0o755)
    theirs = place / "theirs"
    theirs.mkdir()
    (theirs / "link").symlink_to(good)
    (place / "link").symlink_to(theirs / "link")
    theirs.chmod(0o777)
    _refuses(theirs / "link")
    _refuses(place / "link")
    assert not (place / "run").exists()
    theirs.chmod(0o755)
    _tell(Way("command", (str(place / "link"),)))
    assert (place / "run").exists()


def test_a_link_is_run_by_what_it_leads_to_and_keeps_its_name(place: Path) -> None:
    (place / "sendmail").symlink_to("/bin/bash")
    _tell(
        Way("command", (str(place / "sendmail"), "-c", f'echo "$0" >{place}/name; readlink /proc/$$/exe >{place}/exe'))
    )
    assert (place / "name").read_text() == f"{place}/sendmail\n"
    assert (place / "exe").read_text() == f"{os.path.realpath('/bin/bash')}\n"


def test_nothing_set_is_nobody_told() -> None:
    assert ways(NotifySettings()) == []
    assert not NotifySettings().is_set
    assert trial_event("/srv/a").event == "test"
