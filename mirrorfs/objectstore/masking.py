"""What others said, made fit to be shown: no secret, no user info of a URL, one line, nothing that a terminal obeys."""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import quote, urlsplit, urlunsplit

_LONGEST_TEXT = 300
_LONGEST_REQUEST_ID = 80
_SHORTEST_SECRET = 4
_MASK = "***"
_USER_INFO = re.compile(r"(?<=://)[^/\s@'\"<>]*@")
# A name of something secret and its value: X-Amz-Signature=…, Authorization: AWS4-HMAC-SHA256 …, "secret": "…".
_NAMED_SECRETS = re.compile(
    r"""(?ix)
    ( \b (?: x-amz-(?:signature|credential|security-token) | signature | credential | (?:session[-_ ]?)?token
           | (?:aws_?)?secret(?:[-_ ]?access)?[-_ ]?key | (?:aws_?)?access[-_ ]?key(?:[-_ ]?id)? | password | sig )
      ["']? \s* [=:] \s* ["']? )
    [^\s,;&"'<>]+
    """
)
_AUTHORIZATION = re.compile(r"(?i)\b((?:proxy-)?authorization[\"']?\s*[:=]\s*).*|\b(AWS4-HMAC-SHA256|AWS) \S.*=\S.*")
# https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html#identifiers-unique-ids
_ACCESS_KEY = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b")
# A signature of any version (hex of SHA-256), or a secret key (40 characters of base64).
# Nearly all: with nothing in it that would be left out or changed.
_HARMLESS_URL = re.compile(r"https?://[A-Za-z0-9.:-]{1,100}(?:/[A-Za-z0-9._/-]{0,190})?")
_LOOKS_SECRET = re.compile(r"(?<![A-Za-z0-9+/=])(?:[0-9a-fA-F]{64}|[A-Za-z0-9+/]{40})(?![A-Za-z0-9+/=])")


def quoted(text: str, secrets: Collection[str] = ()) -> str:
    """A sentence of somebody else on one line, short, and with whatever could be secret masked.

    `secrets` are values that must not appear, whatever they look like.
    """
    for secret in sorted((one for one in secrets if len(one) >= _SHORTEST_SECRET), key=len, reverse=True):
        for form in (secret, quote(secret, safe=""), quote(secret)):
            text = text.replace(form, _MASK)
    text = _AUTHORIZATION.sub(lambda found: (found.group(1) or "") + _MASK, text)
    text = _NAMED_SECRETS.sub(lambda found: found.group(1) + _MASK, text)
    text = _USER_INFO.sub("", text)
    text = _LOOKS_SECRET.sub(_MASK, _ACCESS_KEY.sub(_MASK, text))
    return _one_line(text)[:_LONGEST_TEXT]


def request_id(text: str) -> str:
    """What a store calls a request, as far as it is printable: to be given to whoever looks into its log."""
    return re.sub(r"[^A-Za-z0-9+/=._:-]", "", text)[:_LONGEST_REQUEST_ID]


def shown_url(url: str) -> str:
    """Scheme, host, port and path of a URL from anywhere; without user info, query and fragment."""
    if _HARMLESS_URL.fullmatch(url):
        return url
    try:
        parts = urlsplit(url.strip())
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "an address that is no URL"
    return _one_line(urlunsplit((parts.scheme, host, parts.path, "", "")))[:_LONGEST_TEXT]


def _one_line(text: str) -> str:
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())
