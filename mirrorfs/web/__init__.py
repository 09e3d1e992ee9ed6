"""The web page about one mirror: what `mirrorfs status` tells, and how it was in the last day, in a browser.

It promises to change nothing, to be read by nobody who may not, to show each name as text, and that whatever it is sent
is answered by a sentence of HTTP, in bounded time and memory. It knows nothing of mounts: how a mirror is comes from
whoever serves the page.

Read overview (what is told, read anew when somebody looks), then history (the last day, one point a minute), gate (who
may look), pages (what is answered to which request) and serving (sockets and HTTP/1.1). `files` has the page itself.
"""
