"""Access to the ground truth of all prints of a dataset, which stays in its memory-mapped shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from fingerprint_accel.data.truth import CONTACT_BYTES, plausible_poses, unpack_contact
from fingerprint_accel.errors import UserError, require


class TruthIndex:
    """Views of the ground truth in the files, for each record batch.

    Args:
        poses: column `pose` of each record batch.
        contacts: column `contact` of each record batch.
        folder: dataset folder, for error messages.

    Raises:
        UserError: if a contact mask has another size.
    """

    def __init__(
        self, poses: Sequence[pa.FixedSizeListArray], contacts: Sequence[pa.BinaryArray], folder: Path
    ) -> None:
        self._folder = folder
        self._views = []  # poses (n, 3) float32, and packed contact masks (n, CONTACT_BYTES) uint8
        for pose, contact in zip(poses, contacts, strict=True):
            rows, values = len(pose), pose.values
            offsets = np.frombuffer(contact.buffers()[1], np.int32)[contact.offset : contact.offset + rows + 1]
            if (np.diff(offsets) != CONTACT_BYTES).any():
                raise UserError(f"{folder}: contains contact masks of another size; make it again with `synth`")
            numbers = np.frombuffer(values.buffers()[1], np.float32)[values.offset + 3 * pose.offset :][: 3 * rows]
            masks = np.frombuffer(contact.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
            self._views.append((numbers.reshape(rows, 3), masks.reshape(rows, CONTACT_BYTES)))
        self._start = np.cumsum([0] + [len(pose) for pose in poses])

    def check(self) -> None:
        """Check the poses of all prints.

        Raises:
            UserError: if a pose is not finite or out of range.
        """
        for poses, _ in self._views:
            self._check(poses)

    def read(self, rows: np.ndarray, pose: np.ndarray, contact: np.ndarray) -> None:
        """Read the ground truth of prints into buffers.

        Args:
            rows: (B,) int64 rows of the dataset.
            pose: (B, 3) float32 buffer.
            contact: (B, GRID, GRID) bool buffer.

        Raises:
            UserError: if a pose is not finite or out of range.
        """
        packed = np.empty((len(rows), CONTACT_BYTES), np.uint8)
        chunks = np.searchsorted(self._start, rows, side="right") - 1
        for chunk in np.unique(chunks).tolist():
            here, (poses, contacts) = chunks == chunk, self._views[chunk]
            places = rows[here] - self._start[chunk]
            pose[here], packed[here] = poses[places], contacts[places]
        self._check(pose)
        contact[:] = unpack_contact(packed)

    def known(self) -> np.ndarray:
        """Return an (N,) bool mask that is True if the ground truth of a print is known."""
        return np.concatenate([~np.isnan(poses[:, 0]) for poses, _ in self._views])

    def _check(self, poses: np.ndarray) -> None:
        remedy = "restore it from a copy, or make it again with `synth`"
        require(plausible_poses(poses), f"{self._folder}: contains a pose that is not finite; {remedy}")
