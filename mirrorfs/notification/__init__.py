"""Telling somebody when a mirror is broken, held or behind, and when it is well again: by a command, or by mail.

It promises that each of these is told once, also over restarts; that what is told is what `mirrorfs status` says; and
that neither the mount nor the uploader ever waits for it: it is a process of its own, which asks both as a command
does, so that it can tell when one of them hangs.

Read event (what is told), watching (when), told (what has been told, kept in the state directory), delivery (how: a
command or mail, under a time limit), then notifier (all of it put together, with tries again) and __main__ (the
process, started by mirrorfs/supervision/notifier_process.py when there is something set). failure is for the day on
which that process was killed with its mount.
"""
