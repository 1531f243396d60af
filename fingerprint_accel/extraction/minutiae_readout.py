"""Minutiae from the map that the minutia branch draws: its peaks, with direction and score."""

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

DIRECTIONS, COARSELY = 180, 5  # tried for each peak; every fifth of them while peaks are looked for
UNTRAINED = "minutia_map_untrained"  # a note of a model whose map decoder never learned
APART = 2.5  # map pixels: of two peaks nearer than this the weaker one is dropped
FAINT = 1e-6  # of a peak: what its neighbours have at least, for their logarithm
FOLDER = FolderKind(
    "a folder that `minutiae` has written",
    json_with("minutiae.json", "format", "model"),
    r"minutiae\.json|.*\.(xyt|iso)",
    whole=False,
)
THRESHOLD = 0.2  # of the score: best F1 of a trained model (docs/evaluation.md)


@functools.lru_cache(maxsize=4)
def _shapes(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(DIRECTIONS, 6): channels of a minutia of each direction, scaled to length 1; (DIRECTIONS,): their lengths."""
    shapes = direction_weights(torch.arange(DIRECTIONS, device=device) * (2 * math.pi / DIRECTIONS)).T
    lengths = shapes.norm(dim=1)
    return shapes / lengths[:, None], lengths


def read_map(minutia_map: torch.Tensor, threshold: float = THRESHOLD) -> np.ndarray:
    """Minutiae of one minutia map, `preprocess.minutia_map` backwards.

    Each pixel is explained by one minutia: of the direction whose six channels are most like the pixel's, as strong as
    fits them best. Local maxima of the strength are minutiae. Their place between pixels, and the strength there,
    follow from parabolas through the logarithms of three neighbours along each axis, which is exact for a Gaussian.

    Args:
        minutia_map: (6, M, M).
        threshold: least strength; a minutia of a true map has 1.

    Returns:
        (n, 4) float32 x, y in map pixels (the centre of the first is 0.5), angle in radians, strength cut to 1; the
        strongest first. Of minutiae nearer than APART one is found.
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
    """(n, 4) -> (m, 4), m <= n: the strongest first, without those nearer than APART to a stronger one."""
    kept: list[np.ndarray] = []
    for one in minutiae[np.argsort(-minutiae[:, 3], kind="stable")]:
        if all(math.hypot(*(one[:2] - other[:2])) >= APART for other in kept):
            kept.append(one)
    return np.array(kept, np.float32).reshape(-1, 4)


def _summit(before: torch.Tensor, after: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Parabola through the logarithms of (before, 1, after): where its summit is, at most 0.5 away, and how high."""
    before, after = (side.clamp(FAINT, 1).log() for side in (before, after))
    bend = (before + after).clamp_max(-FAINT)
    offset = ((before - after) / (2 * bend)).clamp(-0.5, 0.5)
    return offset, (after - before) * offset / 4


@torch.inference_mode()
def minutiae_on_canvases(
    extractor: FingerprintExtractor, canvases: torch.Tensor, threshold: float = THRESHOLD
) -> list[np.ndarray]:
    """canvases (B, canvas, canvas) uint8, ridges dark -> for each (n, 4) float32 x, y in canvas pixels, angle, score.

    Scores lie between `threshold` and 1; the surest minutia is first.

    Raises:
        UserError: the model has no minutia branch.
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
    """Minutiae of prints, in order.

    Args:
        extractor: a model with a minutia branch.
        prints, ppi, batch_size, progress: as of `FingerprintExtractor.extract`.
        threshold: least score.

    Returns:
        For each (n, 4) float32 x, y, angle in radians counter-clockwise from +x with y up, score 0 to 1; the surest
        first. x and y are pixels of the image as it is in its file, of a dataset those of its canvas.

    Raises:
        UserError: the model has no minutia branch, or as `FingerprintExtractor.extract`.
    """
    check_draws_minutiae(extractor)
    batches = extractor.batches(prints, ppi, batch_size, progress)
    found = [minutiae for canvases in batches for minutiae in minutiae_on_canvases(extractor, canvases, threshold)]
    if isinstance(prints, Shards):
        return found
    return [_on_image(extractor, image, ppi, each) for image, each in zip(prints, found, strict=True)]


def _on_image(extractor: FingerprintExtractor, image: Image, ppi: int, minutiae: np.ndarray) -> np.ndarray:
    """(n, 4) on the canvas of an image -> (m, 4), those that lie on the image, in its pixels."""
    opened = read_image(image, dataclasses.replace(extractor.reading, ppi=ppi))
    moved = find_frame(opened.grey, opened.ppi, extractor.ppi, extractor.canvas).to_image(minutiae)
    height, width = opened.grey.shape
    return moved[((moved[:, :2] >= 0) & (moved[:, :2] < (width, height))).all(axis=1)]


def check_draws_minutiae(extractor: FingerprintExtractor) -> None:
    """Raises UserError where a model draws no minutia map, or has not learned to."""
    name = extractor.origin or "the model"
    require(
        UNTRAINED not in extractor.notes,
        f"{name}: its minutia map was not trained; give a model that was trained with --loss.minutia-map-weight above "
        "0 on prints with minutiae",
    )
    require(
        extractor.model.config.needs_minutia_maps,
        f"{name}: variant {extractor.model.config.variant} draws no minutiae; give a model with a minutia branch, "
        "trained with --model.variant TexMinu",
    )


def write_minutiae(folder: Path, images: list[Path], minutiae: list[np.ndarray], facts: dict[str, Any]) -> None:
    """Writes the minutiae of image files, as of `read_minutiae`: one file per image, called as its stem.

    `facts` are kept beside them: "format" ("xyt" or "iso"), "ppi" of the images, and "model", which found the minutiae.
    """
    write_json(folder / "minutiae.json", facts)
    for image, found in zip(images, minutiae, strict=True):
        height, width = open_image(image, Reading(facts["ppi"])).grey.shape
        write_template(folder / f"{image.stem}.{facts['format']}", found, width, height, facts["ppi"])
