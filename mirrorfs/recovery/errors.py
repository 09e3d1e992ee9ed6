"""The errors of recovery that end a whole run; what concerns one snapshot alone is reported as a problem
instead.
"""


class RestoreError(Exception):
    """A restore cannot begin or go on; the text is a sentence for the administrator, saying what to do
    next.
    """


class SnapshotRefused(Exception):
    """One snapshot cannot be brought back as things are, others can; the text says why, and what to do."""


class GroupBusy(SnapshotRefused):
    """PBS has locked the group: trying again in a moment may help."""
