"""Each line that a document has people type is run by a test as it stands there, or is known not to be, and why.

The source of the tests is the table: a line stands there as it stands in the document.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from mirrorfs.cli import settings_file
from mirrorfs.cli.mount import command as mount
from tests.cli.command_lines import understand
from tests.documents import ROOT, Document, documents

# The tests that run lines as they stand, all of them long.
_TYPISTS = (
    "end_to_end/test_documented_commands.py",
    "end_to_end/test_help.py",
    "service/conftest.py",
    "service/test_documented_steps.py",
    "service/test_fresh_debian.py",
    "service/test_package.py",
)
_OF_PROXMOX = "Proxmox's own: nothing of it can be installed here; it was seen with a real PBS 4.2.3"
_MEASURES = "it measures: docs/performance.md has what it has printed"
_LASTS = "it takes as long as it says: docs/reliability.md has what came of such runs"
NOT_RUN = {
    "proxmox-backup-manager datastore create store1 /mnt/datastore/store1 --reuse-datastore true": _OF_PROXMOX,
    "proxmox-backup-manager datastore create store1 /mnt/s3-cache/store1 "
    "--backend type=s3,client=store1,bucket=backups --reuse-datastore true": _OF_PROXMOX,
    "proxmox-backup-manager datastore remove store1": _OF_PROXMOX,
    "proxmox-backup-manager datastore update store1 --delete maintenance-mode": _OF_PROXMOX,
    "proxmox-backup-manager datastore update store1 --maintenance-mode type=offline": _OF_PROXMOX,
    "proxmox-backup-manager s3 check store1 backups --store-prefix store1": _OF_PROXMOX,
    "proxmox-backup-manager s3 endpoint create store1 --access-key ACCESS_KEY --secret-key SECRET_KEY "
    "--endpoint s3.example.com --path-style true --region eu-central-1": _OF_PROXMOX,
    "scripts/package --release trixie": "service/conftest.py has it put the package elsewhere",
    "scripts/setup --test": "each script begins with it",
    "scripts/test": "the suite itself",
    "scripts/test --ceph": "the suite itself, with a cluster that it installs",
    "scripts/test --long": "the suite itself",
    "scripts/test --long tests/service": "the suite itself",
    "modprobe fuse": "the kernel is that of the machine",
    "rclone serve s3 /srv/s3 --addr 127.0.0.1:29871 --auth-key KEY,SECRET --vfs-cache-mode writes": (
        "docs/stores.md says what came of it"
    ),
    "ssh -L 9861:127.0.0.1:9861 root@pbs.example.com": "it needs two machines; it was seen with two networks of one",
}
"""Each with the reason, as it stands in the document but for a comment."""
_NOT_RUN_SCRIPTS = {"scripts/bench": _MEASURES, "scripts/soak": _LASTS}
_COMMAND = re.compile(r"(mirrorfs|apt|systemctl|mount|umount|man|modprobe|scripts/[a-z]+|proxmox-backup-\w+) ")
_PLACEHOLDER = re.compile(r"…|[A-Z]{3,}")
# What is said about a command in general, without what it is to be done to.
_MENTIONS = {
    "mount --foreground",
    "proxmox-backup-client backup",
    "proxmox-backup-manager datastore remove",
    "systemctl edit",
    "systemctl stop",
    "umount --drain",
    "umount --lazy",
    "umount -R",
}


def _without_comment(line: str) -> str:
    return re.sub(r" +# .*", "", line)


@cache
def _run_by_tests() -> set[str]:
    return {_without_comment(line) for name in _TYPISTS for line in _lines_in(ROOT / "tests" / name)}


def _lines_in(path: Path) -> Iterator[str]:
    """The strings in the functions of a module: what stands outside of them may be a table of what is not run."""
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def _is_command(span: str, settings: Path) -> bool:
    """Whether a span of code is a whole command, which can be typed as it is."""
    if not _COMMAND.match(span) or _PLACEHOLDER.search(span) or span in _MENTIONS:
        return False
    if span.startswith("mirrorfs "):
        try:
            understand(span, settings)
        except (click.UsageError, click.exceptions.Exit, KeyError):
            return False
    return True


@pytest.mark.parametrize("document", documents(), ids=lambda document: document.name)
def test_what_people_type_is_run(document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_file, "SETTINGS_BASE", str(tmp_path))
    typed = {*map(_without_comment, document.typed), *(span for span in document.spans if _is_command(span, tmp_path))}
    not_run = {line for line in typed - _run_by_tests() - NOT_RUN.keys() if line.split()[0] not in _NOT_RUN_SCRIPTS}
    assert not_run == set(), "run it in one of the tests, or say why none does"


def test_what_is_not_run_is_in_a_document() -> None:
    shown = {line for document in documents() for line in (*document.typed, *document.spans)}
    assert NOT_RUN.keys() - shown == set()
    assert _MENTIONS - shown == set()
    assert NOT_RUN.keys() & _run_by_tests() == set()


@pytest.mark.parametrize(
    "block",
    sorted({block for document in documents() for block in document.blocks if re.match(r"\[(?!default\])", block)}),
)
def test_settings_in_a_document_are_understood(block: str) -> None:
    data = f'datastore = "/mnt/datastore/store1"\nto = "s3://backups/store1"\n{block}\n'.encode()
    assert settings_file.file_settings(settings_file.as_settings_file("/etc/mirrorfs/store1.toml", data), mount)
