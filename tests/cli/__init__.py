"""Tests of the command line's own parts; what the commands do is tested end to end."""
