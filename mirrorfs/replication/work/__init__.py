"""What is to be done and who does it: from a record of the journal to an item that is dealt with.

A record says that a name has changed, never what; it becomes an item, which waits once, and is handled by looking at
the datastore as it is then. This room promises that no record is left out: the position, up to which the journal is
dealt with, passes a record only when its item, and whatever had to be done because of it, is done; and that a removal
waits for everything that was recorded before its name was seen to be gone. Work that fails is a problem, which is kept,
told and tried again, not lost. It knows nothing of how an item is handled: `drain.Handler` says what it needs.

Read `items` (what a name means as work), `worklist` (what waits) with `lanes` (in which order), `drain` (from the
journal to the workers, and the position); then what all rooms stand on: `commits` (what is known, and changing it),
`bucket` (the bucket as it is), `ownership` (what is asked before the bucket is changed), `stored` (reading back what is
in it), `problems` (what cannot be mirrored), `refused` (what the store refuses for one reason), `exclusion` (no two on
one thing).
"""
