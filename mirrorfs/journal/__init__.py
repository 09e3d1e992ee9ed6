"""The journal: which names of the datastore changed, written by the filesystem and read by the uploader.

It promises that a record stands in it, and outlives a killed process, when `append` returns; that a journal which a
crash of the machine may have cut off is set aside and not trusted; and that it never has more records than names
changed. When it cannot be written, `append` says so, and it is for the filesystem to make that good. A record says
nothing about what changed: whoever reads it looks at the datastore (docs/how-it-works.md, "Level, not edge").

Read journal: Record and Position, then JournalWriter, of which there is one, then JournalReader. view is the journal
for whoever only looks, also at a damaged one; recreation makes one of the records of another.
"""
