"""The errors of recovery that end a whole run; what concerns one snapshot alone is reported as a problem
instead.
"""


class RestoreError(Exception):
    """A restore cannot begin or go on; the text is a sentence for the administrator, saying what to do
    next.
    """
