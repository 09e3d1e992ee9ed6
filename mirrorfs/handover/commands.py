"""What is to be typed on a PBS 4 so that it opens a bucket, filled in as far as it is known here; no secrets."""

from __future__ import annotations

import shlex
from urllib.parse import urlsplit

from mirrorfs.objectstore.url import StoreAddress, StoreOptions, is_modern_bucket

_AWS_DOMAIN = ".amazonaws.com"
_AWS_ENDPOINT = "{{bucket}}.s3.{{region}}.amazonaws.com"
_REGION_TO_FILL_IN = "REGION"


def pbs_commands(address: StoreAddress, options: StoreOptions, endpoint_url: str, region: str | None) -> list[str]:
    """Return the commands: the endpoint, a check of it, the datastore.

    `endpoint_url` and `region` are those that the store was reached with; the region may not be known.
    """
    name = address.prefix
    endpoint = [
        *("proxmox-backup-manager s3 endpoint create", name),
        *("--access-key ACCESS_KEY --secret-key SECRET_KEY", *_endpoint(address, options, endpoint_url)),
        *("--region", shlex.quote(region or _REGION_TO_FILL_IN)),
    ]
    if options.fingerprint is not None:
        endpoint += ["--fingerprint", _with_colons(options.fingerprint)]
    return [
        " ".join(endpoint),
        f"proxmox-backup-manager s3 check {name} {address.bucket} --store-prefix {name}",
        f"proxmox-backup-manager datastore create {name} /mnt/s3-cache/{name} "
        f"--backend type=s3,client={name},bucket={address.bucket} --reuse-datastore true",
    ]


def problem_with_endpoint(endpoint_url: str) -> str | None:
    """Say why a PBS cannot use this endpoint; None if it can."""
    if urlsplit(endpoint_url).scheme == "https":
        return None
    return (
        f"{endpoint_url} is reached without TLS, and a Proxmox Backup Server speaks https only: give it an endpoint of "
        "the same store that has TLS."
    )


def _endpoint(address: StoreAddress, options: StoreOptions, endpoint_url: str) -> list[str]:
    parts = urlsplit(endpoint_url)
    host = parts.hostname or ""
    if host.endswith(_AWS_DOMAIN):
        in_path = options.addressing_style == "path" or not is_modern_bucket(address.bucket)
        host = _AWS_ENDPOINT.removeprefix("{{bucket}}.") if in_path else _AWS_ENDPOINT
        return ["--endpoint", shlex.quote(host), *(["--path-style true"] if in_path else [])]
    port = [] if parts.port is None else ["--port", str(parts.port)]
    if options.addressing_style == "virtual":
        return ["--endpoint", shlex.quote(f"{{{{bucket}}}}.{host}"), *port]
    return ["--endpoint", shlex.quote(host), *port, "--path-style true"]


def _with_colons(fingerprint: str) -> str:
    digits = fingerprint.replace(":", "").lower()
    return ":".join(digits[place : place + 2] for place in range(0, len(digits), 2))
