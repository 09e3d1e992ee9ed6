"""A running mount: the filesystem process, the uploader process that it keeps alive, and what stands around them."""
