"""The main job from the first system call to the last byte in the bucket: real mounts, real processes, real store."""
