"""Compute learning rate, augmentation strength and margin from the step alone.

Checkpoints therefore need not contain these values.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from fingerprint_accel.config import AugmentConfig, Config, LossConfig, TrainingConfig


class Schedule(NamedTuple):
    """Settings of one optimizer step.

    Attributes:
        learning_rate: Learning rate of the optimizer.
        augmentation: Augmentation strength, a factor on the maxima of all random changes, 0 to 1.
        margin: Margin of the identity heads, which classify the finger of a print.
    """

    learning_rate: float
    augmentation: float
    margin: float


def schedule_at(step: int, steps: int, config: Config) -> Schedule:
    """Return the settings of an optimizer step.

    Args:
        step: Index of the step, from 0.
        steps: Number of steps of the run.
        config: Configuration of the run.
    """
    return Schedule(
        learning_rate(step, steps, config.training),
        augmentation_strength(step, steps, config.preprocess.augment),
        scheduled_margin(step, steps, config.loss),
    )


def schedule_record(now: Schedule, config: Config) -> dict[str, float]:
    """Return the settings of a step by name, for its record in `metrics.jsonl`.

    Augmentation strength and margin are left out if they are constant in this run.
    """
    augment, loss = config.preprocess.augment, config.loss
    record = {"learning_rate": now.learning_rate}
    if augment.enabled and augment.start < 1 and augment.ramp > 0:
        record["augmentation"] = now.augmentation
    if loss.head != "softmax" and loss.margin_start + loss.margin_ramp > 0:
        record["margin"] = now.margin
    return record


def learning_rate(step: int, steps: int, config: TrainingConfig) -> float:
    """Return the learning rate of an optimizer step: a linear warm-up to the peak, then a cosine decay.

    The warm-up takes at most a tenth of the steps. The learning rate of the last step is `min_lr_ratio` times the peak.

    Args:
        step: Index of the step, from 0.
        steps: Number of steps of the run.
        config: Options of the schedule.
    """
    warmup = min(config.warmup_steps, steps // 10)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    share = config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * share


def augmentation_strength(step: int, steps: int, config: AugmentConfig) -> float:
    """Return the augmentation strength of an optimizer step, 0 to 1.

    The strength rises linearly from `config.start` to 1 during the first part of the run. The length of this part is
    `config.ramp`, a share of the steps.

    Args:
        step: Index of the step, from 0.
        steps: Number of steps of the run.
        config: Options of augmentation.
    """
    return config.start + (1 - config.start) * _risen(step / steps, config.ramp)


def scheduled_margin(step: int, steps: int, config: LossConfig) -> float:
    """Return the margin of the identity heads in an optimizer step.

    The margin is 0 in the first part of the run, rises linearly in the second part, and then stays at `config.margin`.
    The lengths of the first two parts are `config.margin_start` and `config.margin_ramp`, as shares of the steps.

    Args:
        step: Index of the step, from 0.
        steps: Number of steps of the run.
        config: Options of the loss.
    """
    since = step / steps - config.margin_start
    return config.margin * _risen(since, config.margin_ramp) if since >= 0 else 0.0


def _risen(since: float, ramp: float) -> float:
    return min(1.0, since / ramp) if ramp > 0 else 1.0
