"""The policies of docs/policies are enough for what they are for, and for nothing else, at a store that enforces them.

SeaweedFS evaluates them as AWS's language says: actions, resources, the condition on the prefix that is listed, Deny.
"""

from __future__ import annotations

import json
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from tests.end_to_end.mirrors import MirrorUnderTest
from tests.end_to_end.test_crashes import TINY
from tests.harness.scan import compare_datastores
from tests.harness.writer import DatastoreWriter
from tests.stores.seaweedfs import StoreServer, running_seaweedfs
from tests.stores.server import StoreAccess

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ObjectLockConfigurationTypeDef, ObjectLockRetentionTypeDef


_POLICIES = Path(__file__).parents[2] / "docs" / "policies"
_NAME = "store1"
_REFUSED = ("AccessDenied", "403")


@pytest.fixture(scope="module")
def policed_store() -> Iterator[StoreServer]:
    """A store in which users can be made whose rights are policies."""
    with running_seaweedfs(users=True) as server:
        yield server


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory: a restored datastore has 65,536 directories."""
    with tempfile.TemporaryDirectory(prefix="mirrorfs-test-", dir="/dev/shm") as path:
        yield Path(path)


def _policy(name: str, bucket: str) -> dict[str, Any]:
    text = (_POLICIES / f"{name}.json").read_text()
    policy: dict[str, Any] = json.loads(text.replace("BUCKET", bucket).replace("NAME", _NAME))
    return policy


def _user(store: StoreServer, bucket: str, name: str) -> StoreAccess:
    """A user who has this policy's rights only."""
    return _user_with(store, bucket, name, _policy(name, bucket)["Statement"])


def _user_with(store: StoreServer, bucket: str, name: str, rights: list[dict[str, Any]]) -> StoreAccess:
    """A user who has the rights of these statements: they stand in the policy of the bucket, for this user.

    As a user's own policy SeaweedFS takes none with Deny in it.
    """
    iam, admin = store.access.iam_client(), store.access.client()
    user = f"{name}-{secrets.token_hex(4)}"
    arn = iam.create_user(UserName=user)["User"]["Arn"]
    try:
        statements = json.loads(admin.get_bucket_policy(Bucket=bucket)["Policy"])["Statement"]
    except ClientError:
        statements = []
    statements += [{**statement, "Sid": f"{user}{statement['Sid']}", "Principal": {"AWS": arn}} for statement in rights]
    policy = {"Version": "2012-10-17", "Statement": statements}
    admin.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    key = iam.create_access_key(UserName=user)["AccessKey"]
    access = StoreAccess(store.endpoint_url, key["AccessKeyId"], key["SecretAccessKey"])
    deadline = time.monotonic() + 20
    while True:
        # The store reads its users anew when it is told that they have changed.
        try:
            access.client().list_objects_v2(Bucket=bucket, Prefix=f"{_NAME}/")
        except ClientError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        else:
            return access


@pytest.fixture
def mirror_of(base: Path, policed_store: StoreServer) -> Iterator[Callable[[str, str], MirrorUnderTest]]:
    """Makes a mirror to a bucket with the rights of a policy."""
    made: list[MirrorUnderTest] = []

    def make(bucket: str, policy: str) -> MirrorUnderTest:
        mirror = MirrorUnderTest(base, policed_store, bucket, policed_store.endpoint_url, _NAME)
        mirror.extra_environment.update(_user(policed_store, bucket, policy).environment())
        mirror.create()
        made.append(mirror)
        return mirror

    yield make
    for mirror in made:
        mirror.tear_down()


def _writer(mirror: MirrorUnderTest) -> DatastoreWriter:
    return DatastoreWriter(mirror.datastore, seed=7, default_plan=TINY)


def _is_refused(call: Callable[..., object], **arguments: object) -> bool:
    try:
        call(**arguments)
    except ClientError as error:
        code = error.response["Error"]["Code"]
    else:
        code = "done"
    return code in _REFUSED


def test_a_mirror_works_with_its_policy_through_all_its_life(
    mirror_of: Callable[[str, str], MirrorUnderTest], policed_store: StoreServer, memory: Path
) -> None:
    mirror = mirror_of(policed_store.create_bucket(), "mirror")
    mirror.mount("--retention-delete-after", "1h")
    with _writer(mirror) as writer:
        kept = writer.backup("vm/1")
        gone = writer.backup("vm/1")
        mirror.wait()
        writer.forget(gone.name)
        writer.collect_garbage(age_seconds=0, safety_seconds=0)
    mirror.wait()
    mirror.succeed("reconcile", str(mirror.datastore), "--deep")
    assert mirror.published() == [kept.path]
    assert mirror.audit() == []
    assert mirror.status()["problems"] == []
    assert mirror.status()["retention"]["refused"]["count"] == 0
    assert "refused" not in mirror.log
    # Whether the bucket keeps versions or locks is asked, and need not be answered.
    denied = [line for line in mirror.log.splitlines() if "access denied" in line.lower()]
    assert [line for line in denied if "does without" not in line] == []


@pytest.mark.parametrize("policy", ["mirror", "mirror-protected"])
def test_a_thief_of_a_mirrors_key_reaches_nothing_else(policed_store: StoreServer, policy: str) -> None:
    bucket = policed_store.create_bucket(locked=policy == "mirror-protected")
    for key in ("store1/x", "store2/x", "store10/x", "x"):
        policed_store.access.client().put_object(Bucket=bucket, Key=key, Body=b"data")
    client = _user(policed_store, bucket, policy).client()
    assert client.get_object(Bucket=bucket, Key="store1/x")["Body"].read() == b"data"
    for key in ("store2/x", "store10/x", "x"):
        assert _is_refused(client.get_object, Bucket=bucket, Key=key)
        assert _is_refused(client.put_object, Bucket=bucket, Key=key, Body=b"")
        assert _is_refused(client.delete_object, Bucket=bucket, Key=key)
        assert _is_refused(client.copy_object, Bucket=bucket, Key="store1/y", CopySource=f"{bucket}/{key}")
    for prefix in ("", "store", "store2/", "store10/"):
        assert _is_refused(client.list_objects_v2, Bucket=bucket, Prefix=prefix)
    for call in (
        lambda: client.delete_bucket(Bucket=bucket),
        lambda: client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(_policy("mirror", bucket))),
        lambda: client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"}),
        lambda: client.put_bucket_lifecycle_configuration(
            Bucket=bucket,
            LifecycleConfiguration={
                "Rules": [{"ID": "all", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 1}}]
            },
        ),
        lambda: client.create_bucket(Bucket=f"{bucket}-new"),
    ):
        assert _is_refused(call)


def test_a_mirror_with_locks_works_with_its_policy(
    mirror_of: Callable[[str, str], MirrorUnderTest], policed_store: StoreServer
) -> None:
    bucket = policed_store.create_bucket(locked=True)
    mirror = mirror_of(bucket, "mirror-protected")
    mirror.mount("--retention-lock-for", "1h")
    with _writer(mirror) as writer:
        kept = writer.backup("vm/1")
        gone = writer.backup("vm/1")
        mirror.wait()
        writer.forget(gone.name)
        writer.collect_garbage(age_seconds=0, safety_seconds=0)
    mirror.wait()
    assert mirror.published() == [kept.path]
    assert mirror.audit() == []
    assert "locks_obstacle" not in mirror.status() or not mirror.status()["locks_obstacle"]
    key = f"{_NAME}/.cnt/{kept.path}/index.json.blob"
    # SeaweedFS, asked for the retention alone, may have forgotten for a moment that the bucket has locks.
    found = policed_store.access.client().head_object(Bucket=bucket, Key=key)
    assert found["ObjectLockRetainUntilDate"] > datetime.now(UTC) + timedelta(minutes=30)


def test_a_thief_of_a_protected_mirrors_key_cannot_destroy_what_was_there(policed_store: StoreServer) -> None:
    """He can hide it behind delete markers and other versions; `--as-of` looks behind them."""
    bucket = policed_store.create_bucket(locked=True)
    admin = policed_store.access.client()
    until = datetime.now(UTC) + timedelta(hours=1)
    version = admin.put_object(
        Bucket=bucket,
        Key="store1/x",
        Body=b"data",
        ObjectLockMode="GOVERNANCE",
        ObjectLockRetainUntilDate=until,
    )["VersionId"]
    unlocked = admin.put_object(Bucket=bucket, Key="store1/y", Body=b"data")["VersionId"]
    client = _user(policed_store, bucket, "mirror-protected").client()
    client.delete_object(Bucket=bucket, Key="store1/x")
    client.put_object(Bucket=bucket, Key="store1/x", Body=b"ransom")
    for key, of_key in (("store1/x", version), ("store1/y", unlocked)):
        for bypass in (False, True):
            assert _is_refused(
                client.delete_object, Bucket=bucket, Key=key, VersionId=of_key, BypassGovernanceRetention=bypass
            )
    assert _is_refused(
        lambda: client.put_object_retention(
            Bucket=bucket,
            Key="store1/x",
            VersionId=version,
            BypassGovernanceRetention=True,
            Retention={"Mode": "GOVERNANCE", "RetainUntilDate": datetime.now(UTC) + timedelta(minutes=1)},
        )
    )
    assert admin.get_object(Bucket=bucket, Key="store1/x", VersionId=version)["Body"].read() == b"data"
    assert admin.get_object(Bucket=bucket, Key="store1/y", VersionId=unlocked)["Body"].read() == b"data"


def test_a_restore_needs_reading_only(
    mirror_of: Callable[[str, str], MirrorUnderTest], policed_store: StoreServer, memory: Path
) -> None:
    bucket = policed_store.create_bucket(versioned=True)
    mirror = mirror_of(bucket, "mirror-protected")
    mirror.mount()
    with _writer(mirror) as writer:
        made = writer.backup("vm/1")
    mirror.wait()
    mirror.umount()
    reader = _user(policed_store, bucket, "restore")
    mirror.extra_environment.update(reader.environment())
    time.sleep(1.1)
    for view in ((), ("--as-of", "1s")):
        answer = json.loads(mirror.succeed("snapshots", mirror.url, "--json", *mirror.store_options(), *view))
        assert [snapshot["path"] for snapshot in answer["snapshots"]] == [made.path]
        target = memory / f"restored{len(view)}"
        mirror.restore(target, *view)
        assert compare_datastores(mirror.datastore, target).differences == ()
    client = reader.client()
    key = f"{_NAME}/.cnt/{made.path}/index.json.blob"
    for call in (
        lambda: client.put_object(Bucket=bucket, Key=key, Body=b""),
        lambda: client.delete_object(Bucket=bucket, Key=key),
        lambda: client.copy_object(Bucket=bucket, Key=f"{_NAME}/y", CopySource=f"{bucket}/{key}"),
        lambda: client.list_objects_v2(Bucket=bucket),
        lambda: client.list_object_versions(Bucket=bucket),
        lambda: client.get_object(Bucket=bucket, Key="store2/x"),
    ):
        assert _is_refused(call)


def _calls(client: S3Client, bucket: str, version: str) -> dict[str, Callable[[], object]]:
    """For each right, a request that needs it and no other."""
    until = datetime.now(UTC) + timedelta(hours=1)
    retention: ObjectLockRetentionTypeDef = {"Mode": "GOVERNANCE", "RetainUntilDate": until}
    return {
        "s3:ListBucket": lambda: client.list_objects_v2(Bucket=bucket, Prefix="store1/"),
        "s3:ListBucketVersions": lambda: client.list_object_versions(Bucket=bucket, Prefix="store1/"),
        "s3:GetBucketVersioning": lambda: client.get_bucket_versioning(Bucket=bucket),
        "s3:GetBucketObjectLockConfiguration": lambda: client.get_object_lock_configuration(Bucket=bucket),
        "s3:GetObject": lambda: client.get_object(Bucket=bucket, Key="store1/x"),
        "s3:GetObjectVersion": lambda: client.get_object(Bucket=bucket, Key="store1/x", VersionId=version),
        "s3:PutObject": lambda: client.put_object(Bucket=bucket, Key="store1/new", Body=b""),
        "s3:GetObjectRetention": lambda: client.get_object_retention(Bucket=bucket, Key="store1/x"),
        "s3:PutObjectRetention": lambda: client.put_object_retention(
            Bucket=bucket, Key="store1/x", Retention=retention
        ),
        # At last: what is deleted cannot be read.
        "s3:DeleteObject": lambda: client.delete_object(Bucket=bucket, Key="store1/x"),
    }


def _allowed_actions(policy: dict[str, Any]) -> list[str]:
    allowed = (entry["Action"] for entry in policy["Statement"] if entry["Effect"] == "Allow")
    return [action for actions in allowed for action in ([actions] if isinstance(actions, str) else actions)]


@pytest.mark.parametrize("name", ["mirror", "mirror-protected", "restore"])
def test_what_a_policy_allows_is_what_it_names(policed_store: StoreServer, name: str) -> None:
    """The store refuses each request for which the policy has no word: so the tests above say that it is enough."""
    bucket = policed_store.create_bucket(locked=True)
    put = policed_store.access.client().put_object(
        Bucket=bucket,
        Key="store1/x",
        Body=b"data",
        ObjectLockMode="GOVERNANCE",
        ObjectLockRetainUntilDate=datetime.now(UTC) + timedelta(minutes=5),
    )
    allowed = _allowed_actions(_policy(name, bucket))
    client = _user(policed_store, bucket, name).client()
    refused = [action for action, call in _calls(client, bucket, put["VersionId"]).items() if _is_refused(call)]
    assert sorted(refused) == sorted(set(_calls(client, bucket, "")) - set(allowed))


def _denied_calls(client: S3Client, bucket: str, version: str) -> dict[str, Callable[[], object]]:
    """For each right that is denied, a request that needs it; those that leave least for the others at last."""
    lock: ObjectLockConfigurationTypeDef = {"ObjectLockEnabled": "Enabled"}
    until = datetime.now(UTC) + timedelta(minutes=1)
    return {
        "s3:PutObjectLegalHold": lambda: client.put_object_legal_hold(
            Bucket=bucket, Key="store1/x", LegalHold={"Status": "OFF"}
        ),
        "s3:BypassGovernanceRetention": lambda: client.put_object_retention(
            Bucket=bucket,
            Key="store1/x",
            VersionId=version,
            BypassGovernanceRetention=True,
            Retention={"Mode": "GOVERNANCE", "RetainUntilDate": until},
        ),
        "s3:PutBucketVersioning": lambda: client.put_bucket_versioning(
            Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}
        ),
        "s3:PutBucketObjectLockConfiguration": lambda: client.put_object_lock_configuration(
            Bucket=bucket, ObjectLockConfiguration=lock
        ),
        "s3:PutLifecycleConfiguration": lambda: client.put_bucket_lifecycle_configuration(
            Bucket=bucket,
            LifecycleConfiguration={
                "Rules": [{"ID": "all", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 1}}]
            },
        ),
        "s3:DeleteObjectVersion": lambda: client.delete_object(
            Bucket=bucket, Key="store1/y", VersionId=client.head_object(Bucket=bucket, Key="store1/y")["VersionId"]
        ),
        "s3:DeleteBucket": lambda: client.delete_bucket(Bucket=bucket),
        "s3:PutBucketPolicy": lambda: client.put_bucket_policy(
            Bucket=bucket, Policy=client.get_bucket_policy(Bucket=bucket)["Policy"]
        ),
        "s3:DeleteBucketPolicy": lambda: client.delete_bucket_policy(Bucket=bucket),
    }


_ALL = ("arn:aws:s3:::{bucket}", "arn:aws:s3:::{bucket}/*")


@pytest.mark.parametrize("is_denied", [True, False])
def test_what_a_policy_denies_is_denied_also_to_who_may_do_all(policed_store: StoreServer, is_denied: bool) -> None:
    """Its Deny is more than the lack of a right; without it the same requests are not refused."""
    bucket = policed_store.create_bucket(locked=True)
    admin = policed_store.access.client()
    version = admin.put_object(
        Bucket=bucket,
        Key="store1/x",
        Body=b"data",
        ObjectLockMode="GOVERNANCE",
        ObjectLockRetainUntilDate=datetime.now(UTC) + timedelta(hours=1),
    )["VersionId"]
    admin.put_object(Bucket=bucket, Key="store1/y", Body=b"data")
    allow = [
        {"Sid": f"All{number}", "Effect": "Allow", "Action": "s3:*", "Resource": resource.format(bucket=bucket)}
        for number, resource in enumerate(_ALL)
    ]
    deny = [entry for entry in _policy("mirror-protected", bucket)["Statement"] if entry["Effect"] == "Deny"]
    client = _user_with(policed_store, bucket, "all", [*allow, *deny] if is_denied else allow).client()
    calls = _denied_calls(client, bucket, version)
    assert set(calls) == {action for entry in deny for action in entry["Action"]}
    refused = {action for action, call in calls.items() if _is_refused(call)}
    assert refused == (set(calls) if is_denied else set())


@pytest.mark.parametrize("path", sorted(_POLICIES.glob("*.json")), ids=lambda path: str(path.stem))
def test_each_policy_is_complete_and_for_one_mirror(path: Path) -> None:
    policy = json.loads(path.read_text())
    assert policy["Version"] == "2012-10-17"
    for statement in policy["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert all(action.startswith("s3:") and "*" not in action for action in actions)
        assert statement["Resource"].startswith("arn:aws:s3:::BUCKET")
        if statement["Effect"] == "Allow" and "Condition" not in statement and "Object" in str(actions):
            assert statement["Resource"] in ("arn:aws:s3:::BUCKET/NAME/*", "arn:aws:s3:::BUCKET")
    assert path.name in (_POLICIES.parent / "security.md").read_text()
