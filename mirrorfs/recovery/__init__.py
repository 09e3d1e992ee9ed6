"""Getting data back out of a bucket: the catalog of published snapshots, and restoring a datastore from them.

It promises that every byte is checked against what the manifest lists before it is in place, that a snapshot's manifest
comes last, that a name from the bucket leads nowhere outside the target, and that a restore which was interrupted goes
on where it was. It needs no state and no journal, and changes nothing in the bucket.

Read source (the bucket as it is, or as it was at a moment), catalog (what it holds), selection (what of it is wanted),
restore (bringing it back, with fetching, chunk_batch, pace and progress), and where it comes to: target is an empty
directory, into a living datastore; both write with files, note in a marker what they have begun, and know by ownership
whose the files are to be. chunk_insertion uses and puts back single chunks where a PBS works, digest_set remembers
which. estimate tells beforehand what a restore would do, attaching how a PBS is told of it afterwards. healing puts
chunks back that a datastore has lost; heal_report is what it tells. verification tells whether the bucket is good;
inventory are the chunks that it has, checkpoint is where an interrupted reading goes on. drill restores for a trial,
into scratch, and has reading_back read it all; drill_report says what came of it. errors has what ends a whole run, or
one snapshot.
"""
