"""What is known exactly of a synthetic print: how its finger lies on the canvas, and where it touched the sensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GRID = 40  # cells of the contact along each side of a canvas of any size
CONTACT_BYTES = GRID**2 // 8  # of a packed contact


@dataclass(frozen=True)
class Truth:
    """Pose and contact of one print, as a dataset holds them.

    Attributes:
        pose: (3,) float32, rotation in radians and shift along x and y in canvas pixels
            (`synthesis.touch.Touch.pose`); NaN where it is unknown, and the contact is unknown with it.
        contact: CONTACT_BYTES bytes, see `pack_contact`; zeros where it is unknown.
    """

    pose: np.ndarray
    contact: bytes

    def on_another_canvas(self, left: float, scale: float, before: int, canvas: int) -> Truth:
        """The same after `canvas.recanvas` has moved the print.

        The contact is resampled from cell to cell, so its border is right to half a cell of the coarser grid.

        Args:
            left: of the new canvas on the old one, old pixels; its top is the same.
            scale: new pixels to one old pixel.
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
        return Truth(pose.astype(np.float32), pack_contact(covered > 0.5 - 1e-9))  # half a cell, but for rounding


UNKNOWN = Truth(np.full(3, np.nan, np.float32), bytes(CONTACT_BYTES))


def pack_contact(contact: np.ndarray) -> bytes:
    """(GRID, GRID) bool, row by row from the top -> CONTACT_BYTES bytes, the first cell in the highest bit."""
    assert contact.shape == (GRID, GRID), "one contact"
    return np.packbits(contact).tobytes()


def unpack_contact(packed: bytes | np.ndarray) -> np.ndarray:
    """CONTACT_BYTES bytes, or (..., CONTACT_BYTES) uint8 -> (..., GRID, GRID) bool: what `pack_contact` has packed."""
    values = np.frombuffer(packed, np.uint8) if isinstance(packed, bytes) else packed
    return np.unpackbits(values, axis=-1).reshape(*values.shape[:-1], GRID, GRID).view(bool)


def overlaps(into: np.ndarray, of: np.ndarray) -> np.ndarray:
    """(m, n): length that each interval between ascending edges `into` (m + 1,) shares with each of `of` (n + 1,)."""
    shared = np.minimum(into[1:, None], of[1:]) - np.maximum(into[:-1, None], of[:-1])
    return shared.clip(min=0)
