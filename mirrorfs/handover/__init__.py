"""Giving a bucket to a Proxmox Backup Server, and taking it back.

It promises that no mirror writes below a prefix that was handed over, wherever it runs and whatever it is told but
--take-over; that a bucket is handed over only if all that is published there can be restored, or somebody has said that
it is to be all the same; that what is done can be interrupted and repeated at any moment; and that taking it back
removes nothing.

Read handing_over (to a PBS), commands (what is to be typed there), then taking_back (from it), which compares the
bucket with the datastore. errors has what ends either.
"""
