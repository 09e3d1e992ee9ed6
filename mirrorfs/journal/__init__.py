"""Journal and state: what changed, and what the bucket is known to hold. The only package that imports lmdb."""
