"""S3-compatible object stores: put, copy, confirm, get, list, delete, retain. The only package that imports boto3.

It promises that an object which was put, copied or deleted without an error is so in the store, by a proof that this
store was seen to give; that a store which is away is waited for, while one that refuses is an error with a sentence;
and that no secret comes into an error or a log.

Read store (what all others use). Below it are reading, uploads, deletions and probe (asynchronous, one for each thing
that is done with a bucket), all made of patience (requests in threads) and retry (waiting out failures); capabilities
has which proofs a store gives, features what it does without. at_once stores one object in one go, synchronous, for
whoever has those as another way.
Below that, synchronous, is client (one bucket, each request tried once) with listing_requests and lock_requests. It
asks through connection (boto3, which makes and signs requests; object_requests does so for single objects with signing,
as boto3 has shown it, and costs less) and transport (which sends them, under deadlines, and as fast as a throttle says,
for which rate_schedule has what an administrator wants; wire does it for most requests that carry no large answer,
urllib3 for all others; causes has why it fails, bodies what is sent). Every answer passes examination, the one
boundary; refusals says what an answer that is no success means, documents and listings read the XML, answers has the
values that come out, masking keeps secrets out of what is quoted. trial tries each right alone, for who stands beside a
store.
checksums calculates what is compared, url has where the bucket is and how it is reached, errors what a caller can meet.
"""
