"""What a Proxmox Backup Server datastore and its files mean: names, formats, checks. No network, no mount, no threads.

It promises that what it takes for valid is what PBS writes and reads, and that everything else is an error with a
sentence; each format says where in PBS it comes from. Names from a bucket or a journal are hostile until they have come
through here.

Read names (the grammar of paths), patterns (of many of them), tree (reading a datastore by it) and layout (where the
same stands in a bucket); then the formats: manifest, index, blob, group_files, and deletion, which is our own. What
others wrote may be of any size: limits says what is read of each kind, content and digests hold outside of memory what
is large, json_input reads JSON within bounds, quoting is for what is quoted in messages. server_configuration tells
what the PBS of this machine calls a datastore. errors has what they all raise.
"""
