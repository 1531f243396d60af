"""The verb `verify`."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional


def verify(folder: Positional[Path]) -> None:
    """Compares the files of a folder with the checksums that were taken when they were written.

    fingerprint-accel verify datasets/db1

    fingerprint-accel verify runs/mine

    Args:
        folder: Dataset, gallery, embeddings, exported model, checkpoint, or run folder with all its checkpoints.
    """
    from fingerprint_accel.extraction.verifying import verify as compare

    files, size = compare(folder)
    print(f"{folder}: {files} file{'s' * (files != 1)}, {size / 1e6:.1f} MB, all as they were written")
