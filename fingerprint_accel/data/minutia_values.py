"""What values minutiae may have, wherever they come from. A leaf module."""

from __future__ import annotations

import numpy as np

# Of x, y, angle and quality. JPEG and WSQ store the sides of an image in 16 bits, ISO/IEC 19794-2 places in 14; a side
# of 65,535 pixels is 3.3 m at 500 ppi. Minutiae beyond the image but below this are dropped with what the canvas cuts.
LARGEST = 65535
IMPLAUSIBLE = f"minutiae that are not finite or above {LARGEST}"


def plausible(values: np.ndarray) -> bool:
    """Whether values of minutiae, of any shape, are all finite and none is above LARGEST; makes no copy."""
    # comparisons with nan are false, and the extremes of an array that holds nan are nan
    return values.size == 0 or bool(values.min() >= -LARGEST and values.max() <= LARGEST)
