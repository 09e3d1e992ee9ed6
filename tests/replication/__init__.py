"""Tests of the uploader: what it makes of a datastore in a store, whatever happens meanwhile."""
