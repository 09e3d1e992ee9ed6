"""What a store does without: refused once, remembered, and told to the administrator."""

from __future__ import annotations

import logging
import threading
from enum import Enum

log = logging.getLogger(__name__)


class Feature(Enum):
    """Something optional that mirrorfs asks of a store. The value is how it is named in status output."""

    CHECKSUMS = "checksum-headers"
    MULTI_DELETE = "multi-object-delete"
    COPY = "server-side-copy"
    CONDITIONAL_PUT = "conditional-put"
    VERSIONING_QUESTION = "versioning-question"
    OBJECT_LOCK_QUESTION = "object-lock-question"

    @property
    def replacement(self) -> str:
        """What is done instead, as the rest of a sentence."""
        return _REPLACEMENTS[self]


_REPLACEMENTS = {
    Feature.CHECKSUMS: "uploads are sent without x-amz-checksum headers, with Content-MD5 alone",
    Feature.MULTI_DELETE: "objects are deleted one by one",
    Feature.COPY: "objects are sent again instead of being copied in the bucket",
    Feature.CONDITIONAL_PUT: (
        "of two mirrors that claim the same name at one moment, both may believe to have it until they look again"
    ),
    Feature.VERSIONING_QUESTION: "the bucket is taken to keep no versions",
    Feature.OBJECT_LOCK_QUESTION: "the bucket is taken to have no Object Lock",
}


class OptionalFeatures:
    """Which features this store has refused. For several threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._refused: dict[Feature, str] = {}

    def refuses(self, feature: Feature) -> bool:
        """Whether it is to be done without."""
        return feature in self._refused

    def note_refusal(self, feature: Feature, words: str) -> None:
        """Remembers a refusal, with the store's own words; one log line for each feature."""
        with self._lock:
            if feature in self._refused:
                return
            self._refused[feature] = words
        log.warning("The store does without %s, so %s. It said: %s", feature.value, feature.replacement, words)

    def refused(self) -> dict[str, str]:
        """The names of what is done without, and what the store said."""
        with self._lock:
            return {feature.value: words for feature, words in self._refused.items()}
