"""LMDB environments: format, growth, damage, and the state directory they lie in."""
