"""What the datastore has comes into the bucket: chunks as soon as they are due, a snapshot when it is whole.

Promises that every manifest in the bucket has its closure there, confirmed, at each instant (P1): files and chunks go
up first, references to the chunks are counted, the manifest goes last. What is in the bucket is noted before it is
begun, and as confirmed only after the store has said so. A chunk that a publication has pinned is not deleted (P5).
No snapshot and no chunk leaves the bucket from here: that one is gone is told to whoever called, and what stands in the
way of a publication is taken out by whoever is handed in as `publication.Removal`. Only small things follow at once:
what a snapshot has no more beside its listed files, and the owner, notes and markers that nothing needs.

Read `publication` (a snapshot, from its manifest on), `chunks` (one chunk: sent, replaced, pinned), `references` (who
needs which chunk), `replica` (one object below `.cnt`), `groups` (owner, notes and namespaces), `closures` (what a
snapshot in the bucket needs), `outlook` (what each of them would do, told without doing it).
"""
