"""Everything that one training run is made of, on one process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator

from fingerprint_accel.config import Config
from fingerprint_accel.data.order import SampleOrder
from fingerprint_accel.preprocess.pipeline import Preprocessor
from fingerprint_accel.training.data import PrintSource
from fingerprint_accel.training.module import TrainingModule

if TYPE_CHECKING:
    from timm.utils.model_ema import ModelEmaV3


@dataclass
class Run:
    """Everything that one training run is made of, on this process.

    Attributes:
        module: network and losses as the loop calls them (wrapped by DDP where there are several processes).
        bare: the same without wrapping; FSDP changes it in place.
        optimizer: wrapped by Accelerate.
        ema: moving average of the network's weights, if one is kept.
        steps: optimizer steps in all.
    """

    config: Config
    accelerator: Accelerator
    train: PrintSource
    validation: PrintSource | None
    order: SampleOrder
    preprocessor: Preprocessor
    module: torch.nn.Module
    bare: TrainingModule
    optimizer: torch.optim.Optimizer
    steps: int
    ema: ModelEmaV3 | None = None

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.out)

    @property
    def samples_per_step(self) -> int:
        """Prints per optimizer step over all processes and micro-batches."""
        training = self.config.training
        return training.batch_size * training.gradient_accumulation_steps * self.accelerator.num_processes

    @property
    def torch_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer without Accelerate's wrapping."""
        return self.optimizer.optimizer  # type: ignore[attr-defined]

    @cached_property
    def parameters(self) -> list[torch.nn.Parameter]:
        """What is trained, in the order of the module."""
        return list(self.bare.parameters())

    @property
    def parameter_names(self) -> dict[int, str]:
        """Name of each trained parameter by its id()."""
        return {id(parameter): name for name, parameter in self.bare.named_parameters()}
