"""`python -m tests.audit [INDEX]`: asks PyPI whether the packages that mirrorfs needs have known vulnerabilities.

PyPI knows those of the Python Packaging Advisory Database and tells them with a release (JSON API, `vulnerabilities`).
pip-audit asks the same, but takes an index that does not serve single releases for one that has nothing against them.
Where only the newest release is served, that answer is used if it is the one that is installed.

Exit codes: 0 none is known, also if not all, or nothing, could be asked (that is said); 1 some are.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Any

_INDEX = "https://pypi.org"
_SECONDS = 20.0
_AT_A_TIME = 8
_AWAY = "the index does not answer"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

ACCEPTED: Mapping[str, str] = {}
"""Identifiers of vulnerabilities that do not concern mirrorfs, each with the reason."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What the index says of a package: its vulnerabilities, or why it says nothing."""

    package: str
    version: str
    vulnerabilities: tuple[str, ...] = ()
    unknown: str = ""


def main(index: str = _INDEX) -> int:
    """Ask for all packages and print what is to be known."""
    first, *others = sorted(_installed(distribution("mirrorfs"), {"", "test"}))
    finding = ask(index, *first)
    if finding.unknown.startswith(_AWAY):
        # Nobody shall wait for the same answer once for each package.
        return report([finding, *(Finding(*package, unknown=finding.unknown) for package in others)])
    with ThreadPoolExecutor(_AT_A_TIME) as executor:
        return report([finding, *executor.map(lambda package: ask(index, *package), others)])


def report(findings: list[Finding]) -> int:
    """Print the outcome, one line if all is well; return the exit code."""
    bad = [finding for finding in findings if set(finding.vulnerabilities) - set(ACCEPTED)]
    for finding in bad:
        print(f"audit: {finding.package} {finding.version} is vulnerable: {', '.join(finding.vulnerabilities)}")
    unknown = [finding for finding in findings if finding.unknown]
    if len(unknown) == len(findings):
        print(f"audit: nothing is known of {len(findings)} packages: {unknown[0].unknown}")
    else:
        names = ", ".join(f"{finding.package} {finding.version} ({finding.unknown})" for finding in unknown)
        known = len(findings) - len(unknown)
        print(f"audit: {known} packages asked for, {len(bad)} vulnerable" + (f"; not known: {names}" if names else ""))
    return 1 if bad else 0


def ask(index: str, package: str, version: str) -> Finding:
    """Ask for one release."""
    try:
        answer = _get(f"{index}/pypi/{package}/{version}/json") or _get(f"{index}/pypi/{package}/json")
    except (OSError, ValueError, HTTPException) as error:
        return Finding(package, version, unknown=f"{_AWAY}: {getattr(error, 'reason', error)}")
    if answer is None:
        return Finding(package, version, unknown="not in the index")
    if answer["info"]["version"] != version:
        return Finding(package, version, unknown=f"the index tells only of {answer['info']['version']}")
    found = [entry["id"] for entry in answer.get("vulnerabilities", ()) if not entry.get("withdrawn")]
    return Finding(package, version, tuple(sorted(found)))


def _get(url: str) -> dict[str, Any] | None:
    try:
        # S310: the scheme is the caller's, who is whoever runs this.
        with urllib.request.urlopen(url, timeout=_SECONDS) as answer:  # noqa: S310
            value: dict[str, Any] = json.load(answer)
            return value
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def _installed(package: Distribution, extras: set[str]) -> Iterator[tuple[str, str]]:
    """The packages that this one needs, and those that they need, as far as they are installed."""
    waiting = list(_required(package, extras))
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            # Needed on other systems only.
            continue
        yield name, found.version
        waiting += _required(found, {""})


def _required(package: Distribution, extras: set[str]) -> Iterator[str]:
    for requirement in package.requires or ():
        name = _NAME.match(requirement)
        extra = re.search(r"extra\s*==\s*[\"']([^\"']+)", requirement)
        if name is not None and (extra[1] if extra else "") in extras:
            yield re.sub(r"[-_.]+", "-", name[0]).lower()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
