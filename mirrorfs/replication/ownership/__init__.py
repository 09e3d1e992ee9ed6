"""Whose mirror this is: asked before anything is done to the bucket, and again and again while it is.

Promises that two mirrors, or a mirror and a PBS, never write below one prefix without an administrator having said so
(`claim`), that this is noticed when it happens all the same (`watch`), that a state which is not the bucket's latest
forgets what it believes of it (both), and that a datastore which looks lost rather than emptied does not empty its
mirror (`precaution`). Read them in this order; each stands alone.
"""
