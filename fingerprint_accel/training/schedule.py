"""Learning rate as a function of the optimizer step."""

from __future__ import annotations

import math

from fingerprint_accel.config import TrainingConfig


def learning_rate(step: int, steps: int, config: TrainingConfig) -> float:
    """Rate for optimizer step `step` (from 0) of `steps`: linear warm-up, then cosine decay to `final_lr_share`.

    The warm-up is shortened to a tenth of a run that is too short for it.
    """
    warmup = min(config.warmup_steps, steps // 10)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    share = config.final_lr_share + (1 - config.final_lr_share) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * share
