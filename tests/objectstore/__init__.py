"""Tests of mirrorfs.objectstore, against a real SeaweedFS and, with --ceph, a real Ceph."""
