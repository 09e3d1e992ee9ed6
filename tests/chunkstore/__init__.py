"""Tests of mirrorfs.chunkstore."""
