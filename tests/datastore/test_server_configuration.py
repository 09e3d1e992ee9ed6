"""What a datastore is called is read from what PBS writes, and is never taken from anything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirrorfs.datastore.server_configuration import name_of_datastore
from mirrorfs.supervision import users

_WRITTEN = """datastore: store1
\tcomment of the first: datastore: other
\tgc-schedule daily
\tpath /mnt/datastore/store1

datastore: store2
\tpath /mnt/datastore/with blanks/

s3-endpoint: one
\tpath /mnt/datastore/no-datastore

datastore: $(reboot)
\tpath /mnt/datastore/hostile
"""


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/mnt/datastore/store1", "store1"),
        ("/mnt/datastore/with blanks", "store2"),
        ("/mnt/datastore", None),
        ("/mnt/datastore/no-datastore", None),
        ("/mnt/datastore/hostile", None),
    ],
)
def test_the_name_of_a_datastore(tmp_path: Path, path: str, name: str | None) -> None:
    configuration = tmp_path / "datastore.cfg"
    configuration.write_text(_WRITTEN)
    assert name_of_datastore(path, str(configuration)) == name


def test_without_a_server_there_is_no_name(tmp_path: Path) -> None:
    assert name_of_datastore("/mnt/datastore/store1", str(tmp_path / "none")) is None
    (tmp_path / "binary").write_bytes(b"datastore: store1\n\xff\x00path\n")
    assert name_of_datastore("/mnt/datastore/store1", str(tmp_path / "binary")) is None


def test_what_to_do_about_a_server_names_its_datastore(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "datastore update STORE --maintenance-mode" in users.how_to_let_go("/none")
    monkeypatch.setattr(users, "name_of_datastore", {"/mnt/datastore/s": "store1"}.get)
    said = users.how_to_let_go("/mnt/datastore/s")
    assert "'proxmox-backup-manager datastore update store1 --maintenance-mode type=offline'" in said
    assert "'... update store1 --delete maintenance-mode'" in said
