"""Simulate how a finger touches a sensor: position, rotation, distortion, pressure and dryness.

Plastic distortion follows Cappelli, Maio and Maltoni 2001 ("Modelling plastic distortion in fingerprint images"). The
centre of the contact sticks to the sensor, the border of the contact moves with the finger, and the skin between centre
and border is stretched. A smooth random displacement is added.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from fingerprint_accel.random import mix, normal, uniform
from fingerprint_accel.synthesis.geometry import bell, smooth_field
from fingerprint_accel.synthesis.sensors import PARAMETERS, QUALITIES, Style, sensor_ranges

TOUCH = (
    "severity", "sensor", "angle", "x", "y", "width", "height", "square", "pressure", "gradient", "dry", "wet",
    "torsion", "slip", "slip_angle", "grip", "window_x", "window_y", "noise_x", "noise_y", "grain_x", "grain_y",
)  # fmt: skip
POINTS = 35  # number of control points along each side of the smooth fields
TILE = 512  # side of the noise tiles in pixels; each impression uses a random window
DRAWS, SENSOR_DRAWS, BORDER, ELASTIC, PRESSURE, DRYNESS, BLOTS, SHADE, STRIPES, ROWS, SCRATCH = range(60, 71)  # streams
PARTIAL = 71  # random stream
PARTIAL_DRAWS = ("chosen", "kind", "away", "smaller", "narrow", "width", "height")
TIP, LOW, SIDE, WINDOW = range(4)  # kinds of partial touch
KIND_SHARES = (0.50, 0.15, 0.20)  # shares of TIP, LOW and SIDE; the rest is WINDOW
FINGER_END = 13.5  # tip of an average finger in mm above its centre; the contact ends there
SCRATCHES = 2  # largest number of scratches per impression
MIDDLE_MM = (0.0, 0.3)  # mean centre of the contact of complete touches, in finger coordinates


@lru_cache(maxsize=4)
def noise_tiles(ppi: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two periodic tiles of noise with mean 0 and standard deviation 1.

    Args:
        ppi: resolution of the impressions, pixels per inch.
        device: device of the result.

    Returns:
        White noise, and noise with grains of about 0.2 mm; both (TILE, TILE).
    """
    keys = mix(torch.arange(2 * TILE, device=device) + 2382)
    white, other = normal(keys, 0, TILE).double().split(TILE)
    frequency = torch.fft.fftfreq(TILE, device=device, dtype=torch.float64)
    sigma = 0.085 * ppi / 25.4
    response = torch.exp(-2 * (math.pi * sigma) ** 2 * (frequency[:, None] ** 2 + frequency[None] ** 2))
    grain = torch.fft.ifft2(torch.fft.fft2(other) * response).real
    return white.float(), (grain / grain.std()).float()


class Touch:
    """Random parameters of B touches. A touch is one contact of a finger with a sensor and gives one impression.

    Tensors have the shape (B, 1, 1) unless stated otherwise. Lengths are in mm. The origin of finger coordinates is the
    centre of the master (complete ridge image), and y points up.

    Args:
        size: (B,) size of each finger relative to an average finger.
        keys: (B,) int64 random key of each impression.
        style: sensors, quality and resolution.

    Attributes:
        draw: dictionary of uniform random numbers in 0..1, keyed by the names in `TOUCH`.
        sensor: dictionary of sensor parameters, keyed by the names in `sensors.PARAMETERS`.
        severity: common strength factor of all disturbances of an impression.
        angle: rotation of the finger in radians, counter-clockwise.
        spot_x, spot_y: centre of the contact in finger coordinates.
        half_x, half_y: half width and half height of the contact.
        shift_x, shift_y: position of the centre of the canvas (the image of the impression) relative to the centre of
            the contact, along the axes of the canvas.
        left, right, bottom, top: edges of the sensing area, relative to the centre of the canvas.
        mm: side of a pixel as a float.
    """

    def __init__(self, size: torch.Tensor, keys: torch.Tensor, style: Style) -> None:
        self.keys, self.style = keys, style
        self.device = keys.device
        self.mm = 25.4 / style.ppi  # side of a pixel, mm
        draws = uniform(keys, DRAWS, len(TOUCH))
        self.draw = {name: draws[:, i, None, None] for i, name in enumerate(TOUCH)}
        low, high = QUALITIES[style.quality]
        self.severity = low + (high - low) * self.draw["severity"]
        number = (self.draw["sensor"][:, 0, 0] * len(style.sensors)).long()
        ranges = sensor_ranges(style.sensors, self.device)[number]
        values = torch.lerp(ranges[..., 0], ranges[..., 1], uniform(keys, SENSOR_DRAWS, len(PARAMETERS)))
        self.sensor = {name: values[:, i, None, None] for i, name in enumerate(PARAMETERS)}
        self._place(size[:, None, None])

    def _signed(self, name: str, size: float) -> torch.Tensor:
        return (2 * self.draw[name] - 1) * size

    def _place(self, size: torch.Tensor) -> None:
        """Choose the contact area, the rotation and the position of the sensing area, and store them as attributes.

        Args:
            size: (B, 1, 1) relative size of each finger.
        """
        strong = self.severity
        self.angle = self._signed("angle", 0.38) * strong.clamp(max=1.2)
        spot = (0.5 + strong).clamp(max=1.6)
        self.spot_x, self.spot_y = self._signed("x", 1.8) * spot, 0.3 + self._signed("y", 2.8) * spot
        smaller = 1 - 0.28 * strong * self.draw["square"] * self.draw["width"]
        self.half_x = (5.9 + 2.4 * self.draw["width"]) * size * smaller
        self.half_y = (7.4 + 3.6 * self.draw["height"]) * size * smaller
        width, height = self.sensor["width"], self.sensor["height"]
        if self.style.partial_share > 0:
            width, height = self._partial(size, width, height)
        cos, sin = self.angle.cos(), self.angle.sin()
        reach_x = ((self.half_x * cos).square() + (self.half_y * sin).square()).sqrt()
        reach_y = ((self.half_x * sin).square() + (self.half_y * cos).square()).sqrt()
        limits = []
        for name, reach, extent in (("window_x", reach_x, width), ("window_y", reach_y, height)):
            half = extent / 2
            off = self._signed(name, 3.2) * strong.clamp(max=1.2)
            low, high = torch.maximum(off - half, -reach), torch.minimum(off + half, reach)
            middle = (low + high) / 2  # becomes the centre of the canvas
            limits.append((off - half - middle, off + half - middle, middle))
        self.left, self.right, self.shift_x = limits[0]
        self.bottom, self.top, self.shift_y = limits[1]

    def _partial(
        self, size: torch.Tensor, width: torch.Tensor, height: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Replace a random share of the touches by touches that show only a part of the finger.

        A partial touch shows the fingertip, the lower part of the finger, one side, or the window of a narrow sensor.
        The method changes the centre and the size of the contact.

        Args:
            size: (B, 1, 1) relative size of each finger.
            width, height: (B, 1, 1) size of the sensing area, mm.

        Returns:
            The new width and height of the sensing area.
        """
        draws = uniform(self.keys, PARTIAL, len(PARTIAL_DRAWS))
        draw = {name: draws[:, i, None, None] for i, name in enumerate(PARTIAL_DRAWS)}
        chosen = draw["chosen"] < self.style.partial_share
        bounds = torch.tensor(KIND_SHARES, device=self.device).cumsum(0)
        kind = torch.bucketize(draw["kind"].contiguous(), bounds, right=True)
        tip, low, side = (chosen & (kind == number) for number in (TIP, LOW, SIDE))
        away, smaller = draw["away"], 1 - 0.35 * draw["smaller"]
        up = torch.where(tip, 2.0 + 5.5 * away, 0.0) - torch.where(low, 2.0 + 4.5 * away, 0.0)
        direction = torch.where(self.draw["x"] < 0.5, -1.0, 1.0)
        self.spot_x = self.spot_x + torch.where(side, direction * (2.0 + 4.5 * away), 0.0) * size
        self.half_x = torch.where(side, self.half_x * smaller, self.half_x)
        self.half_y = torch.where(tip | low, self.half_y * smaller, self.half_y)
        middle = self.spot_y + up * size
        top = torch.minimum(middle + self.half_y, FINGER_END * size)
        bottom = torch.minimum(middle - self.half_y, top - 8.0)
        self.spot_y = torch.where(tip, (top + bottom) / 2, middle)
        self.half_y = torch.where(tip, (top - bottom) / 2, self.half_y)
        narrow = chosen & ((kind == WINDOW) | (draw["narrow"] < 0.4))
        width = torch.where(narrow, torch.minimum(width, 8.0 + 5.0 * draw["width"]), width)
        height = torch.where(narrow, torch.minimum(height, 9.0 + 7.0 * draw["height"]), height)
        return width, height

    def pose(self) -> torch.Tensor:
        """Return the position and rotation of each finger on the canvas (the square image of the impression).

        Resampling the canvas with this pose puts the finger upright into the centre; see `preprocess.geometric.Pose`.

        Returns:
            (B, 3) float32: rotation in radians, shift along x and y in canvas pixels.
        """
        cos, sin = self.angle.cos(), self.angle.sin()
        across, up = MIDDLE_MM[0] - self.spot_x, MIDDLE_MM[1] - self.spot_y
        x = across * cos - up * sin - self.shift_x
        y = across * sin + up * cos - self.shift_y
        return torch.stack([-self.angle, x / self.mm, -y / self.mm], dim=1).flatten(1).float()

    def grid(self, points: int, over: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the coordinates of a square grid of points over the canvas, in mm from the canvas centre.

        Args:
            points: number of grid points along each side.
            over: number of grid steps by which the grid extends beyond the outermost pixel centres on each side.

        Returns:
            x (1, 1, points), to the right, and y (1, points, 1), up.
        """
        half = (self.style.canvas - 1) / 2 * self.mm
        step = 2 * half / (points - 1 - 2 * over)
        axis = (torch.arange(points, device=self.device) - over) * step - half
        return axis[None, None, :], -axis[None, :, None]

    def _slow(self, stream: int, points: int, count: int = 1) -> torch.Tensor:
        """Draw smooth random fields for each touch.

        Args:
            stream: identifier of the random stream.
            points: number of random values along each side of a field; fewer values give a smoother field.
            count: number of fields per touch.

        Returns:
            (B, count, POINTS, POINTS).
        """
        values = normal(self.keys, stream, count * points * points).view(-1, count, points, points)
        return smooth_field(values, POINTS, POINTS)

    def skin_frame(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Convert positions on the canvas to positions relative to the centre of the contact, along the finger axes.

        Args:
            x, y: position relative to the centre of the canvas in mm, y up. They can be broadcast to (B, rows,
                columns).

        Returns:
            Position along the finger's x axis and y axis in mm, (B, rows, columns).
        """
        x, y = x + self.shift_x, y + self.shift_y
        cos, sin = self.angle.cos(), self.angle.sin()
        return x * cos + y * sin, y * cos - x * sin

    def fields(self) -> torch.Tensor:
        """Compute displacement, contact, pressure, dryness and shading of each touch at every canvas pixel.

        All of these quantities are smooth random fields.

        Returns:
            (B, 6, canvas, canvas), in this order: displacement of the skin along x and y in mm, distance inside the
            contact border in mm (negative outside), pressure, dryness, and shading.
        """
        x, y = self.grid(POINTS, over=1)
        u, v = self.skin_frame(x, y)
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
        dry = (0.16 + 1.1 * self.draw["dry"].square() * strong) * (1 + 0.6 * self._slow(DRYNESS, 8)[:, 0]).clamp(
            0.1, 2.2
        )
        shade = self._slow(SHADE, 5)[:, 0]
        slow = torch.stack([move_x, move_y, depth, pressure, dry, shade], dim=1)
        return smooth_field(slow, self.style.canvas, self.style.canvas)

    def noise(self, tile: torch.Tensor, across: str, down: str) -> torch.Tensor:
        """Cut a random window of the size of the canvas out of a periodic noise tile, for each impression.

        Args:
            tile: (TILE, TILE) noise.
            across, down: names in `TOUCH` of the random numbers that choose the first column and the first row.

        Returns:
            (B, canvas, canvas).
        """
        axis = torch.arange(self.style.canvas, device=self.device)
        rows = (axis[None] + (self.draw[down][:, :, 0] * TILE).long()) % TILE
        columns = (axis[None] + (self.draw[across][:, :, 0] * TILE).long()) % TILE
        return tile[rows[:, :, None], columns[:, None, :]]

    def scratches(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Draw scratches and hairs, and return the share of the ink that remains at each pixel.

        Args:
            x, y: coordinates of the canvas pixels as `grid` returns them.

        Returns:
            (B, canvas, canvas), 1 at pixels without a scratch.
        """
        left: torch.Tensor = torch.ones(1, device=self.device)
        for line in range(SCRATCHES):
            draw = uniform(self.keys, SCRATCH * 1000 + line, 6)[:, :, None, None]
            angle = math.pi * draw[:, 0]
            across = x * angle.cos() + y * angle.sin() - (12 * draw[:, 1] - 6)
            along = y * angle.cos() - x * angle.sin() - (12 * draw[:, 2] - 6)
            width, half = 0.06 + 0.10 * draw[:, 3].square(), 1.0 + 5.0 * draw[:, 4]
            depth = (draw[:, 5] < 0.45 * self.severity) * (0.5 + 0.5 * draw[:, 3])
            line_there = bell(across / width) * torch.sigmoid((half - along.abs()) / 0.3)
            left = left * (1 - depth * line_there)
        return left
