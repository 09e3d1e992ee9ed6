"""Continuous, verified mirror of a Proxmox Backup Server datastore to object storage."""

__version__ = "0.1.0"
