"""What the bucket holds is read again and again, and what is damaged or gone there is sent again from the datastore.

It promises that reading goes after all other work of the mirror, that nothing counts as damaged because of an outage
or because it was changed meanwhile, and that what cannot be sent again becomes a problem that names the snapshots which
it costs.

Read examination (one object: read, checked, and sent again if need be), then scrub (which of them comes when), then
kept (deleted snapshots that the bucket keeps, which nobody can send again), losses (what stays damaged, and whom it
costs) and healing (the same for what somebody else has found).
"""
