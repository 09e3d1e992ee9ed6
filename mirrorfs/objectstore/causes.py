"""Why a connection failed, below all the wrapping of others."""

from __future__ import annotations

import urllib3.exceptions


def innermost_cause(error: BaseException) -> str:
    """In a few words what the operating system or the TLS library said, below all the wrapping."""
    seen: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in seen:
        seen.append(at)
        at = _wrapped(at)
    for candidate in reversed(seen):
        if isinstance(candidate, TimeoutError | urllib3.exceptions.TimeoutError):
            return "no answer in time"
        if isinstance(candidate, OSError) and candidate.strerror:
            return candidate.strerror
    return "the connection broke off"


def _wrapped(error: BaseException) -> BaseException | None:
    inner = getattr(error, "kwargs", {}).get("error") or getattr(error, "reason", None)
    if not isinstance(inner, BaseException):
        inner = next((one for one in error.args if isinstance(one, BaseException)), None)
    if isinstance(inner, BaseException):
        return inner
    return error.__cause__ or error.__context__
