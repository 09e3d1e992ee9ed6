"""How handing over and taking back end badly."""

from __future__ import annotations


class HandoverRefused(Exception):
    """The bucket cannot be given or taken like this; the text is a sentence that says why and what to do."""
