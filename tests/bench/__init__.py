"""What mirrorfs costs: the same operations on the backing directory and through mounts, as ratios of one run."""
