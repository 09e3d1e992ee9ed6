"""What a Proxmox Backup Server datastore and its files mean: names, formats, checks. Pure: no network, no
mount.
"""
