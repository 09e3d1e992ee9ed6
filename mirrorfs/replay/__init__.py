"""What is left of a state directory: looked at, kept, and driven into a bucket without a mount.

It promises that looking changes nothing and is noticed by nobody, that half of a state directory is used as far as it
goes and a damaged journal as far as it can be read, and that an export becomes the same journal again or none.

Read source (what is there, opened as far as it can be), then listing (its records one by one; names says what each is
and what the state knows of it), then exchange (a journal as a text file, and back), then run (the bucket brought up to
date from it, by the uploader's engine) and plan (the same, only told).
"""
