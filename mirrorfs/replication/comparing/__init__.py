"""What no journal told is found by looking: datastore, state and bucket compared with each other.

Promises that after a start, a lost journal or a lost state everything that differs becomes work like any other, and
that whoever only wants to know the differences is told them, with what would be done about each. Comparing corrects the
state where it is wrong about the bucket; it sends nothing and deletes nothing.

Read `reconcile` (datastore against state: at each start), `survey` (the same, only told), `inspection` (state against
bucket: `mirrorfs reconcile --deep`), `adoption` (a new state takes in what the bucket holds), `differences` (what a
difference is).
"""
