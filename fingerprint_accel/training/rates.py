"""Which parameters learn how fast: heads apart from the network, and early layers slower than late ones."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import nn

from fingerprint_accel.config import TrainingConfig
from fingerprint_accel.models.deepprint import DeepPrint

_BLOCK = re.compile(r"model\.(stem|minutia_stem|texture_branch|minutia_branch)\.(\d+)\.")


def depths(model: DeepPrint) -> dict[tuple[str, int], int]:
    """Blocks with parameters that stand between each block and its embedding, by the name and place of the block."""

    def counted(name: str, behind: int) -> int:
        blocks = getattr(model, name)
        for place in reversed(range(len(blocks) if blocks is not None else 0)):
            if any(True for _ in blocks[place].parameters()):
                found[name, place] = behind
                behind += 1
        return behind

    found: dict[tuple[str, int], int] = {}
    behind = max(counted("texture_branch", 0), counted("minutia_stem", counted("minutia_branch", 0)))
    found["alignment", 0] = counted("stem", behind)
    return found


def rate_of(name: str, where: dict[tuple[str, int], int], training: TrainingConfig) -> float:
    """Learning rate of a parameter of `TrainingModule`, as a share of the run's; `where` as of `depths`."""
    if name.startswith("loss."):
        return training.head_lr_mult
    block = _BLOCK.match(name)
    depth = where[block[1], int(block[2])] if block else 0  # the map decoder is a last layer too
    if name.startswith("model.alignment."):
        depth = where["alignment", 0]
    return training.layer_decay**depth


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], where: dict[tuple[str, int], int], training: TrainingConfig
) -> list[dict]:
    """Groups of an optimizer, each with its `rate`; vectors (biases, normalisation) are not decayed.

    Args:
        parameters: by name.
        where: as of `depths`.
        training: rates and weight decay.
    """
    groups: dict[tuple[float, bool], list[torch.Tensor]] = {(1.0, True): [], (1.0, False): []}
    for name, parameter in parameters:
        if parameter.requires_grad:
            groups.setdefault((rate_of(name, where, training), parameter.ndim > 1), []).append(parameter)
    return [
        {"params": members, "weight_decay": training.weight_decay if decayed else 0.0, "rate": rate}
        for (rate, decayed), members in groups.items()
        if members
    ]
