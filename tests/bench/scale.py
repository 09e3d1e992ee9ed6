"""How much of everything the benchmark does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes of one run. Rounds are repeats; the other numbers are of files or operations in one repeat.

    Making and removing 4 x 65,536 chunk directories takes minutes on a busy disk; without `all_chunk_directories` there
    are only those that the operations use, and a backup makes those that it needs.
    """

    all_chunk_directories: bool

    rounds: int
    sweep_rounds: int
    backup_mebibytes: int
    large_chunks: int
    small_chunks: int
    marked_chunks: int
    swept_directories: int
    tiny_chunks: int
    known_names: int
    unknown_names: int
    manifests: int
    upload_rounds: int
    uploaded_large_chunks: int
    uploaded_small_chunks: int


FULL = Scale(
    all_chunk_directories=True,
    rounds=5,
    sweep_rounds=3,
    backup_mebibytes=256,
    large_chunks=32,
    small_chunks=1000,
    marked_chunks=4096,
    swept_directories=16384,
    tiny_chunks=500,
    known_names=2000,
    unknown_names=5000,
    manifests=20,
    upload_rounds=3,
    uploaded_large_chunks=128,
    uploaded_small_chunks=3000,
)
QUICK = Scale(
    all_chunk_directories=False,
    rounds=3,
    sweep_rounds=3,
    backup_mebibytes=48,
    large_chunks=8,
    small_chunks=200,
    marked_chunks=1024,
    swept_directories=4096,
    tiny_chunks=100,
    known_names=1000,
    unknown_names=1000,
    manifests=5,
    upload_rounds=1,
    uploaded_large_chunks=32,
    uploaded_small_chunks=500,
)
