"""Tests of the journal and the state."""
