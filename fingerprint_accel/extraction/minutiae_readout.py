"""Extract minutiae with position, direction and score from the minutia maps that a network predicts.

A minutia map has six channels, one for every 60 degrees of direction. Each minutia is a Gaussian spot in the channels
of similar direction; see `preprocess.minutia_map`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fingerprint_accel.data.canvas import find_frame
from fingerprint_accel.data.print_file import Reading, open_image
from fingerprint_accel.data.shards import Shards
from fingerprint_accel.data.templates import write_template
from fingerprint_accel.durable import write_json
from fingerprint_accel.errors import require
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.inputs import Image, read_image
from fingerprint_accel.outputs import FolderKind, json_with
from fingerprint_accel.preprocess.minutia_map import direction_weights

DIRECTIONS, COARSELY = 180, 5  # number of directions; the search for peaks tries every fifth direction
UNTRAINED = "minutia_map_untrained"  # key in the notes of a model whose minutia branch was not trained
APART = 2.5  # minimum distance between two minutiae, map pixels; the weaker of two closer minutiae is dropped
FAINT = 1e-6  # lower bound of the neighbours of a peak, relative to the peak, so that their logarithms are finite
FOLDER = FolderKind(
    "a folder of minutiae",
    json_with("minutiae.json", "format", "model"),
    r"minutiae\.json|.*\.(xyt|iso)",
    whole=False,
)
THRESHOLD = 0.2  # minimum score of a minutia; for precision and recall see docs/extraction.md


@functools.lru_cache(maxsize=4)
def _shapes(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how a minutia of each direction is distributed over the six channels of a minutia map.

    Returns:
        Weights (DIRECTIONS, 6) scaled to unit norm, and their norms (DIRECTIONS,) before scaling.
    """
    shapes = direction_weights(torch.arange(DIRECTIONS, device=device) * (2 * math.pi / DIRECTIONS)).T
    lengths = shapes.norm(dim=1)
    return shapes / lengths[:, None], lengths


def read_map(minutia_map: torch.Tensor, threshold: float = THRESHOLD) -> np.ndarray:
    """Extract minutiae from one minutia map; the inverse of `preprocess.minutia_map.minutia_maps`.

    For each pixel, the function finds the direction that matches the values of the six channels best, and the strength
    of a minutia with this direction. Local maxima of the strength are minutiae. Position and strength are refined to
    fractions of a pixel, by a parabola through the logarithms of three neighbouring values along each axis. This is
    exact for a Gaussian.

    Args:
        minutia_map: (6, M, M) in 0..1.
        threshold: minimum strength; a minutia in a map of the ground truth has the strength 1.

    Returns:
        (n, 4) float32, strongest minutia first: x and y in map pixels (the centre of the first pixel is 0.5), angle in
        radians, strength clipped to 1. If several minutiae are within `APART` (2.5 pixels), only the strongest is
        returned.
    """
    shapes, lengths = _shapes(minutia_map.device)
    values = minutia_map.float()
    fit, direction = (shapes[::COARSELY] @ values.flatten(1)).max(dim=0)
    strength = (fit / lengths[::COARSELY][direction]).unflatten(0, values.shape[1:])
    highest = F.max_pool2d(strength[None], 3, stride=1, padding=1)[0]
    y, x = torch.nonzero((strength == highest) & (strength > threshold / 2), as_tuple=True)
    here, found = (values[:, y, x].T @ shapes.T).max(dim=1)  # (n,)
    around = F.pad(values[None], (1, 1, 1, 1), mode="replicate")[0]

    def beside(step_x: int, step_y: int) -> torch.Tensor:
        return (shapes[found] * around[:, y + 1 + step_y, x + 1 + step_x].T).sum(dim=1) / here

    offset_x, rise_x = _summit(beside(-1, 0), beside(1, 0))
    offset_y, rise_y = _summit(beside(0, -1), beside(0, 1))
    score = (here / lengths[found] * torch.exp(rise_x + rise_y)).clamp_max(1)
    angle = found * (2 * math.pi / DIRECTIONS)
    minutiae = torch.stack([x + 0.5 + offset_x, y + 0.5 + offset_y, angle, score], dim=1).cpu().numpy()
    return _strongest(minutiae[minutiae[:, 3] >= threshold])


def _strongest(minutiae: np.ndarray) -> np.ndarray:
    """Sort minutiae (n, 4) by strength, and drop each one within `APART` of a stronger one; return (m, 4)."""
    kept: list[np.ndarray] = []
    for one in minutiae[np.argsort(-minutiae[:, 3], kind="stable")]:
        if all(math.hypot(*(one[:2] - other[:2])) >= APART for other in kept):
            kept.append(one)
    return np.array(kept, np.float32).reshape(-1, 4)


def _summit(before: torch.Tensor, after: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the maximum of a parabola through the logarithms of three values at the positions -1, 0 and 1.

    Args:
        before: values at -1, relative to the values at 0.
        after: values at 1, relative to the values at 0.

    Returns:
        Position of the maximum, between -0.5 and 0.5, and logarithm of its height relative to the value at 0.
    """
    before, after = (side.clamp(FAINT, 1).log() for side in (before, after))
    bend = (before + after).clamp_max(-FAINT)
    offset = ((before - after) / (2 * bend)).clamp(-0.5, 0.5)
    return offset, (after - before) * offset / 4


@torch.inference_mode()
def minutiae_on_canvases(
    extractor: FingerprintExtractor, canvases: torch.Tensor, threshold: float = THRESHOLD
) -> list[np.ndarray]:
    """Find the minutiae of prints on canvases, the square images that the model embeds.

    Args:
        extractor: model with a trained minutia branch.
        canvases: (B, canvas, canvas) uint8, ridges dark.
        threshold: minimum score of a minutia, 0 to 1.

    Returns:
        List with one (n, 4) float32 array per print, highest score first. The columns are x and y in canvas pixels,
        angle in radians, and score.

    Raises:
        UserError: if the model has no trained minutia branch.
    """
    check_draws_minutiae(extractor)
    inputs = extractor.preprocessor.images(canvases.to(extractor.device))
    with torch.autocast(extractor.device.type, torch.bfloat16, enabled=extractor.bf16):
        maps = extractor.model.draw_minutiae(inputs.contiguous(memory_format=torch.channels_last))
    found = [read_map(minutia_map, threshold) for minutia_map in maps]
    crop = extractor.preprocess_config.crop
    for minutiae in found:
        minutiae[:, :2] = (minutiae[:, :2] / maps.shape[-1] - 0.5) * crop + extractor.canvas / 2
    return found


def read_minutiae(
    extractor: FingerprintExtractor,
    prints: Shards | Sequence[Image],
    ppi: int = 0,
    threshold: float = THRESHOLD,
    batch_size: int = 16,
    progress: bool = True,
) -> list[np.ndarray]:
    """Find the minutiae of the prints of a dataset or of images.

    Args:
        extractor: model with a trained minutia branch.
        prints: an opened dataset; or image files, PIL images, or uint8 arrays (H, W) or (H, W, 3), ridges dark.
        ppi: resolution of the images, pixels per inch; ignored for a dataset.
        threshold: minimum score of a minutia, 0 to 1.
        batch_size: number of prints per batch.
        progress: show a progress bar.

    Returns:
        List with one (n, 4) float32 array per print, highest score first. The columns are x, y, angle and score. x and
        y are pixels of the original image, or of the stored image for a dataset. The angle is in radians,
        counter-clockwise from +x with y up.

    Raises:
        UserError: if the model has no trained minutia branch, or if the prints cannot be read or do not fit the model.
    """
    check_draws_minutiae(extractor)
    batches = extractor.batches(prints, ppi, batch_size, progress)
    found = [minutiae for canvases in batches for minutiae in minutiae_on_canvases(extractor, canvases, threshold)]
    if isinstance(prints, Shards):
        return found
    return [_on_image(extractor, image, ppi, each) for image, each in zip(prints, found, strict=True)]


def _on_image(extractor: FingerprintExtractor, image: Image, ppi: int, minutiae: np.ndarray) -> np.ndarray:
    """Convert minutiae from pixels of the network's canvas to pixels of the original image.

    Args:
        extractor: model that found the minutiae.
        image: original image.
        ppi: resolution of the image, pixels per inch.
        minutiae: (n, 4) x, y, angle, score.

    Returns:
        (m, 4), without the minutiae outside the image.
    """
    opened = read_image(image, dataclasses.replace(extractor.reading, ppi=ppi))
    moved = find_frame(opened.grey, opened.ppi, extractor.ppi, extractor.canvas).to_image(minutiae)
    height, width = opened.grey.shape
    return moved[((moved[:, :2] >= 0) & (moved[:, :2] < (width, height))).all(axis=1)]


def check_draws_minutiae(extractor: FingerprintExtractor) -> None:
    """Raise a UserError unless the model predicts minutiae, that is, has a trained minutia branch."""
    name = extractor.origin or "the model"
    require(
        UNTRAINED not in extractor.notes,
        f"{name}: its minutia map was not trained; give a model that was trained with --loss.minutia-map-weight above "
        "0 on prints with minutiae",
    )
    require(
        extractor.model.config.needs_minutia_maps,
        f"{name}: variant {extractor.model.config.variant} has no minutia branch; give a model that was trained with "
        "--model.variant TexMinu",
    )


def write_minutiae(folder: Path, images: list[Path], minutiae: list[np.ndarray], facts: dict[str, Any]) -> None:
    """Write the minutiae of image files into a folder, one file per image, and `minutiae.json`.

    Each file has the name of its image without the suffix, followed by `.xyt` or `.iso`.

    Args:
        folder: folder to write to.
        images: image files.
        minutiae: minutiae of each image, from `read_minutiae`.
        facts: contents of `minutiae.json`: "format" ("xyt" or "iso"), "ppi" of the images, and "model".
    """
    write_json(folder / "minutiae.json", facts)
    for image, found in zip(images, minutiae, strict=True):
        height, width = open_image(image, Reading(facts["ppi"])).grey.shape
        write_template(folder / f"{image.stem}.{facts['format']}", found, width, height, facts["ppi"])
