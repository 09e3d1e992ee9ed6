"""A restore takes only what belongs: what is sound by itself, but of another backup, is damage where it stands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mirrorfs.datastore.names import GroupId
from mirrorfs.recovery.selection import Selection
from tests.datastore.formats import encrypted_blob
from tests.harness.formats import decode_manifest_document, encode_manifest
from tests.recovery.mirror import Mirror, Objects, Tampering, upload
from tests.recovery.test_catalog import catalog_of
from tests.recovery.test_restore import (
    ALL,
    ENCRYPTED,
    FIRST,
    SECOND,
    THIRD,
    assert_left_out,
    assert_snapshots,
    snapshots_with_chunk,
    some_chunk,
)

GROUP = Selection(groups=(GroupId.parse("vm/100"),))
OTHER_GROUP = "vm/300"


def files_of(snapshot: str, objects: Objects) -> Objects:
    """Its objects, by file name."""
    start = f".cnt/{snapshot}/"
    return {key.removeprefix(start): data for key, data in objects.items() if key.startswith(start)}


def copied(snapshot: str, target: str, objects: Objects) -> Objects:
    return {f".cnt/{target}/{name}": data for name, data in files_of(snapshot, objects).items()}


def change_manifest(mirror: Mirror, objects: Objects, snapshot: str, change: Callable[[dict[str, Any]], None]) -> None:
    key = f".cnt/{snapshot}/index.json.blob"
    document = decode_manifest_document(objects[key])
    change(document)
    upload(mirror.access, mirror.bucket, mirror.prefix, {key: encode_manifest(document)})


def say_encrypted(document: dict[str, Any]) -> None:
    for file in document["files"]:
        file["crypt-mode"] = "encrypt"


def say_signed(document: dict[str, Any]) -> None:
    for file in document["files"]:
        file["crypt-mode"] = "sign-only"


def test_an_encrypted_chunk_in_an_unencrypted_backup(
    shared_mirror: Mirror, objects: Objects, base: Path, few_directories: None
) -> None:
    key = some_chunk(objects, of=FIRST, but_not_of=THIRD)
    # Its CRC is right, and nobody can tell from what its name comes.
    tampering = Tampering(spoiled={key: encrypted_blob(b"whatever somebody likes")})
    report = shared_mirror.restore(base, tampering=tampering)
    assert_left_out(report, base, snapshots_with_chunk(key, objects))
    for problem in report.problems:
        assert "is encrypted, and its backup is not" in problem.reason
        assert key.rpartition("/")[2] in problem.reason
    assert not (base / key).exists()


def test_unencrypted_chunks_in_an_encrypted_backup(
    own_mirror: Mirror, objects: Objects, base: Path, few_directories: None
) -> None:
    change_manifest(own_mirror, objects, FIRST, say_encrypted)
    report = own_mirror.restore(base, GROUP)
    assert [snapshot.path for snapshot in report.incomplete] == [FIRST]
    assert "is not encrypted, and its backup is" in report.problems[0].reason
    assert_snapshots(base, [SECOND, THIRD])


def test_the_chunks_of_a_signed_backup_are_not_encrypted(
    own_mirror: Mirror, objects: Objects, base: Path, few_directories: None
) -> None:
    change_manifest(own_mirror, objects, FIRST, say_signed)
    assert own_mirror.restore(base, GROUP).is_complete


def test_a_chunk_that_is_there_for_another_backup_is_looked_at(
    own_mirror: Mirror, objects: Objects, base: Path, few_directories: None
) -> None:
    change_manifest(own_mirror, objects, SECOND, say_encrypted)
    # One after the other: the chunks that both need are restored for the one before the other asks for them.
    report = own_mirror.restore(base, Selection(groups=GROUP.groups))
    assert [snapshot.path for snapshot in report.incomplete] == [SECOND]
    assert_snapshots(base, [FIRST, THIRD])


@pytest.mark.parametrize("source", [FIRST, ENCRYPTED])
def test_a_backup_in_the_place_of_another(
    own_mirror: Mirror, objects: Objects, base: Path, few_directories: None, source: str
) -> None:
    """Whole and sound: an older one of the same group, or one of another guest."""
    for name in files_of(THIRD, objects):
        own_mirror.access.client().delete_object(
            Bucket=own_mirror.bucket, Key=f"{own_mirror.prefix}/.cnt/{THIRD}/{name}"
        )
    upload(own_mirror.access, own_mirror.bucket, own_mirror.prefix, copied(source, THIRD, objects))
    report = own_mirror.restore(base)
    assert_left_out(report, base, [THIRD])
    group, _, time = source.rpartition("/")
    named = f"the one of {'/'.join(group.split('/')[-2:])} of the time {time}"
    assert named in report.problems[0].reason
    assert "--renamed" in report.problems[0].reason
    assert_snapshots(base, [path for path in ALL if path != THIRD])
    found = catalog_of(own_mirror)[THIRD]
    assert named in (found.problem or "")


@pytest.mark.parametrize("field", ["backup-id", "backup-type", "backup-time"])
def test_each_part_of_the_name_counts(
    own_mirror: Mirror, objects: Objects, base: Path, few_directories: None, field: str
) -> None:
    others: dict[str, object] = {"backup-id": "101", "backup-type": "ct", "backup-time": 1}
    change_manifest(own_mirror, objects, FIRST, lambda document: document.update({field: others[field]}))
    report = own_mirror.restore(base, GROUP)
    assert [snapshot.path for snapshot in report.incomplete] == [FIRST]


def test_a_group_that_was_renamed_comes_back_when_asked_for(
    own_mirror: Mirror, objects: Objects, base: Path, few_directories: None
) -> None:
    renamed = [f"{OTHER_GROUP}/{path.rpartition('/')[2]}" for path in (FIRST, SECOND, THIRD)]
    for source, target in zip((FIRST, SECOND, THIRD), renamed, strict=True):
        upload(own_mirror.access, own_mirror.bucket, own_mirror.prefix, copied(source, target, objects))
    upload(own_mirror.access, own_mirror.bucket, own_mirror.prefix, {f".cnt/{OTHER_GROUP}/owner": b"root@pam\n"})
    groups = (GroupId.parse(OTHER_GROUP),)
    report = own_mirror.restore(base / "no", Selection(groups=groups))
    assert [snapshot.path for snapshot in report.incomplete] == renamed
    report = own_mirror.restore(base / "yes", Selection(groups=groups, renamed=True))
    assert report.is_complete
    assert_snapshots(base / "yes", renamed)


def test_a_group_that_pbs_has_moved_comes_back(
    own_mirror: Mirror, objects: Objects, base: Path, few_directories: None
) -> None:
    """PBS moves groups between namespaces, and no manifest names its namespace."""
    target = f"ns/moved/{FIRST}"
    upload(own_mirror.access, own_mirror.bucket, own_mirror.prefix, copied(FIRST, target, objects))
    upload(own_mirror.access, own_mirror.bucket, own_mirror.prefix, {".cnt/ns/moved/vm/100/owner": b"root@pam\n"})
    report = own_mirror.restore(base, Selection(groups=(GroupId.parse("ns/moved/vm/100"),)))
    assert report.is_complete
    assert_snapshots(base, [target])
