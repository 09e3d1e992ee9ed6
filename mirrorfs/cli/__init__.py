"""The command line: one thin module a command, named as the command.

It promises that a command which fails says why in a sentence and what to do, with exit code 1 or 2 and no traceback,
and that no secret is taken from an argument. What a command does is done by the packages below this one.

Read main (how a command is found), then any command: mount, umount, status (with status_text and status_watch), wait,
reconcile, retention, metrics (with metrics_text), web, notify, log (with events) for a mount, drilled and listening
for what metrics and web have in common; snapshots, verify, restore (with restore_progress), drill for a bucket; heal
(with heal_progress, mirror_of that tells where a mirror is, and heal_bucket for the other way round) for a datastore
and its bucket; handover and takeback for one that a PBS opens; replay, with replay_plan and replay_run, for what is
left of a state directory; install and uninstall (with service_root) for the service of a mount, and mount_helper,
which mount(8) calls; doctor (with secrets) for a report of a fault. options, view_options, selection_options,
retention_options, limit_options, notify_options, durations, rates and ranges are what they take; setting is what an
option of a mount is, settings_file where it may stand too, settings_text how it is told, config (with config_check)
the command for all that, and reload has a mount read them again. mounted is what those about a mount begin with,
state_directories tells where one keeps what it knows, bucket_reading how those that read a whole bucket run, errors is
how they end badly, screen what is drawn on a terminal, now_and_then what is said of something that takes long where
there is none.
"""
