"""What a print itself says about its resolution and its colours, beside what its owner says."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageFilter

from fingerprint_accel.data.ridges import MM_PER_INCH, measure_ridges

# Median distance of ridges of eight sets of adults' prints: 0.37 to 0.49 mm, the lowest of a generator.
RIDGE_PERIOD_MM = 0.46
PERIODS_MM = (0.18, 1.1)  # so that prints of half or twice the stated resolution are measured too
WINDOW_MM = 2.4
LEAST_SHARE = 0.35  # of a window's energy around one frequency
NEAR = 0.2  # of a usual resolution, as a share
FEWEST_FOR_OUTLIERS = 5  # prints of a shard, below which none is called unlike the others
LEAST_WINDOWS, MOST_WINDOWS = 4, 12
CENTRE_WINDOWS = 4  # along each side of the middle part that is looked at first
SET_TOLERANCE = 0.2  # of a set's median, which age and sex of its people may explain
PRINT_TOLERANCE = 0.5  # of one print
# Of sensors and archives. Ridges tell a resolution to a fifth at best: those closer together are left out.
USUAL_PPI = (100, 200, 250, 300, 500, 800, 1000, 1200, 2000)
DARK_PAPER = 0.2  # of the way from the dark to the bright lines of a print: what is darker is not paper


def ridge_period(grey: np.ndarray, ppi: float) -> float:
    """Distance of the ridges of a print in mm, by its stated resolution; nan where too few are clear.

    Args:
        grey: (H, W) uint8.
        ppi: as stated.
    """
    window = WINDOW_MM / MM_PER_INCH * ppi
    top, left = (max(0, int(length / 2 - CENTRE_WINDOWS / 2 * window)) for length in grey.shape)
    bottom, right = (int(length / 2 + CENTRE_WINDOWS / 2 * window) + 1 for length in grey.shape)
    found = _period(grey[top:bottom, left:right], ppi)  # the middle is enough for most prints, and takes less time
    return _period(grey, ppi) if math.isnan(found) and (top or left) else found


def _period(grey: np.ndarray, ppi: float) -> float:
    # Shading is stronger than ridges where its period is longer: it goes first.
    image = Image.fromarray(grey)
    shading = np.asarray(image.filter(ImageFilter.BoxBlur(RIDGE_PERIOD_MM / MM_PER_INCH * ppi)), np.float32)
    measured = measure_ridges(grey - shading, ppi, WINDOW_MM, PERIODS_MM, overlap=False, most=MOST_WINDOWS)
    periods = measured.period[measured.share > LEAST_SHARE]
    return float(np.median(periods)) / ppi * MM_PER_INCH if len(periods) >= LEAST_WINDOWS else float("nan")


def likely_ppi(period: float, ppi: float) -> int:
    """The resolution at which ridges that seem `period` mm apart at `ppi` would be as far apart as those of adults: a
    usual one, or where none is near, to tens."""
    true = ppi * period / RIDGE_PERIOD_MM
    usual = min(USUAL_PPI, key=lambda usual: abs(math.log(usual / true)))
    return usual if abs(math.log(usual / true)) < NEAR else round(true / 10) * 10


def is_inverted(grey: np.ndarray) -> bool:
    """Whether ridges are light on dark paper, (H, W) uint8: both sides of the image and its corners are as dark as the
    dark lines in its middle. A print that fills its image leaves no paper to tell, and counts as it is."""
    height, width = grey.shape
    rim = max(4, min(height, width) // 32)
    if min(height, width) < 4 * rim:
        return False
    middle = grey[height // 4 : -(height // 4) : 2, width // 4 : -(width // 4) : 2]
    dark, bright = np.percentile(middle, (10, 90))
    limit = dark + DARK_PAPER * (bright - dark)
    corners = (grey[:rim, :rim], grey[:rim, -rim:], grey[-rim:, :rim], grey[-rim:, -rim:])
    sides = (grey[:, :rim].mean(), grey[:, -rim:].mean())
    return bool(bright > dark and max(sides) < limit and all(np.median(corner) < limit for corner in corners))


def about_ridges(periods: list[float], ppi: int) -> list[tuple[str, str]]:
    """What the ridges of images without a resolution of their own say about the one that was given for them.

    Args:
        periods: distance of the ridges of each print, mm, by that resolution.
        ppi: the resolution.

    Returns:
        Nothing, or one note, under the path ".".
    """
    median = float(np.median(periods)) if periods else RIDGE_PERIOD_MM
    if abs(median / RIDGE_PERIOD_MM - 1) <= SET_TOLERANCE:
        return []
    note = (
        f"ridges lie {median:.2f} mm apart, where those of adults have {RIDGE_PERIOD_MM}; if {ppi} ppi is a guess, "
        f"import again with --ppi {likely_ppi(median, ppi)} --overwrite"
    )
    return [(".", note)]


def outliers(periods: dict[str, float]) -> list[tuple[str, str]]:
    """Notes on prints whose ridges are unlike those of the others of a shard, which holds some of every part of a set.

    `periods` are distances of ridges in mm by name; each note is a name and a text.
    """
    if len(periods) < FEWEST_FOR_OUTLIERS:
        return []
    median = float(np.median(list(periods.values())))
    return [
        (name, f"ridges unlike those of the others: {period:.2f} mm apart, not {median:.2f}; another ppi?")
        for name, period in periods.items()
        if abs(period / median - 1) > PRINT_TOLERANCE
    ]
