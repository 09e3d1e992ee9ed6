"""The pass-through filesystem that PBS works on, and which of its changes are recorded in the journal.

It promises that every call has the result, the error and the effect that the backing file system gives, that no
request waits for the disk of another one, and that a name which has reached its final form is in the journal before
PBS is answered. It knows nothing of stores and of mirroring, and never touches the network.

Read operations (each request of the kernel), then what it stands on: tree (from inode numbers to files) over inodes
and descriptors, files, listing, shares (what each user may hold of these) with slots (and of requests under way),
attributes with attribute_changes, extended_attributes over callers (who asks), root_attributes (what the kernel asks
for at each path), caching (what the kernel may keep), threads (what may wait for the disk), system_calls.
Then observer (what is told of changes) and interception (which of them become records). mount is the session with the
kernel, handshake its beginning, reading how its requests are waited for, interruption what keeps its event loop
running; mount_table is what is mounted where, condition whether a mount answers.
"""
