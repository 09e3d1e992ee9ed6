"""The errors of this package: each message is a sentence that names what is wrong and where."""


class DatastoreError(Exception):
    """Something in a datastore, or offered as part of one, is not what Proxmox Backup Server writes."""


class BlobError(DatastoreError):
    """A DataBlob (chunk or ``.blob`` file) is truncated, of unknown kind, or fails its checksum."""


class IndexFormatError(DatastoreError):
    """A fixed or dynamic index has a wrong magic, checksum or length."""


class ManifestError(DatastoreError):
    """A manifest is malformed, or does not agree with the snapshot or the files it describes."""
