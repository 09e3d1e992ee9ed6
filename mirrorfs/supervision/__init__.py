"""A running mount: the filesystem process, the uploader process that it keeps alive, and what stands around them.

It promises that one state directory and one datastore have one mount at most, that an uploader which dies or hangs
holds up no system call and is started again, and that a mount ends in order: journal synced, nothing left behind.

Read settings (what a mount is told) and mount (from the first check to the last sync), then sole_mirror (one directory,
one mirror), uploader_process (the process that mirrors, as seen from here), notifier_process (the one that
tells somebody), trimming (dropping what it has dealt with),
ending (at a signal), reloading (at SIGHUP, with changes that tells what may be other, and reload_request for who wants
an answer) and unmounting (by somebody else). foreground and __main__ are the two ways to run it; watchdog sees that
both processes work; registry (which mounts are up), notify (systemd), metrics (Prometheus), users (who keeps it busy)
attached_chunks (who uses these, and unmounting with them) and asking (how both processes are) are what others see.
"""
