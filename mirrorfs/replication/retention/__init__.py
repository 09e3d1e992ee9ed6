"""What the datastore has no more leaves the bucket, when it may: what happens after PBS has forgotten a snapshot.

Promises that the manifest goes before anything it lists (P1), that no chunk goes which a snapshot, published or kept,
or a publication under way needs (P5), and that nothing goes sooner than the administrator has settled: not more than
he allows in a day, not before its grace is over, and with no haste because a clock is wrong. Each step is noted before
or with its effect, so that a crash is continued where it happened.

A snapshot that is gone comes here when all that was recorded before is dealt with (`work.worklist`). Read `snapshots`
(whether it may go now, and the order of what follows), `absences` (what nobody saw go waits, unless it looks like a
prune), `wave` (too many at once wait for an approval), `grace` (a copy
stays restorable for a while), `removal` (taking it out: manifest, references, the rest); then `chunks` (deleting what
nobody references any more). `locks` keeps what stays from being deleted by anybody; `clock` says whether an age may be
relied upon. `recurrence` (work that comes again) and `refusals` (when a store that refused is asked again) serve them.
"""
