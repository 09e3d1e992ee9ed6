"""The filesystem test harness: a writer that does to a datastore what Proxmox Backup Server does, and an auditor
that reads a bucket. It shares no code with the product, so that it can contradict it."""
