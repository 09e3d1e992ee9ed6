"""Getting data back out of a bucket: the catalog of published snapshots, and restoring a datastore from
them.
"""
