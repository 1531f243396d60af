"""Generate the ridges of synthetic fingers by iterative filtering of noise (Cappelli, Maio and Maltoni 2002).

In each iteration, a filter for the local ridge direction and ridge period is applied at each pixel, and the responses
pass through a saturating function.

The filter is steerable (Freeman and Adelson 1991). Its angular profile in the frequency plane is a short Fourier
series, so a few inverse Fourier transforms give the response for every direction. A bank of Gabor kernels would need
one convolution per direction and interpolation between the directions.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from fingerprint_accel.random import normal, uniform
from fingerprint_accel.synthesis.geometry import HEIGHT, PIXELS_PER_MM, WIDTH, frame, smooth_field
from fingerprint_accel.synthesis.orientation import Pattern

ROUNDS = 14
ANGULAR_WIDTH = 0.30  # standard deviation of the angular profile of the filter, radians
RADIAL_WIDTH = 0.26  # standard deviation of the radial profile, in the natural logarithm of the frequency
HARMONICS = 5  # number of multiples of twice the angle in the Fourier series; the next would have a weight of 0.2 %
GAIN = 2.5  # factor in front of the saturating function, for responses with a root mean square of 1
NOISE, PERIOD, PERIOD_WAVES = range(20, 23)  # random streams


def period_field(keys: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Draw the ridge period, the distance between neighbouring ridges, at each pixel of each finger.

    The period is smaller near the core, and larger near the joint below the fingertip and on large fingers.

    Args:
        keys: (N,) int64 random key of each finger.
        pattern: ridge flow of the fingers.

    Returns:
        (N, HEIGHT, WIDTH) ridge period, mm.
    """
    x, y = frame(keys.device)
    draw = normal(keys, PERIOD, 3, 2.2)
    base = 0.455 * (1 + 0.045 * draw[:, 0]) * pattern.size**0.6
    core = torch.where(pattern.present[:, :1], pattern.points[:, 0], 0.0)
    distance = (x - core[:, 0, None, None]).square() + (y - core[:, 1, None, None]).square()
    finer = (0.04 + 0.03 * draw[:, 1, None, None]) * torch.exp(-distance / (2 * 3.5**2))
    coarser = (0.10 + 0.04 * draw[:, 2, None, None]) * torch.sigmoid((-y - 5.0) / 1.5)
    waves = 0.05 * smooth_field(normal(keys, PERIOD_WAVES, 42).view(-1, 7, 6), HEIGHT, WIDTH)
    return base[:, None, None] * (1 - finer + coarser + waves)


@lru_cache(maxsize=4)
def _frequency(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the frequency and direction of each coefficient of the Fourier transform (`rfft2`) of a master image.

    Returns:
        Natural logarithm of the frequency in cycles per mm, and direction in radians with y up. Both have the shape
        (HEIGHT, WIDTH / 2 + 1).
    """
    down = torch.fft.fftfreq(HEIGHT, device=device, dtype=torch.float64)[:, None]
    right = torch.fft.rfftfreq(WIDTH, device=device, dtype=torch.float64)[None]
    radius = torch.hypot(down, right) * PIXELS_PER_MM
    radius[0, 0] = 1e-6
    return radius.log().float(), torch.atan2(-down, right).float()


@lru_cache(maxsize=8)
def _angular(device: torch.device, odd: bool) -> torch.Tensor:
    """Return the terms of the Fourier series that describes the angular profile of the ridge filter.

    Args:
        device: device of the result.
        odd: whether to use odd multiples of the angle (odd filter) instead of even multiples (even filter).

    Returns:
        (terms, HEIGHT, WIDTH / 2 + 1). The first axis holds the weighted cosines and then the weighted sines of the
        series. The other axes are the coefficients of `torch.fft.rfft2` of an image.
    """
    angle = _frequency(device)[1].double()
    weights = [math.exp(-((order * ANGULAR_WIDTH) ** 2) / 2) * (1.0 if order else 0.5) for order in _orders(odd)]
    weights += [weight for weight, order in zip(weights, _orders(odd), strict=True) if order]
    return torch.stack([w * part for w, part in zip(weights, _waves(angle, odd), strict=True)]).float()


def _orders(odd: bool) -> list[int]:
    """Return the multiples of the angle in the Fourier series of the filter: odd ones if `odd`, else even ones."""
    return [2 * k + odd for k in range(HARMONICS + 1)]


def _waves(angle: torch.Tensor, odd: bool) -> list[torch.Tensor]:
    """Return the cosines of the multiples of an angle, followed by the sines.

    The Fourier series of the ridge filter consists of these terms. To steer the filter to a direction, the terms of the
    filter are multiplied by the terms for that direction and summed.

    Args:
        angle: angles in radians, any shape.
        odd: whether to use odd multiples instead of even ones.

    Returns:
        One tensor of the shape of `angle` for each term.
    """
    orders = _orders(odd)
    return [torch.cos(order * angle) for order in orders] + [torch.sin(order * angle) for order in orders if order]


class RidgeFilter:
    """Filter that keeps ridges of a given direction and period at each pixel, for N fingers.

    The filter is steerable and can be applied repeatedly.

    Args:
        field: (N, HEIGHT, WIDTH) ridge direction, radians.
        period: (N, HEIGHT, WIDTH) ridge period, mm.
    """

    def __init__(self, field: torch.Tensor, period: torch.Tensor) -> None:
        self.normal_angle = field + math.pi / 2
        low, high = period.amin(dim=(1, 2)), period.amax(dim=(1, 2))
        self.coarse = (period - low[:, None, None]) / (high - low)[:, None, None]
        log_frequency = _frequency(field.device)[0]
        self.bands = [
            torch.exp(-(log_frequency + mm.log()[:, None, None]).square() / (2 * RADIAL_WIDTH**2)) for mm in (low, high)
        ]
        self.even = _waves(self.normal_angle, odd=False)

    def _steered(self, spectrum: torch.Tensor, steering: list[torch.Tensor], odd: bool) -> torch.Tensor:
        """Apply the filter to the Fourier transforms of images, steered to the ridge direction at each pixel.

        Terms of the Fourier series are added one by one, so that they stay in the CPU cache.

        Args:
            spectrum: (N, HEIGHT, WIDTH / 2 + 1) Fourier transforms of the images.
            steering: one weight image (N, HEIGHT, WIDTH) for each term, as `_waves` returns them.
            odd: whether to use the odd filter instead of the even one.

        Returns:
            (N, HEIGHT, WIDTH) responses.
        """
        fine, coarse = (spectrum * band for band in self.bands)
        total = torch.zeros_like(self.coarse)
        for angular, steer in zip(_angular(spectrum.device, odd), steering, strict=True):
            answers = [torch.fft.irfft2(band * angular, s=(HEIGHT, WIDTH)) for band in (fine, coarse)]
            total.addcmul_(torch.lerp(answers[0], answers[1], self.coarse), steer)
        return total

    def real(self, ridges: torch.Tensor) -> torch.Tensor:
        """Return the responses of the even filter to images (N, HEIGHT, WIDTH), in the same shape."""
        return self._steered(torch.fft.rfft2(ridges), self.even, odd=False)

    def analytic(self, ridges: torch.Tensor) -> torch.Tensor:
        """Return the analytic signal of ridge images.

        The real part is the response of the even filter, and the imaginary part is the response of the odd filter. The
        argument of the signal is the phase of the ridges. The phase increases along `normal_angle`, the direction
        perpendicular to the ridges.

        Args:
            ridges: (N, HEIGHT, WIDTH) images.

        Returns:
            (N, HEIGHT, WIDTH) complex64.
        """
        spectrum = torch.fft.rfft2(ridges)
        odd = self._steered(spectrum * -1j, _waves(self.normal_angle, odd=True), odd=True)
        return torch.complex(self._steered(spectrum, self.even, odd=False), odd)


def grow(keys: torch.Tensor, pattern: Pattern, period: torch.Tensor, rounds: int = ROUNDS) -> torch.Tensor:
    """Generate the ridges of N fingers from noise.

    Args:
        keys: (N,) int64 random key of each finger.
        pattern: ridge flow of the fingers.
        period: (N, HEIGHT, WIDTH) ridge period, mm.
        rounds: number of filter iterations; more iterations give fewer minutiae.

    Returns:
        (N, HEIGHT, WIDTH) complex64 analytic signal. Its real part is the height of the skin. Its zeros are the
        minutiae.
    """
    bank = RidgeFilter(pattern.field, period)
    ridges = uniform(keys, NOISE, HEIGHT * WIDTH, -1, 1).view(-1, HEIGHT, WIDTH)
    for _ in range(rounds):
        answer = bank.real(ridges)
        ridges = torch.tanh(GAIN * answer / answer.square().mean(dim=(1, 2), keepdim=True).sqrt())
    return bank.analytic(ridges)
