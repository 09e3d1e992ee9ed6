"""`mirrorfs config check`: the settings of a datastore, tried against the real store, without a mount."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from typing import Any

import click
import trio

from mirrorfs.cli.errors import require_root
from mirrorfs.cli.mirror_of import understood
from mirrorfs.cli.notify_options import notify_settings
from mirrorfs.cli.options import store_of
from mirrorfs.cli.settings_file import DATASTORE
from mirrorfs.database.directory import default_state_directory
from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.filesystem.mount_table import real_path
from mirrorfs.notification.delivery import NotDelivered, ways
from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.errors import StoreError
from mirrorfs.objectstore.retry import AT_ONCE
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.objectstore.trial import Finding, Trial, Verdict
from mirrorfs.objectstore.url import StoreAddress
from mirrorfs.output import say, say_json
from mirrorfs.replication.ownership.claim import Claim, ClaimUnreadable, read_claim, read_in_use
from mirrorfs.replication.settings import UploaderSettings
from mirrorfs.replication.work.bucket import Bucket
from mirrorfs.supervision.mount import MountRefused, check_paths
from mirrorfs.supervision.registry import find
from mirrorfs.supervision.settings import MountSettings


@click.command("check")
@click.argument("datastore", type=DATASTORE)
@click.option(
    "--json",
    "as_json",
    envvar="MIRRORFS_CONFIG_CHECK_JSON",
    is_flag=True,
    help="One JSON array: subject, verdict (ok, without, fails), said, right of each.",
)
def check(datastore: str, as_json: bool) -> None:
    """Try the settings of DATASTORE against the real store: each right alone, clock, region, TLS; nothing is mounted.

    A few small objects are put below .mirrorfs/ of the mirror's name, and removed. In a bucket that keeps versions,
    their versions stay until its lifecycle rule takes them. The last lines say what a mount would do.

    \b
    Example:
      mirrorfs config check store1

    Exit codes: 0 a mount would work; 1 it would not (a line says 'fails'); 2 the settings are wrong.
    """
    require_root("read settings")
    path = real_path(datastore)
    values = understood(path).params
    address: StoreAddress = values["address"]
    store = store_of(values)
    client = S3Client(address.bucket, store)
    findings: list[Finding] = []
    trial = Trial(client, store, BucketLayout(address.prefix).own_key("trial"))
    for finding in trial.run():
        findings.append(finding)
        if not as_json:
            _tell(finding)
    rest = [_paths(path, values["mountpoint"], values["state_dir"], address), *_notifications(values)]
    if not any(finding.verdict is Verdict.BAD for finding in findings):
        rest.append(trio.run(_ownership, client, address, path))
    findings += rest
    if as_json:
        say_json(
            [
                {"subject": one.subject, "verdict": one.verdict.value, "said": one.said, "right": one.right}
                for one in findings
            ],
            indent=1,
        )
    else:
        for finding in rest:
            _tell(finding)
    if any(finding.verdict is Verdict.BAD for finding in findings):
        raise SystemExit(1)


def _tell(finding: Finding) -> None:
    right = f" ({finding.right})" if finding.right else ""
    say(f"{finding.verdict.value:8} {finding.subject:16} {finding.said}{right}")


def _notifications(values: Mapping[str, Any]) -> Iterator[Finding]:
    """Tell of each way of telling whether its program could be run; nothing is sent."""
    for way in ways(notify_settings(values)):
        try:
            way.check()
        except NotDelivered as error:
            yield Finding(f"notify.{way.name}", Verdict.BAD, str(error))
        else:
            said = f"{way.arguments[0]} can be run; 'mirrorfs notify test' has it tell something"
            yield Finding(f"notify.{way.name}", Verdict.GOOD, said)


def _paths(datastore: str, mountpoint: str | None, state_dir: str | None, address: StoreAddress) -> Finding:
    if find(datastore) is not None:
        return Finding("mount", Verdict.GOOD, f"{datastore} is mounted; 'mirrorfs reload' has it take what has changed")
    state = default_state_directory(datastore).path if state_dir is None else real_path(state_dir)
    settings = MountSettings(
        mountpoint=datastore if mountpoint is None else real_path(mountpoint),
        uploader=UploaderSettings(datastore, state, -1, address.bucket, address.prefix),
    )
    try:
        check_paths(settings)
    except MountRefused as refusal:
        return Finding("mount", Verdict.BAD, str(refusal))
    return Finding("mount", Verdict.GOOD, f"{datastore} can be mounted; journal and state would be in {state}")


async def _ownership(client: S3Client, address: StoreAddress, datastore: str) -> Finding:
    bucket = Bucket(BucketLayout(address.prefix), ObjectStore(client, patience=AT_ONCE))
    try:
        return _what_would_happen(await read_claim(bucket), await read_in_use(bucket), address, datastore)
    except (StoreError, ClaimUnreadable) as error:
        return Finding("name", Verdict.BAD, str(error))


def _what_would_happen(claim: Claim | None, in_use: str | None, address: StoreAddress, datastore: str) -> Finding:
    if claim is not None and claim.is_handed_over:
        said = f"{address} is handed over to a PBS: a mount would be refused until 'mirrorfs takeback {address}'"
        return Finding("name", Verdict.BAD, said)
    if claim is not None and (claim.datastore, claim.hostname) != (datastore, socket.gethostname()):
        said = f"{address} is the mirror of {claim.owner}: a mount would be refused, unless with --take-over"
        return Finding("name", Verdict.BAD, said)
    if claim is not None:
        return Finding("name", Verdict.GOOD, f"{address} is this datastore's mirror: a mount would go on with it")
    if in_use is not None:
        said = f"{address} is in use by the PBS on {in_use}: a mount would be refused, unless with --take-over"
        return Finding("name", Verdict.BAD, said)
    return Finding("name", Verdict.GOOD, f"{address} is free: a mount would claim it, and send the whole datastore")
