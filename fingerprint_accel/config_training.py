"""Knobs of the training loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fingerprint_accel.errors import require


@dataclass(frozen=True)
class TrainingConfig:
    """The loop."""

    epochs: float = 20.0
    """Passes over the training prints; ignored when `steps` is given."""
    steps: int = 0
    """Optimizer steps; 0 derives them from `epochs`."""
    batch_size: int = 64
    """Prints per process and micro-batch."""
    accumulation: int = 1
    """Micro-batches per optimizer step."""
    fit_memory: Literal["auto", "yes", "no"] = "auto"
    """Rehearse a micro-batch before the first step, and where memory runs out on any process take smaller ones and more
    of them on all, with the same prints per step; `auto` does so on GPUs."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Autocast of the network, losses stay in float32; `auto` takes what `accelerate launch` was told."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    """Peak learning rate, for the whole batch as given (it is not rescaled)."""
    head_rate: float = 1.0
    """Learning rate of the identity heads, as a multiple of `learning_rate`."""
    layer_decay: float = 1.0
    """Each block of the network learns at this share of the rate of the block behind it: below 1 to keep the early
    layers of a trained network (`model.start_from`)."""
    ema_decay: float = 0.0
    """Keep a moving average of the weights, this share of it at each step (less in the beginning): validated and saved
    beside the raw weights, and exported in their place. 0 keeps none, 0.999 suits runs of 10,000 steps. With
    `model.start_from` the average begins with the trained weights and still holds ema_decay^steps of them at the end:
    0.999 keeps half of them over 700 steps."""
    weight_decay: float = 0.02
    momentum: float = 0.9
    """Momentum of sgd."""
    warmup_steps: int = 100
    """Steps of linear warm-up, then cosine decay."""
    final_lr_share: float = 0.01
    """Learning rate at the last step, as a share of the peak."""
    clip_norm: float = 5.0
    """Largest gradient norm; 0 switches clipping off."""
    validate_every: int = 500
    """Steps between validations; 0 validates at the end only."""
    patience: int = 0
    """Stop after this many validations without a lower EER; 0 never stops early."""
    log_every: int = 20
    """Steps between records in metrics.jsonl."""
    save_every: int = 500
    """Steps between checkpoints; 0 saves at the end only."""
    keep: int = 3
    """Checkpoints kept, besides the best one."""
    max_bad_steps: int = 20
    """Steps in a row with a NaN or infinite loss after which training stops."""
    tracker: str = "tensorboard"
    """Any tracker Accelerate knows, by name (`wandb`, `mlflow`, ...), or `none`."""
    compile: Literal["no", "default", "reduce-overhead", "max-autotune"] = "no"
    """Compile the network, on a GPU also the losses, with torch.compile. `reduce-overhead` adds CUDA graphs (worth most
    where a small network or batch leaves the GPU waiting for Python), `max-autotune` also tries out kernels."""
    tf32: bool = True
    """TF32 for float32 products on a GPU: faster, 10 bits of mantissa in the factors, sums in float32."""
    gradient_compression: Literal["no", "bf16", "fp16"] = "no"
    """Send gradients between processes in half the bytes; bf16 keeps the range of float32."""
    bucket_mb: int = 25
    """Gradients that processes exchange at a time, MiB: larger for many GPUs or a slow network."""
    timeout: int = 600
    """Seconds without an answer from another process after which it counts as lost, and the job ends."""
    seed: int = 0
    """Seed of initial weights, order and augmentation."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulation", "log_every", "keep", "max_bad_steps", "bucket_mb", "timeout"):
            require(getattr(self, name) >= 1, f"training.{name} must be at least 1")
        for name in ("steps", "warmup_steps", "validate_every", "patience", "save_every", "clip_norm", "seed"):
            require(getattr(self, name) >= 0, f"training.{name} must not be negative")
        require(self.head_rate >= 0, "training.head_rate must not be negative")
        require(0 < self.layer_decay <= 1, "training.layer_decay must be above 0 and at most 1")
        require(0 <= self.ema_decay < 1, "training.ema_decay must be at least 0 and below 1")
        require(self.learning_rate > 0, "training.learning_rate must be above 0")
        require(self.steps > 0 or self.epochs > 0, "training.epochs must be above 0")
