"""The state: what the bucket is known to hold, who references which chunk, and what cannot be mirrored and why.

It promises that what is noted in one `State.update` is on stable storage when that returns, all of it or none, and
that a damaged state is set aside and begun anew rather than believed. Nothing in it is needed for a restore, and all
of it can be learned again from the datastore and the bucket.

Read state first: its StateTransaction is the table of contents, one attribute for each subject. Each subject has its
module with the dataclasses that are stored and a class of records over one transaction: snapshots, contents and chunks
(what is in the bucket), counting (the references to chunks), retention and locks (what leaves the bucket, what keeps
it), quarantine, problems (what is wrong in the datastore), identity and progress (what the state is about and how far
it has come), scrub (what of the bucket was read again when). entries is how all of them are written, damage what is
done with a state that cannot be read, look the state for whoever only looks.
"""
