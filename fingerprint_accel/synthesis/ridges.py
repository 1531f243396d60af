"""Ridge pattern of a synthetic finger by iterative filtering of noise (Cappelli, Maio and Maltoni 2002).

Each pixel is filtered with its own direction and ridge period, passed through a saturating function, and filtered
again.

The filter is steerable (Freeman and Adelson 1991). Its angular profile in the frequency plane is a short Fourier
series, so a few inverse transforms give the response for every direction. A bank of Gabor kernels would need one
convolution per direction and interpolation between them.
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
RADIAL_WIDTH = 0.26  # standard deviation of the radial profile, natural logarithm of the frequency
HARMONICS = 5  # multiples of twice the angle; the weight of the next one would be 1 %
GAIN = 2.5
NOISE, PERIOD, PERIOD_WAVES = range(20, 23)  # random streams


def period_field(keys: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Draw the ridge period in mm, (N, H, W): smaller near the core, larger near the joint and on large fingers."""
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
    """Return the log frequency (cycles per mm) and the direction (y up) of each Fourier coefficient, (H, W / 2 + 1)."""
    down = torch.fft.fftfreq(HEIGHT, device=device, dtype=torch.float64)[:, None]
    right = torch.fft.rfftfreq(WIDTH, device=device, dtype=torch.float64)[None]
    radius = torch.hypot(down, right) * PIXELS_PER_MM
    radius[0, 0] = 1e-6
    return radius.log().float(), torch.atan2(-down, right).float()


@lru_cache(maxsize=8)
def _angular(device: torch.device, odd: bool) -> torch.Tensor:
    """Return the weighted angular Fourier series of the filter: cosines, then sines, (2 * orders, H, W / 2 + 1)."""
    angle = _frequency(device)[1].double()
    weights = [math.exp(-((order * ANGULAR_WIDTH) ** 2) / 2) * (1.0 if order else 0.5) for order in _orders(odd)]
    weights += [weight for weight, order in zip(weights, _orders(odd), strict=True) if order]
    return torch.stack([w * part for w, part in zip(weights, _waves(angle, odd), strict=True)]).float()


def _orders(odd: bool) -> list[int]:
    return [2 * k + odd for k in range(HARMONICS + 1)]


def _waves(angle: torch.Tensor, odd: bool) -> list[torch.Tensor]:
    """Return cosines, then sines, of the multiples of an angle. For `normal_angle` they are the steering weights."""
    orders = _orders(odd)
    return [torch.cos(order * angle) for order in orders] + [torch.sin(order * angle) for order in orders if order]


class RidgeFilter:
    """Steerable ridge filter of N fingers, which can be applied repeatedly.

    Args:
        field: (N, H, W) ridge direction, radians.
        period: (N, H, W) ridge period, mm.
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
        """Steer and sum the filter responses: spectrum (N, H, W / 2 + 1) -> (N, H, W).

        Terms are added one by one, so that they stay in the CPU cache.
        """
        fine, coarse = (spectrum * band for band in self.bands)
        total = torch.zeros_like(self.coarse)
        for angular, steer in zip(_angular(spectrum.device, odd), steering, strict=True):
            answers = [torch.fft.irfft2(band * angular, s=(HEIGHT, WIDTH)) for band in (fine, coarse)]
            total.addcmul_(torch.lerp(answers[0], answers[1], self.coarse), steer)
        return total

    def real(self, ridges: torch.Tensor) -> torch.Tensor:
        """Apply the even filter to images (N, H, W)."""
        return self._steered(torch.fft.rfft2(ridges), self.even, odd=False)

    def analytic(self, ridges: torch.Tensor) -> torch.Tensor:
        """Return the analytic signal, (N, H, W) complex. Its argument is the ridge phase along `normal_angle`."""
        spectrum = torch.fft.rfft2(ridges)
        odd = self._steered(spectrum * -1j, _waves(self.normal_angle, odd=True), odd=True)
        return torch.complex(self._steered(spectrum, self.even, odd=False), odd)


def grow(keys: torch.Tensor, pattern: Pattern, period: torch.Tensor, rounds: int = ROUNDS) -> torch.Tensor:
    """Generate the ridges of N fingers as an analytic signal.

    Args:
        keys: (N,) int64 key of each finger.
        pattern: ridge flow.
        period: (N, H, W) ridge period, mm.
        rounds: number of filter iterations; more iterations give fewer minutiae.

    Returns:
        (N, H, W) complex64. The real part is the height of the skin. The zeros of the signal are the minutiae.
    """
    bank = RidgeFilter(pattern.field, period)
    ridges = uniform(keys, NOISE, HEIGHT * WIDTH, -1, 1).view(-1, HEIGHT, WIDTH)
    for _ in range(rounds):
        answer = bank.real(ridges)
        ridges = torch.tanh(GAIN * answer / answer.square().mean(dim=(1, 2), keepdim=True).sqrt())
    return bank.analytic(ridges)
