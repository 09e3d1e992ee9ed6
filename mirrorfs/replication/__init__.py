"""The uploader: takes names from the journal and makes the bucket equal to the datastore under them.

At the top is the process: `settings` (what it is told), `priority` (whom it goes after), `uploader` (its life),
`engine` (what mirrors, without anything of a process), `mirror` (the rooms put together, and which part handles which
item), `parent` (the filesystem process, which wakes and ends it), `limiting` (how fast it may be at this hour),
`control`, `status`, `recovery_point` and `waiting` (what it answers), `questions` (who asks), `verdict` (what that
means, in one word).
What it does is in seven rooms, each of which knows only rooms that stand above it in this list:

- `work`: what is to be done, who does it, and how far the journal is dealt with by that.
- `ownership`: whose mirror the bucket is, and whether the datastore may be followed at all. Knows `work`.
- `sending`: new chunks go into the bucket in one go, by threads or by worker processes. Knows none of these.
- `publishing`: what the datastore has comes into the bucket. Knows `sending` and `work`.
- `retention`: what the datastore has no more leaves the bucket, when it may. Knows `publishing` and `work`.
- `scrubbing`: what the bucket holds is read again, and sent again where it is damaged. Knows `publishing` and `work`.
- `comparing`: what no journal told is found by looking. Knows `retention`, `publishing` and `work`.
"""
