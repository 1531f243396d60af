"""Create the optimizer with its parameter groups, and the moving average of the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from fingerprint_accel.config import TrainingConfig
from fingerprint_accel.losses.sharded import ShardedHead
from fingerprint_accel.models.deepprint import DeepPrint
from fingerprint_accel.training.module import TrainingModule

if TYPE_CHECKING:
    from timm.utils.model_ema import ModelEmaV3


def depths(model: DeepPrint) -> dict[nn.Parameter, int]:
    """Return for each parameter the number of blocks between this parameter and the output of the network.

    The option `training.layer_decay` uses this number. Parameters of the decoder of minutia maps are left out, because
    they are treated as parameters of the last block.
    """
    found: dict[nn.Parameter, int] = {}

    def counted(blocks: nn.Sequential | None, behind: int) -> int:
        for block in reversed(blocks if blocks is not None else nn.Sequential()):
            parameters = list(block.parameters())
            found.update(dict.fromkeys(parameters, behind))
            behind += bool(parameters)
        return behind

    minutiae = counted(model.minutia_stem, counted(model.minutia_branch, 0))
    behind = counted(model.stem, max(counted(model.texture_branch, 0), minutiae))
    if model.alignment is not None:
        found.update(dict.fromkeys(model.alignment.parameters(), behind))
    return found


def make_optimizer(module: nn.Module, training: TrainingConfig) -> torch.optim.Optimizer:
    """Create the optimizer of a run, AdamW or SGD, with its parameter groups.

    The optimizer is fused, because only fused optimizers can skip an update on the device. Each parameter group has an
    entry `rate`, a factor on the learning rate. Vectors (biases and normalisation layers) have no weight decay. An
    identity head that samples classes contributes two parameters: the matrix of all class vectors, which gets no
    gradient, and the copy of the rows that are sampled for an update.

    Args:
        module: Module to train. Layer decay applies only to a `TrainingModule`.
        training: Options of the optimizer.
    """
    depth = depths(module.model) if isinstance(module, TrainingModule) else {}
    drawn = [
        (f"{name}.{entry}", parameter)
        for name, part in module.named_modules()
        if isinstance(part, ShardedHead)
        for entry, parameter in part.drawn.items()
    ]
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): [], (1.0, False): []}
    for name, parameter in [*module.named_parameters(), *drawn]:
        rate = training.head_lr_mult if name.startswith("loss.") else training.layer_decay ** depth.get(parameter, 0)
        if parameter.requires_grad:
            groups.setdefault((rate, parameter.ndim > 1), []).append(parameter)
    members = [
        {"params": group, "weight_decay": training.weight_decay if decayed else 0.0, "rate": rate}
        for (rate, decayed), group in groups.items()
        if group
    ]
    if training.optimizer == "sgd":
        return torch.optim.SGD(members, lr=training.learning_rate, momentum=training.momentum, fused=True)
    return torch.optim.AdamW(members, lr=training.learning_rate, fused=True)


def moving_average(model: DeepPrint, decay: float, trained: bool) -> ModelEmaV3 | None:
    """Create the exponential moving average of the weights of a network, or return None if `decay` is 0.

    Random initial weights do not contribute to the average. The weights after the first step replace the initial
    weights, and the decay rises from 0. Trained initial weights contribute to the final average with a share of
    decay^steps. Wortsman et al. 2022, arXiv 2109.01903, also average the weights before and after fine-tuning.

    Args:
        model: The network.
        decay: Decay of the average in each step, 0 to 1.
        trained: Whether the initial weights are those of a trained network.
    """
    if decay == 0:
        return None
    from timm.utils.model_ema import ModelEmaV3  # takes seconds

    # timm copies the weights, without averaging, up to the first step after `update_after_step`
    return ModelEmaV3(model, decay, use_warmup=not trained, update_after_step=-1 if trained else 0)
