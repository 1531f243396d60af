"""Render impressions of synthetic fingers, and compute the positions of their minutiae.

An impression depends only on its finger, its random key and the style (sensors, quality and resolution).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fingerprint_accel.random import mix, normal, sample_keys
from fingerprint_accel.synthesis.geometry import HEIGHT, PIXELS_PER_MM, WIDTH, contact_cells
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.synthesis.skin import UNIT, Masters, Minutiae, packed
from fingerprint_accel.synthesis.touch import ROWS, STRIPES, Touch, noise_tiles
from fingerprint_accel.synthesis.workers import each, join

FADE_MM = 2.0  # distance from the contact border at which the background becomes white, as in imported prints


@dataclass(frozen=True)
class Prints:
    """Rendered impressions of a batch, in the format of a dataset.

    The canvas is the square image on which a print is placed, with a side of `Style.canvas` pixels.

    Attributes:
        image: (B, canvas, canvas) uint8 images, ridges dark.
        minutiae: (B, M, 4) float32: x and y in canvas pixels (y down), angle in radians (counter-clockwise from +x with
            y up) and quality (0 to 1). Rows from `count` on are zero.
        count: (B,) int64 number of minutiae of each impression.
        skin: (B, canvas, canvas) bool, pixels where the finger touches the sensing area.
        pose: (B, 3) float32 position and rotation of each finger, see `Touch.pose`.
    """

    image: torch.Tensor
    minutiae: torch.Tensor
    count: torch.Tensor
    skin: torch.Tensor
    pose: torch.Tensor

    @property
    def contact(self) -> torch.Tensor:
        """Mask of the canvas cells that the finger touches over at least half of the cell area.

        The canvas is divided into GRID x GRID equal cells. The mask is a bool tensor (B, GRID, GRID).
        """
        return contact_cells(self.skin)


def impression_keys(seed: int, fingers: torch.Tensor, impressions: torch.Tensor) -> torch.Tensor:
    """Return the random key of each impression. The key determines all random numbers of the impression.

    Args:
        seed: random seed.
        fingers: (B,) int64 finger index of each impression.
        impressions: (B,) int64 index of each impression among the impressions of its finger, from 0.

    Returns:
        (B,) int64 keys.
    """
    return sample_keys(seed, impressions, fingers)


def render(masters: Masters, which: torch.Tensor, keys: torch.Tensor, style: Style) -> Prints:
    """Render a batch of impressions on the device of the masters (the complete ridge images of the fingers).

    A GPU renders the impressions as one batch. A CPU renders them one by one, so that the bits of an impression do not
    depend on the batch.

    Args:
        masters: masters of all fingers that occur in the batch.
        which: (B,) int64 index in `masters` of the finger of each impression.
        keys: (B,) int64 random key of each impression, see `impression_keys`.
        style: sensors, quality, resolution and canvas size.
    """
    if which.device.type == "cpu":
        pairs = list(zip(which.split(1), keys.split(1), strict=True))
        return join(each(lambda pair: _render(masters[pair[0]], pair[1], style), pairs))
    return _render(masters[which], keys, style)


@torch.no_grad()
def _render(fingers: Masters, keys: torch.Tensor, style: Style) -> Prints:
    """Render one impression of each finger as one batch.

    In the code, `source` is the point of the master that each pixel of the impression shows. It has the shape (B,
    canvas, canvas, 2) and the coordinates of `grid_sample`.

    Args:
        fingers: masters (complete ridge images) of B fingers.
        keys: (B,) int64 random key of each impression.
        style: sensors, quality, resolution and canvas size.
    """
    touch = Touch(fingers.size, keys, style)
    move_x, move_y, depth, pressure, dry, shade = touch.fields().unbind(1)
    move_x = move_x + touch.sensor["jitter"] * normal(keys, ROWS, style.canvas)[:, :, None]
    x, y = touch.grid(style.canvas, over=0)
    u, v = touch.skin_frame(x, y)
    across, up = u + touch.spot_x + move_x, v + touch.spot_y + move_y
    source = torch.stack([across * (2 * PIXELS_PER_MM / WIDTH), up * (-2 * PIXELS_PER_MM / HEIGHT)], dim=-1)
    ridges = fingers.ridges[:, None].float()
    height = F.grid_sample(ridges, source, mode="bicubic", padding_mode="border", align_corners=False)[:, 0]
    white, grain = noise_tiles(style.ppi, keys.device)
    coarse = touch.noise(grain, "grain_x", "grain_y")
    inside = ((x > touch.left) & (x < touch.right)) & ((y > touch.bottom) & (y < touch.top))
    loss = dry * torch.where(coarse > 0, 0.2 * coarse, 1.5 * coarse)  # dry skin breaks ridges but does not fill valleys
    height = (height - 127) / UNIT + pressure + loss - 0.1
    ink = torch.sigmoid(touch.sensor["sharpness"] * height) * torch.sigmoid(depth / 0.12)
    uneven = 0.35 * touch.sensor["texture"] * (1 + coarse.roll(97, 2)).clamp(0, 2)
    ink = ink * (1 - uneven) * touch.scratches(x, y)  # share of the pixel that touches the sensor, 0..1
    specks = (coarse.roll(211, 1) - 2.6).clamp_min(0) * touch.sensor["specks"] * touch.severity
    ink = _blurred(ink + specks, touch.sensor["blur"])
    image = _grey(touch, ink, depth, shade, touch.noise(white, "noise_x", "noise_y"), inside)
    maps = torch.stack([depth, dry, inside.float()], dim=1)
    return Prints(image, *_minutiae(touch, fingers.minutiae, source, maps), (depth > 0) & inside, touch.pose())


def _grey(
    touch: Touch,
    ink: torch.Tensor,
    depth: torch.Tensor,
    shade: torch.Tensor,
    fine: torch.Tensor,
    inside: torch.Tensor,
) -> torch.Tensor:
    """Convert the ink of impressions to the grey levels of their sensors, on a background that fades to white.

    Args:
        touch: parameters of the impressions and of their sensors.
        ink: (B, canvas, canvas) share of each pixel that touches the sensor, 0 to 1, plus specks of dirt.
        depth: (B, canvas, canvas) distance inside the contact border in mm; negative outside.
        shade: (B, canvas, canvas) smooth random field, which shades the image.
        fine: (B, canvas, canvas) white noise with a standard deviation of 1.
        inside: (B, canvas, canvas) bool, pixels inside the sensing area.

    Returns:
        (B, canvas, canvas) uint8 images, ridges dark.
    """
    sensor = touch.sensor
    skin = torch.sigmoid((depth + 0.3) / 0.5)
    grey = 255 - sensor["contrast"] * ink - sensor["halo"] * touch.severity * skin
    grey = grey + sensor["vignette"] * shade + sensor["noise"] * fine
    device = mix(touch.keys % 64)  # one of 64 devices, each with its own fixed pattern
    stripes = normal(device, STRIPES, touch.style.canvas)[:, None, :]
    grey = grey + sensor["stripes"] * stripes
    inverted = touch.draw["slip_angle"] < sensor["inverted"]
    grey = torch.where(inverted, 510 - sensor["contrast"] - grey, grey)
    shown = torch.sigmoid((depth + FADE_MM) / 0.25) * inside
    return torch.lerp(torch.full_like(grey, 255.0), grey.clamp(0, 255), shown).round().to(torch.uint8)


def _minutiae(
    touch: Touch, own: Minutiae, source: torch.Tensor, maps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Map the minutiae of each finger to its impression, and drop those outside the contact or the sensing area.

    Args:
        touch: parameters of the impressions.
        own: minutiae of the finger of each impression, in finger coordinates.
        source: (B, canvas, canvas, 2) point of the master that each canvas pixel shows, in the coordinates of
            `grid_sample`.
        maps: (B, 3, canvas, canvas) distance inside the contact border (mm), dryness, and whether the pixel lies inside
            the sensing area (1 or 0).

    Returns:
        Minutiae (B, M, 4) in the format of `Prints.minutiae`, and the number of minutiae of each impression (B,).
    """
    canvas = touch.style.canvas
    longest = _longest(own.count, own.rows.shape[1])  # padding would change the last bit of angles
    position, angle = own.rows[:, :longest, :2], own.rows[:, :longest, 2].contiguous()
    step = 0.15 * torch.stack([angle.cos(), angle.sin()], dim=-1)
    start, ahead = _on_canvas(touch, torch.cat([position, position + step], dim=1), source).chunk(2, dim=1)
    turned = torch.remainder(torch.atan2(start[..., 1] - ahead[..., 1], ahead[..., 0] - start[..., 0]), 2 * math.pi)
    where = (start * (2 / canvas) - 1)[:, :, None]
    sampled = F.grid_sample(maps, where, mode="bilinear", padding_mode="zeros", align_corners=False)[..., 0]
    depth, dry, seen = sampled.unbind(1)
    there = torch.arange(position.shape[1], device=position.device) < own.count[:, None]
    on_canvas = (start.amin(-1) >= 0) & (start.amax(-1) <= canvas)
    keep = there & on_canvas & (depth > 0) & (seen > 0.5)
    quality = (depth / 1.5).clamp(0.1, 1) * (1.1 - 0.7 * dry).clamp(0.1, 1)
    rows = torch.cat([start, turned[..., None], quality[..., None]], dim=-1)
    kept = keep.sum(dim=1)
    return packed(rows, keep, _longest(kept, longest)), kept


def _longest(count: torch.Tensor, there: int) -> int:
    """Return the number of rows that a tensor needs to hold all minutiae of a batch.

    On a CPU, this is the largest element of `count`, but at least 1. On a GPU, it is `there`, because reading the
    largest element would synchronise the host with the GPU.

    Args:
        count: (B,) number of minutiae of each impression or finger.
        there: number of rows that are available.
    """
    return max(1, int(count.max())) if count.device.type == "cpu" else there


def _on_canvas(touch: Touch, position: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Map positions on fingers to positions on the canvas.

    `source` maps in the opposite direction. The function inverts `source` with a fixed-point iteration.

    Args:
        touch: parameters of the impressions.
        position: (B, M, 2) finger coordinates x and y, mm.
        source: (B, canvas, canvas, 2) point of the master that each canvas pixel shows, in the coordinates of
            `grid_sample`.

    Returns:
        (B, M, 2) x and y in canvas pixels, y down.
    """
    canvas = touch.style.canvas
    looked_up = source.permute(0, 3, 1, 2)  # (B, 2, canvas, canvas)
    cos, sin = touch.angle[:, 0].cos(), touch.angle[:, 0].sin()

    def turned(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x * cos - y * sin, x * sin + y * cos

    across, up = position.unbind(-1)
    x, y = turned(across - touch.spot_x[:, 0], up - touch.spot_y[:, 0])
    x, y = x - touch.shift_x[:, 0], y - touch.shift_y[:, 0]  # mm from the centre of the canvas
    for _ in range(6):  # converges fast, because the distortion is small
        where = torch.stack([x, -y], dim=-1)[:, :, None] * (2 / (canvas * touch.mm))
        found = F.grid_sample(looked_up, where, mode="bilinear", padding_mode="border", align_corners=False)[..., 0]
        found_x, found_y = found[:, 0] * (WIDTH / 2 / PIXELS_PER_MM), found[:, 1] * (-HEIGHT / 2 / PIXELS_PER_MM)
        more_x, more_y = turned(across - found_x, up - found_y)
        x, y = x + more_x, y + more_y
    return torch.stack([x, -y], dim=-1) / touch.mm + canvas / 2


def _blurred(ink: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Blend each image with a copy that is blurred by a 3 x 3 binomial filter.

    Args:
        ink: (B, H, W) images.
        share: (B, 1, 1) weight of the blurred copy, 0 to 1.
    """
    padded = F.pad(ink[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    soft = (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 16
    return torch.lerp(ink, soft, share)
