"""S3-compatible object stores: put, copy, confirm, get, list, delete, retain. The only package that imports boto3.

It promises that an object which was put, copied or deleted without an error is so in the store, by a proof that this
store was seen to give; that a store which is away is waited for, while one that refuses is an error with a sentence;
and that no secret comes into an error or a log.

Read store (what all others use), then retry (waiting out failures), capabilities (which proofs a store gives), client
(one bucket through boto3, and S3's errors made ours), url (where the bucket is). errors has what a caller can meet.
"""
