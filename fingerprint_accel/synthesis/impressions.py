"""One touch of a finger: placement, plastic distortion, pressure and moisture of the skin, sensor.

Distortion follows Cappelli, Maio and Maltoni 2001 ("Modelling plastic distortion in fingerprint images": a middle that
sticks, an edge that moves with the finger, skin stretched in between) with a smooth random field on top. Everything is a
pure function of the finger and of the key of the impression.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F

from fingerprint_accel.errors import UserError
from fingerprint_accel.random import mix, normal, sample_keys, uniform
from fingerprint_accel.synthesis.geometry import HEIGHT, PIXELS_PER_MM, WIDTH, smooth_field
from fingerprint_accel.synthesis.sensors import DEFAULT, PARAMETERS, SENSORS, sensor_ranges
from fingerprint_accel.synthesis.skin import UNIT, Masters
from fingerprint_accel.synthesis.workers import each

QUALITIES = {"clean": (0.15, 0.3), "default": (0.3, 1.1), "poor": (0.9, 1.6), "mixed": (0.15, 1.6)}
"""Severity of what goes wrong at a touch is drawn from these ranges."""
TOUCH = (
    "severity", "sensor", "angle", "x", "y", "width", "height", "square", "pressure", "gradient", "dry", "wet",
    "torsion", "slip", "slip_angle", "grip", "window_x", "window_y", "noise_x", "noise_y", "grain_x", "grain_y",
)  # fmt: skip
POINTS = 35  # control points along each side of the slow fields
TILE = 512  # pixels, side of the noise that every impression takes a window of
DRAWS, SENSOR_DRAWS, BORDER, ELASTIC, PRESSURE, DRYNESS, BLOTS, SHADE, STRIPES, ROWS, SCRATCH = range(60, 71)  # streams
SCRATCHES = 2  # at most
FADE_MM = 2.0  # beyond the skin's border everything fades to white, as after an import


@dataclass(frozen=True)
class Style:
    """What impressions look like.

    Attributes:
        sensors: names of `SENSORS`; every impression is taken by one of them.
        quality: name of `QUALITIES`.
        ppi: resolution, pixels per inch.
        canvas: side of an impression, pixels.

    Raises:
        UserError: an unknown sensor or quality, or a size out of range.
    """

    sensors: tuple[str, ...] = DEFAULT
    quality: str = "default"
    ppi: int = 300
    canvas: int = 320

    def __post_init__(self) -> None:
        for name in self.sensors:
            if name not in SENSORS:
                raise UserError(f"sensor {name!r}: unknown; there are {', '.join(SENSORS)}")
        if not self.sensors:
            raise UserError(f"no sensor: name at least one of {', '.join(SENSORS)}")
        if self.quality not in QUALITIES:
            raise UserError(f"quality {self.quality!r}: unknown; there are {', '.join(QUALITIES)}")
        if not 150 <= self.ppi <= 1000:
            raise UserError(f"ppi {self.ppi}: must lie between 150 and 1000")
        if not 64 <= self.canvas <= 2048:
            raise UserError(f"canvas {self.canvas}: must lie between 64 and 2048")


@dataclass(frozen=True)
class Prints:
    """Impressions as a dataset holds them.

    Attributes:
        image: (B, canvas, canvas) uint8, ridges dark.
        minutiae: (B, M, 4) float32 x, y (canvas pixels), angle (radians), quality; padded with zeros.
        count: (B,) int64.
        ending: (B, M) bool, ridge ending; else bifurcation.
        skin: (B, canvas, canvas) bool, where the finger touched the sensing area.
    """

    image: torch.Tensor
    minutiae: torch.Tensor
    count: torch.Tensor
    ending: torch.Tensor
    skin: torch.Tensor


def impression_keys(seed: int, fingers: torch.Tensor, impressions: torch.Tensor) -> torch.Tensor:
    """fingers (B,), impressions (B,) int64 from 0 -> (B,) int64 key of each impression."""
    return sample_keys(seed, impressions, fingers)


@lru_cache(maxsize=4)
def _tiles(ppi: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(TILE, TILE) standard noise twice: independent pixels, and grain of about a fifth of a millimetre."""
    keys = mix(torch.arange(2 * TILE, device=device) + 2382)
    white, other = normal(keys, 0, TILE).double().split(TILE)
    frequency = torch.fft.fftfreq(TILE, device=device, dtype=torch.float64)
    sigma = 0.085 * ppi / 25.4
    response = torch.exp(-2 * (math.pi * sigma) ** 2 * (frequency[:, None] ** 2 + frequency[None] ** 2))
    grain = torch.fft.ifft2(torch.fft.fft2(other) * response).real
    return white.float(), (grain / grain.std()).float()


def render(masters: Masters, which: torch.Tensor, keys: torch.Tensor, style: Style) -> Prints:
    """Impressions of fingers, on the masters' device.

    A GPU makes them together; on a CPU each has the same bits in any batch.

    Args:
        masters: the fingers.
        which: (B,) int64, index of the finger of each impression.
        keys: (B,) int64, see `impression_keys`.
        style: sensors, quality, resolution.
    """
    if which.device.type == "cpu":
        pairs = list(zip(which.split(1), keys.split(1), strict=True))
        return _join(each(lambda pair: _render(masters, *pair, style), pairs))
    return _render(masters, which, keys, style)


@torch.no_grad()
def _render(masters: Masters, which: torch.Tensor, keys: torch.Tensor, style: Style) -> Prints:
    return _Touch(masters, which, keys, style).prints()


def _join(parts: list[Prints]) -> Prints:
    most = max(part.minutiae.shape[1] for part in parts)
    return Prints(
        torch.cat([part.image for part in parts]),
        torch.cat([F.pad(part.minutiae, (0, 0, 0, most - part.minutiae.shape[1])) for part in parts]),
        torch.cat([part.count for part in parts]),
        torch.cat([F.pad(part.ending, (0, most - part.ending.shape[1])) for part in parts]),
        torch.cat([part.skin for part in parts]),
    )


class _Touch:
    """The making of a batch of impressions; every tensor is (B, ...)."""

    def __init__(self, masters: Masters, which: torch.Tensor, keys: torch.Tensor, style: Style) -> None:
        self.masters, self.which, self.keys, self.style = masters, which, keys, style
        self.device = keys.device
        self.mm = 25.4 / style.ppi  # side of a pixel
        draws = uniform(keys, DRAWS, len(TOUCH))
        self.draw = {name: draws[:, i, None, None] for i, name in enumerate(TOUCH)}
        low, high = QUALITIES[style.quality]
        self.severity = low + (high - low) * self.draw["severity"]
        number = (self.draw["sensor"][:, 0, 0] * len(style.sensors)).long()
        ranges = sensor_ranges(style.sensors, self.device)[number]
        values = torch.lerp(ranges[..., 0], ranges[..., 1], uniform(keys, SENSOR_DRAWS, len(PARAMETERS)))
        self.sensor = {name: values[:, i, None, None] for i, name in enumerate(PARAMETERS)}
        self._place()

    def _signed(self, name: str, size: float) -> torch.Tensor:
        return (2 * self.draw[name] - 1) * size

    def _place(self) -> None:
        """Which part of the finger touches, how it is turned, and where the sensing area ends."""
        strong = self.severity
        self.angle = self._signed("angle", 0.38) * strong.clamp(max=1.2)
        spot = (0.5 + strong).clamp(max=1.6)
        self.spot_x, self.spot_y = self._signed("x", 1.8) * spot, 0.3 + self._signed("y", 2.8) * spot
        size = self.masters.size[self.which][:, None, None]
        smaller = 1 - 0.28 * strong * self.draw["square"] * self.draw["width"]
        self.half_x = (6.4 + 2.4 * self.draw["width"]) * size * smaller
        self.half_y = (8.2 + 3.6 * self.draw["height"]) * size * smaller
        cos, sin = self.angle.cos(), self.angle.sin()
        reach_x = ((self.half_x * cos).square() + (self.half_y * sin).square()).sqrt()
        reach_y = ((self.half_x * sin).square() + (self.half_y * cos).square()).sqrt()
        limits = []
        for name, reach, extent in (("window_x", reach_x, "width"), ("window_y", reach_y, "height")):
            half = self.sensor[extent] / 2
            off = self._signed(name, 3.2) * strong.clamp(max=1.2)
            low, high = torch.maximum(off - half, -reach), torch.minimum(off + half, reach)
            middle = (low + high) / 2  # goes to the middle of the canvas
            limits.append((off - half - middle, off + half - middle, middle))
        self.left, self.right, self.shift_x = limits[0]
        self.bottom, self.top, self.shift_y = limits[1]

    def _grid(self, points: int, over: float) -> tuple[torch.Tensor, torch.Tensor]:
        """x (1, 1, points) and y (1, points, 1) in mm of a grid over the canvas, `over` steps beyond its ends."""
        half = (self.style.canvas - 1) / 2 * self.mm
        step = 2 * half / (points - 1 - 2 * over)
        axis = (torch.arange(points, device=self.device) - over) * step - half
        return axis[None, None, :], -axis[None, :, None]

    def _slow(self, stream: int, points: int, count: int = 1) -> torch.Tensor:
        """(B, count, POINTS, POINTS) smooth random values with `points` random numbers along each side."""
        values = normal(self.keys, stream, count * points * points).view(-1, count, points, points)
        return smooth_field(values, POINTS, POINTS)

    def _skin_frame(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Canvas mm -> mm along the axes of the finger, from the middle of the contact."""
        x, y = x + self.shift_x, y + self.shift_y
        cos, sin = self.angle.cos(), self.angle.sin()
        return x * cos + y * sin, y * cos - x * sin

    def fields(self) -> torch.Tensor:
        """(B, 6, canvas, canvas): displacement x and y (mm), depth inside the contact (mm), pressure, dryness, shading."""
        x, y = self._grid(POINTS, over=1)
        u, v = self._skin_frame(x, y)
        strong = self.severity
        power = 2 + 1.2 * self.draw["square"]
        radius = ((u / self.half_x).abs() ** power + (v / self.half_y).abs() ** power + 1e-6) ** (1 / power)
        border = self._slow(BORDER, 14)[:, 0] * (0.25 + 0.55 * strong)
        depth = (1 - radius) * self.half_x + border
        away = (
            (u / (self.half_x * (0.25 + 0.35 * self.draw["grip"]))).square() + (v / self.half_y * 2).square()
        ).sqrt()
        brake = 0.5 - 0.5 * torch.cos(math.pi * ((away - 1) / 1.5).clamp(0, 1))
        torsion = self._signed("torsion", 0.14) * strong * brake
        slip, toward = self.draw["slip"] * 0.9 * strong * brake, self.draw["slip_angle"] * (2 * math.pi)
        elastic = self._slow(ELASTIC, 6, 2) * (0.22 * strong)[:, None]
        move_x = slip * toward.cos() - torsion * v + elastic[:, 0]
        move_y = slip * toward.sin() + torsion * u + elastic[:, 1]
        lean = (u * self._signed("gradient", 1.0) / self.half_x + v * self._signed("grip", 1.0) / self.half_y) * 0.22
        pressure = self._signed("pressure", 0.62) * strong + self.sensor["pressure"]
        pressure = pressure + (0.24 * self._slow(PRESSURE, 8)[:, 0] + lean) * strong
        blots = (self._slow(BLOTS, 14)[:, 0] - 1.1).clamp_min(0) * 1.6 * (self.draw["wet"] - 0.45).clamp_min(0)
        pressure = pressure + blots * strong - 0.75 * torch.exp(-depth.clamp_min(0) / 0.8)
        dry = (0.16 + 1.0 * self.draw["dry"] ** 3 * strong) * (1 + 0.6 * self._slow(DRYNESS, 8)[:, 0]).clamp(0.1, 2.2)
        shade = self._slow(SHADE, 5)[:, 0]
        slow = torch.stack([move_x, move_y, depth, pressure, dry, shade], dim=1)
        return smooth_field(slow, self.style.canvas, self.style.canvas)

    def _window(self, tile: torch.Tensor, across: str, down: str) -> torch.Tensor:
        """(B, canvas, canvas): a window of a repeating tile per impression."""
        axis = torch.arange(self.style.canvas, device=self.device)
        rows = (axis[None] + (self.draw[down][:, :, 0] * TILE).long()) % TILE
        columns = (axis[None] + (self.draw[across][:, :, 0] * TILE).long()) % TILE
        return tile[rows[:, :, None], columns[:, None, :]]

    def _scratches(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """(B, canvas, canvas) in 0..1: what is left of the ink under scratches and hairs."""
        left: torch.Tensor = torch.ones(1, device=self.device)
        for line in range(SCRATCHES):
            draw = uniform(self.keys, SCRATCH * 1000 + line, 6)[:, :, None, None]
            angle = math.pi * draw[:, 0]
            across = x * angle.cos() + y * angle.sin() - (12 * draw[:, 1] - 6)
            along = y * angle.cos() - x * angle.sin() - (12 * draw[:, 2] - 6)
            width, half = 0.06 + 0.10 * draw[:, 3].square(), 1.0 + 5.0 * draw[:, 4]
            depth = (draw[:, 5] < 0.45 * self.severity) * (0.5 + 0.5 * draw[:, 3])
            line_there = torch.exp(-(across / width).square()) * torch.sigmoid((half - along.abs()) / 0.3)
            left = left * (1 - depth * line_there)
        return left

    def prints(self) -> Prints:
        """Renders."""
        move_x, move_y, depth, pressure, dry, shade = self.fields().unbind(1)
        x, y = self._grid(self.style.canvas, over=0)
        jitter = normal(self.keys, ROWS, self.style.canvas)[:, :, None]
        move_x = move_x + self.sensor["jitter"] * jitter
        u, v = self._skin_frame(x, y)
        source = torch.stack(
            [
                (u + self.spot_x + move_x) * (2 * PIXELS_PER_MM / WIDTH),
                -(v + self.spot_y + move_y) * (2 * PIXELS_PER_MM / HEIGHT),
            ],
            dim=-1,
        )  # (B, canvas, canvas, 2)
        ridges = self.masters.ridges[self.which][:, None].float()
        height = F.grid_sample(ridges, source, mode="bicubic", padding_mode="border", align_corners=False)[:, 0]
        height = (height - 127) / UNIT
        white, grain = _tiles(self.style.ppi, self.device)
        coarse = self._window(grain, "grain_x", "grain_y")
        fine = self._window(white, "noise_x", "noise_y")
        loss = dry * torch.where(
            coarse > 0, 0.45 * coarse, 1.25 * coarse
        )  # dry skin breaks ridges more than it fills valleys
        ink = torch.sigmoid(self.sensor["sharpness"] * (height + pressure + loss - 0.1))
        inside = ((x > self.left) & (x < self.right)) & ((y > self.bottom) & (y < self.top))
        contact = torch.sigmoid(depth / 0.12)
        ink = (
            ink
            * contact
            * self._scratches(x, y)
            * (1 - self.sensor["texture"] * 0.35 * (1 + coarse.roll(97, 2)).clamp(0, 2))
        )
        specks = (coarse.roll(211, 1) - 2.6).clamp_min(0) * self.sensor["specks"] * self.severity
        ink = _blurred(ink + specks, self.sensor["blur"])
        image = self._grey(ink, depth, shade, fine, inside, x)
        minutiae, count, ending = self._minutiae(source, depth, dry, inside, height.shape[-1])
        return Prints(image, minutiae, count, ending, (depth > 0) & inside)

    def _grey(
        self, ink: torch.Tensor, depth: torch.Tensor, shade: torch.Tensor, fine: torch.Tensor, inside: torch.Tensor,
        x: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """(B, canvas, canvas) uint8: what the sensor makes of ink, on a background that fades to white."""
        sensor = self.sensor
        skin = torch.sigmoid((depth + 0.3) / 0.5)
        grey = 255 - sensor["contrast"] * ink - sensor["halo"] * self.severity * skin
        grey = grey + sensor["vignette"] * shade + sensor["noise"] * fine
        stripes = normal(mix(self.keys % 64), STRIPES, self.style.canvas)[:, None, :]  # 64 devices
        grey = grey + sensor["stripes"] * stripes
        turned = self.draw["slip_angle"] < sensor["inverted"]
        grey = torch.where(turned, 510 - sensor["contrast"] - grey, grey)
        shown = torch.sigmoid((depth + FADE_MM) / 0.25) * inside
        return torch.lerp(torch.full_like(grey, 255.0), grey.clamp(0, 255), shown).round().to(torch.uint8)

    def _minutiae(
        self, source: torch.Tensor, depth: torch.Tensor, dry: torch.Tensor, inside: torch.Tensor, canvas: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Minutiae of the fingers where they come to lie; those that did not touch, or off the sensor, are dropped."""
        own = self.masters.minutiae
        position, angle = own.position[self.which], own.angle[self.which]
        ending, count = own.ending[self.which], own.count[self.which]
        step = 0.15 * torch.stack([angle.cos(), angle.sin()], dim=-1)
        start = self._on_canvas(position, source)
        ahead = self._on_canvas(position + step, source)
        turned = torch.remainder(torch.atan2(start[..., 1] - ahead[..., 1], ahead[..., 0] - start[..., 0]), 2 * math.pi)
        maps = torch.stack([depth, dry.expand_as(depth), inside.float()], dim=1)
        where = (start * (2 / canvas) - 1)[:, :, None]
        sampled = F.grid_sample(maps, where, mode="bilinear", padding_mode="zeros", align_corners=False)[..., 0]
        there = torch.arange(position.shape[1], device=self.device) < count[:, None]
        on_canvas = (start.amin(-1) >= 0) & (start.amax(-1) <= canvas)
        keep = there & on_canvas & (sampled[:, 0] > 0) & (sampled[:, 2] > 0.5)
        quality = (sampled[:, 0] / 1.5).clamp(0.1, 1) * (1.1 - 0.7 * sampled[:, 1]).clamp(0.1, 1)
        rows = torch.cat([start, turned[..., None], quality[..., None]], dim=-1)
        order = torch.argsort(~keep, dim=1, stable=True)
        kept = keep.sum(dim=1)
        most = max(1, int(kept.max()))
        rows = (rows * keep[..., None]).gather(1, order[:, :most, None].expand(-1, -1, 4))
        return rows, kept, (ending & keep).gather(1, order[:, :most])

    def _on_canvas(self, position: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """position (B, M, 2) mm on the finger -> (B, M, 2) canvas pixels, y down: where `source` looks that position up."""
        scale = torch.tensor([WIDTH, -HEIGHT], device=self.device) / (2 * PIXELS_PER_MM)
        canvas = self.style.canvas
        looked_up = source.permute(0, 3, 1, 2)  # (B, 2, canvas, canvas)
        spot = torch.stack([self.spot_x, self.spot_y], dim=-1)[:, 0]
        shift = torch.stack([self.shift_x, self.shift_y], dim=-1)[:, 0]
        cos, sin = self.angle[:, 0], self.angle[:, 0].sin()
        cos = cos.cos()

        def turn(delta: torch.Tensor) -> torch.Tensor:
            return torch.stack(
                [delta[..., 0] * cos - delta[..., 1] * sin, delta[..., 0] * sin + delta[..., 1] * cos], -1
            )

        point = turn(position - spot) - shift  # mm, from the middle of the canvas
        for _ in range(6):
            where = (point * torch.tensor([1.0, -1.0], device=self.device) * (2 / (canvas * self.mm)))[:, :, None]
            found = F.grid_sample(looked_up, where, mode="bilinear", padding_mode="border", align_corners=False)
            point = point + turn(position - found[..., 0].transpose(1, 2) * scale)
        return point * torch.tensor([1.0, -1.0], device=self.device) / self.mm + canvas / 2


def _blurred(ink: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Mixes in a 3 x 3 binomial blur."""
    padded = F.pad(ink[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    soft = (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 16
    return torch.lerp(ink, soft, share)
