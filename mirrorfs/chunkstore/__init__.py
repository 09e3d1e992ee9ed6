"""The native chunk store: `.chunks` of the backing directory, attached in the mount, and what tells of its changes.

It promises that PBS reaches its chunks without this process, natively where kernel and file system allow it and through
FUSE where they do not; that what changes there is recorded, or names are compared; and that nothing attached is left
behind. No promise to PBS or about the bucket rests on it.

Read store (when it is attached, and when it goes back to FUSE), then watch (the kernel's events become records, or the
order to compare), events (their format), directories (which of them are meant), place (what is wanted, and whether it
is attached), attachment (attaching and taking away, by other processes; __main__ is one of them) and possibility
(whether it can be native, and why not). system_calls are those that Python lacks.
"""
