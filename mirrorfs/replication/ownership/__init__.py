"""Whose mirror this is: asked before anything else is done to the bucket.

Promises that two mirrors never write below one prefix without an administrator having said so (`claim`), that a state
which is not the bucket's latest forgets what it believes of it (`claim`), and that a datastore which looks lost rather
than emptied does not empty its mirror (`precaution`). Read them in this order; each stands alone.
"""
