"""Learning rate, augmentation strength and margin as pure functions of the step. Nothing of it needs to be saved."""

from __future__ import annotations

import math
from typing import NamedTuple

from fingerprint_accel.config import AugmentConfig, Config, LossConfig, TrainingConfig


class Schedule(NamedTuple):
    """Settings of one optimizer step.

    Attributes:
        learning_rate: Learning rate of the optimizer.
        augmentation: Factor on all augmentation amplitudes, 0 to 1.
        margin: Margin of the identity heads.
    """

    learning_rate: float
    augmentation: float
    margin: float


def schedule_at(step: int, steps: int, config: Config) -> Schedule:
    """Return the settings of optimizer step `step` (from 0) of `steps`."""
    return Schedule(
        learning_rate(step, steps, config.training),
        augmentation_strength(step, steps, config.preprocess.augment),
        scheduled_margin(step, steps, config.loss),
    )


def schedule_record(now: Schedule, config: Config) -> dict[str, float]:
    """Return the settings to record: the learning rate, and the other ones if they change during the run."""
    augment, loss = config.preprocess.augment, config.loss
    record = {"learning_rate": now.learning_rate}
    if augment.enabled and augment.start < 1 and augment.ramp > 0:
        record["augmentation"] = now.augmentation
    if loss.head != "softmax" and loss.margin_start + loss.margin_ramp > 0:
        record["margin"] = now.margin
    return record


def learning_rate(step: int, steps: int, config: TrainingConfig) -> float:
    """Return the learning rate of optimizer step `step` (from 0): linear warm-up, then cosine decay to `min_lr_ratio`.

    The warm-up takes at most a tenth of the steps.
    """
    warmup = min(config.warmup_steps, steps // 10)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    share = config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * share


def augmentation_strength(step: int, steps: int, config: AugmentConfig) -> float:
    """Return the augmentation strength, which rises linearly from `start` to 1 over the share `ramp` of the run."""
    return config.start + (1 - config.start) * _risen(step / steps, config.ramp)


def scheduled_margin(step: int, steps: int, config: LossConfig) -> float:
    """Return the margin: 0 until the share `margin_start` of the run, then rising linearly over `margin_ramp`."""
    since = step / steps - config.margin_start
    return config.margin * _risen(since, config.margin_ramp) if since >= 0 else 0.0


def _risen(since: float, ramp: float) -> float:
    return min(1.0, since / ramp) if ramp > 0 else 1.0
