"""Check whether the stated resolution of images fits the distance of their ridges, and whether images are inverted."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageFilter

from fingerprint_accel.data.ridges import MM_PER_INCH, measure_ridges

# Typical distance of ridges of adults, mm. The medians of eight sets of prints are 0.37 to 0.49 mm. The lowest median
# is from a set of generated prints.
RIDGE_PERIOD_MM = 0.46
PERIODS_MM = (0.18, 1.1)  # range of ridge distances; it allows for a true resolution of half or twice the stated one
WINDOW_MM = 2.4  # side of a window in which the ridge distance is measured, mm
LEAST_SHARE = 0.35  # minimum share of the energy of a window around one frequency
NEAR = 0.2  # largest deviation (natural logarithm) from a common resolution
FEWEST_FOR_OUTLIERS = 5  # minimum number of prints in a shard for the search for outliers
LEAST_WINDOWS, MOST_WINDOWS = 4, 12  # number of windows that are needed, and that are measured
CENTRE_WINDOWS = 4  # side of the central part that is measured first, in windows
SET_TOLERANCE = 0.2  # largest relative deviation of the median of a set; age and sex can explain it
PRINT_TOLERANCE = 0.5  # largest relative deviation of one print
# Common resolutions of sensors and archives. The ridge distance determines the resolution only to about 20 %, so
# resolutions that lie closer together are left out.
USUAL_PPI = (100, 200, 250, 300, 500, 800, 1000, 1200, 2000)
DARK_PAPER = 0.2  # largest brightness of dark paper, on a scale from the dark (0) to the bright (1) lines of the print


def ridge_period(grey: np.ndarray, ppi: float) -> float:
    """Measure the distance between neighbouring ridges of a print, in mm. Return NaN if there are too few clear ridges.

    Args:
        grey: (H, W) uint8 image of a print.
        ppi: stated resolution of the image, pixels per inch.
    """
    window = WINDOW_MM / MM_PER_INCH * ppi
    top, left = (max(0, int(length / 2 - CENTRE_WINDOWS / 2 * window)) for length in grey.shape)
    bottom, right = (int(length / 2 + CENTRE_WINDOWS / 2 * window) + 1 for length in grey.shape)
    found = _period(grey[top:bottom, left:right], ppi)  # the central part is enough for most prints, and faster
    return _period(grey, ppi) if math.isnan(found) and (top or left) else found


def _period(grey: np.ndarray, ppi: float) -> float:
    # Shading is stronger than ridges and would dominate the spectrum, so it is subtracted first.
    image = Image.fromarray(grey)
    shading = np.asarray(image.filter(ImageFilter.BoxBlur(RIDGE_PERIOD_MM / MM_PER_INCH * ppi)))
    level = np.subtract(grey, shading, dtype=np.int16)  # smaller than floating-point numbers
    measured = measure_ridges(level, ppi, WINDOW_MM, PERIODS_MM, overlap=False, most=MOST_WINDOWS)
    periods = measured.period[measured.share > LEAST_SHARE]
    return float(np.median(periods)) / ppi * MM_PER_INCH if len(periods) >= LEAST_WINDOWS else float("nan")


def likely_ppi(period: float, ppi: float) -> int:
    """Estimate the true resolution of prints from the measured distance between their ridges.

    Args:
        period: distance between ridges, mm, measured under the assumption that the resolution is `ppi`.
        ppi: stated resolution, pixels per inch.

    Returns:
        Resolution in pixels per inch at which the distance would be `RIDGE_PERIOD_MM`, the typical value of adults. The
        result is rounded to a common resolution, or to a multiple of 10 if no common resolution is close.
    """
    true = ppi * period / RIDGE_PERIOD_MM
    usual = min(USUAL_PPI, key=lambda usual: abs(math.log(usual / true)))
    return usual if abs(math.log(usual / true)) < NEAR else round(true / 10) * 10


def is_inverted(grey: np.ndarray) -> bool:
    """Return whether a (H, W) uint8 image shows light ridges on a dark background.

    An image is inverted if its left and right edges and its four corners are as dark as the dark lines in the middle. A
    print that fills the whole image has no visible background, and the result is False.
    """
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
    """Check the assumed resolution of a set of prints by the typical distance of their ridges.

    Args:
        periods: distance of ridges of each print, mm, measured under the assumption that the resolution is `ppi`.
        ppi: resolution that was assumed for images that do not state their own, pixels per inch.

    Returns:
        One note (path "." and text) if the resolution seems wrong; otherwise an empty list.
    """
    median = float(np.median(periods)) if periods else RIDGE_PERIOD_MM
    if abs(median / RIDGE_PERIOD_MM - 1) <= SET_TOLERANCE:
        return []
    note = (
        f"ridges lie {median:.2f} mm apart, but those of adults lie {RIDGE_PERIOD_MM} mm apart; "
        f"if {ppi} ppi is a guess, import again with --ppi {likely_ppi(median, ppi)} --overwrite"
    )
    return [(".", note)]


def outliers(periods: dict[str, float]) -> list[tuple[str, str]]:
    """Find prints with an unusual distance of ridges among the prints of one shard.

    The prints of a shard are a random sample of the whole set and therefore represent it.

    Args:
        periods: dictionary from the name of each print to the distance of its ridges, mm.

    Returns:
        List of notes (name, text), one for each unusual print.
    """
    if len(periods) < FEWEST_FOR_OUTLIERS:
        return []
    median = float(np.median(list(periods.values())))
    return [
        (name, f"ridges unlike those of the others: {period:.2f} mm apart, not {median:.2f} mm; check the ppi")
        for name, period in periods.items()
        if abs(period / median - 1) > PRINT_TOLERANCE
    ]
