"""Tests of mirrorfs.recovery, against a real store."""
