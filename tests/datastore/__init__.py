"""Tests of mirrorfs.datastore."""
