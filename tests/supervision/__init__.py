"""Tests of what stands around a mount."""
