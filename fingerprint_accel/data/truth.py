"""Ground truth of synthetic prints: the pose of the finger, and the area where the finger touches the sensor.

The area is stored as a contact mask, which states for each of GRID x GRID cells of the canvas whether the finger
touches the cell. The canvas is the square image of a stored print.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GRID = 40  # number of cells of a contact mask along each side of a canvas of any size
CONTACT_BYTES = GRID**2 // 8  # size of a packed contact mask
LARGEST = 65535  # largest absolute value of a pose, as for minutiae


@dataclass(frozen=True)
class Truth:
    """Ground truth of one print: pose and contact mask, as stored in a dataset.

    Attributes:
        pose: (3,) float32, rotation in radians and shift along x and y in canvas pixels (see
            `synthesis.touch.Touch.pose`). NaN if pose and contact are unknown.
        contact: CONTACT_BYTES bytes, the contact mask packed by `pack_contact`; zeros if it is unknown.
    """

    pose: np.ndarray
    contact: bytes

    def on_another_canvas(self, left: float, scale: float, before: int, canvas: int) -> Truth:
        """Return the ground truth of the print after `recanvas.recanvas` has copied the print to a different canvas.

        The contact mask is resampled between the two grids. Its border is accurate to half a cell of the coarser grid.

        Args:
            left: left and top edge of the new canvas on the old canvas, in pixels of the old canvas.
            scale: pixels of the new canvas per pixel of the old one.
            before: side of the old canvas, pixels.
            canvas: side of the new canvas, pixels.
        """
        if np.isnan(self.pose).any():
            return self
        pose = self.pose.astype(np.float64)
        pose[1:] = (before / 2 + pose[1:] - left) * scale - canvas / 2
        cells = np.arange(GRID + 1) / GRID
        shares = overlaps(left + cells * (canvas / scale), cells * before) * (GRID * scale / canvas)
        covered = shares @ unpack_contact(self.contact) @ shares.T
        # A cell is in contact if half of its area is covered. The value 1e-9 absorbs rounding errors.
        return Truth(pose.astype(np.float32), pack_contact(covered > 0.5 - 1e-9))


UNKNOWN = Truth(np.full(3, np.nan, np.float32), bytes(CONTACT_BYTES))


def plausible_poses(poses: np.ndarray) -> bool:
    """Return whether all numbers of each pose in an array (n, 3) are finite, or all are NaN (unknown)."""
    # Comparisons with NaN are false.
    known = (np.abs(poses) <= LARGEST).all(axis=-1)
    return bool((known | np.isnan(poses).all(axis=-1)).all())


def pack_contact(contact: np.ndarray) -> bytes:
    """Pack a contact mask (GRID, GRID) bool into CONTACT_BYTES bytes.

    Cells are in row-major order. The first cell is the highest bit of the first byte.
    """
    assert contact.shape == (GRID, GRID), "one contact mask"
    return np.packbits(contact).tobytes()


def unpack_contact(packed: bytes | np.ndarray) -> np.ndarray:
    """Unpack one or more contact masks. This is the inverse of `pack_contact`.

    Args:
        packed: CONTACT_BYTES bytes, or an array (..., CONTACT_BYTES) uint8.

    Returns:
        (..., GRID, GRID) bool.
    """
    values = np.frombuffer(packed, np.uint8) if isinstance(packed, bytes) else packed
    return np.unpackbits(values, axis=-1).reshape(*values.shape[:-1], GRID, GRID).view(bool)


def overlaps(into: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Compute the length of the overlap of each interval in one partition with each interval in a second partition.

    Args:
        into: (m + 1,) ascending edges of the first partition.
        of: (n + 1,) ascending edges of the second partition.

    Returns:
        (m, n) length of the intersection of each pair of intervals.
    """
    shared = np.minimum(into[1:, None], of[1:]) - np.maximum(into[:-1, None], of[:-1])
    return shared.clip(min=0)
