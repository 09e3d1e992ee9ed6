"""Whether an object of the bucket is what its name says: read whole, and checked, by whoever has to know.

It promises that what it gives has passed its checks, and that what does not was read twice, since it may have been
damaged on its way only. The mirror's scrub and all of recovery read by it.

Read reading (an object within its limit, and a check of it), then chunks (what a chunk has to pass).
"""
