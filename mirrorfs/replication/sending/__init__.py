"""New chunks from the datastore into the bucket in one go, each: read, checked, hashed, put and looked at.

This room is the short way for what nearly always works, and it decides nothing: whoever asks notes an intention before
and a confirmation after, and does step by step, with all patience, what was not seen to work here. So a refusal, an
outage or a sick chunk is found, told and waited for in one place, and that is not here. What is lost here, with a
worker process that dies, is what a crash of the uploader would have left: an intention.

Read `attempt` (one chunk in one go), `sender` (many of them: in which hands, and how many at a time), `threads` (hands
of this process), `workers` with `messages` (hands of others) and `__main__` (such another process).
"""
