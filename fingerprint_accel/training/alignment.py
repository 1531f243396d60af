"""Teaches the aligning network of the `Loc` variants where a finger lies, from synthetic prints that know it exactly.

Left to the identity loss alone, as in DeepPrint, an aligning network finds some pose that helps; told the truth it
learns in minutes, and what comes behind it can read details, because they come to the same place.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from fingerprint_accel.config import AugmentConfig, ModelConfig
from fingerprint_accel.data.order import SampleOrder
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.poses import MM_PER_INCH
from fingerprint_accel.models.localization import Localization
from fingerprint_accel.preprocess.augment import Pose, random_pose
from fingerprint_accel.preprocess.pipeline import Preprocessor
from fingerprint_accel.preprocess.quality import random_quality
from fingerprint_accel.random import sample_keys
from fingerprint_accel.synthesis.source import SyntheticPrints, is_source, open_source

RADIANS, HALF_SIDES = 0.15, 0.08  # errors from which the loss grows linearly only
AUGMENT = AugmentConfig(
    rotation_degrees=35, translation=24, elastic=2.0, contrast=0.3, ridge_thickness=0.3, noise=0.05, occlusion=0.15
)
HELD_OUT = 0.03  # share of the fingers, to measure on


@dataclass(frozen=True)
class AlignmentError:
    """Medians over prints of how far the network is from the truth."""

    degrees: float
    across_mm: float
    along_mm: float


def teach_alignment(
    data: str,
    trained: Path | str,
    out: Path | str,
    steps: int = 1100,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> AlignmentError:
    """Puts an aligning network in front of a trained one, or takes the one that is there, and teaches it.

    Args:
        data: `synth:fingers=1000,...`, see `synthesis.source.parse_source`: only synthetic prints know how they lie.
        trained: a bundled model, run folder, checkpoint or exported model.
        out: exported model to write: the `Loc` variant of it, `localization_frozen`.
        steps: optimizer steps.
        batch_size: prints per step.
        learning_rate: highest of the one-cycle schedule.
        seed: of initial weights, order and augmentation.
        device: to train on.

    Returns:
        Errors on fingers that were not trained on, turned and shifted as in training.

    Raises:
        UserError: prints that are not synthetic, or a network that aligns in flx's way.
    """
    if not is_source(str(data)):
        raise UserError(f"{data}: only synthetic prints know how they lie; give synth:fingers=1000")
    before = FingerprintExtractor.from_pretrained(trained)
    torch.manual_seed(seed)
    extractor = _with_localization(before).to(device)
    network = extractor.model.localization
    assert network is not None
    prints, held_out = open_source(data, HELD_OUT, torch.device(device))
    assert held_out is not None
    preprocess = dataclasses.replace(before.preprocess_config, augment=AUGMENT)
    preprocessor = Preprocessor(preprocess, prints.info.canvas, seed, prints.info.ppi).to(device)
    _teach(network, _Task(prints, preprocessor), steps, batch_size, learning_rate)
    error = _Task(held_out, preprocessor).error(network.eval(), batch_size)
    extractor.cpu().save_pretrained(out, {})
    return error


def _with_localization(before: FingerprintExtractor) -> FingerprintExtractor:
    """The same extractor with a fresh aligning network in front, unless it has one."""
    config: ModelConfig = before.model.config
    if before.model.localization is not None and before.aligning is None:
        raise UserError(f"{before.origin}: aligns inside, as flx's networks do; start from another model")
    variant = config.variant if before.aligning is not None else f"Loc{config.variant}"
    aligned = dataclasses.replace(config, variant=variant, localization_frozen=True)  # type: ignore[arg-type]
    extractor = FingerprintExtractor(aligned, before.preprocess_config, before.ppi, before.canvas, before.enhanced)
    extractor.model.load_state_dict(before.model.state_dict(), strict=False)
    return extractor


def _teach(network: Localization, task: _Task, steps: int, batch_size: int, learning_rate: float) -> None:
    """Trains the network in place, with AdamW."""
    network.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    order = SampleOrder(len(task.prints), task.preprocessor.seed)
    with tqdm(range(steps), desc="teaching alignment", unit="step") as bar:
        for step in bar:
            inputs, wanted = task.batch(*order.take(step * batch_size, batch_size))
            off = (network.transform(inputs) - wanted) / wanted.new_tensor([RADIANS, HALF_SIDES, HALF_SIDES])
            loss = F.smooth_l1_loss(off, torch.zeros_like(off))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            if step % 20 == 0:
                bar.set_postfix_str(f"loss {float(loss.detach()):.3f}")


@dataclass(frozen=True)
class _Task:
    """Turned and shifted prints, and what the network is to say about them."""

    prints: SyntheticPrints
    preprocessor: Preprocessor

    def batch(self, samples: np.ndarray, epochs: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """samples, epochs (B,) int64 -> (B, 1, S, S) inputs and (B, 3) rotation in radians, shift in half sides of the
        input."""
        preprocessor = self.preprocessor
        config = preprocessor.config
        batch = self.prints.read(samples, epochs)
        keys = sample_keys(preprocessor.seed, batch.epoch, batch.index)
        pose = random_pose(keys, config.augment, config.crop)
        quality = random_quality(keys, config.augment, config.size)
        inputs = preprocessor.images(batch.image, pose, quality)
        wanted = seen_from(pose, self.prints.poses(samples, epochs), config.crop)
        return inputs.contiguous(memory_format=torch.channels_last), wanted

    @torch.no_grad()
    def error(self, network: Localization, batch_size: int) -> AlignmentError:
        """Over all prints of one epoch."""
        off = []
        for some in np.array_split(np.arange(len(self.prints)), max(1, len(self.prints) // batch_size)):
            inputs, wanted = self.batch(some, np.zeros_like(some))
            off.append((network.transform(inputs) - wanted).abs().cpu())
        median = torch.cat(off).median(dim=0).values.tolist()
        mm = self.preprocessor.config.crop / 2 / self.prints.info.ppi * MM_PER_INCH
        return AlignmentError(math.degrees(median[0]), median[1] * mm, median[2] * mm)


def seen_from(pose: Pose, truth: torch.Tensor, crop: float) -> torch.Tensor:
    """What is left to be turned and shifted on an input that was itself taken in a pose.

    Args:
        pose: of the input on the canvas; its elastic part is left out.
        truth: (B, 3) rotation in radians, shift in canvas pixels: of the upright finger on the canvas.
        crop: side of the input in canvas pixels.

    Returns:
        (B, 3) rotation in radians, shift in half sides of the input.
    """
    angle = truth[:, 0] - torch.atan2(pose.matrix[:, 1, 0], pose.matrix[:, 0, 0])
    shift = torch.linalg.solve(pose.matrix, (truth[:, 1:] - pose.shift)[:, :, None])[:, :, 0] / (crop / 2)
    return torch.cat([angle[:, None], shift], dim=1)
