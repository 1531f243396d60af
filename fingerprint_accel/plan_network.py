"""Count the parameters, memory and operations of a network, without memory for the network itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fingerprint_accel.config import ModelConfig
from fingerprint_accel.preprocess.minutia_map import MAP_SIZE

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Gradient:
    """Gradient of a parameter.

    Attributes:
        size: Number of elements.
        ready: Share of the operations of the backward pass after which the gradient is complete.
    """

    size: int
    ready: float


@dataclass(frozen=True)
class Counted:
    """Size of a network, and the memory and operations that training needs for one print.

    Attributes:
        parameters: Number of trained parameters.
        largest_block: Number of parameters of the largest block of the network.
        saved_bytes: Bytes per print that the forward pass keeps for the backward pass, with bf16 autocast.
        flops: Floating-point operations per print in the forward and backward pass. A multiply-add is two operations.
        branch_dims: Length of the embedding of each branch, by name.
        gradients: Gradients in the order in which the backward pass completes them.
    """

    parameters: int
    largest_block: int
    saved_bytes: float
    flops: float
    branch_dims: dict[str, int]
    gradients: tuple[Gradient, ...]


def flop_counter() -> FlopCounterMode:
    """Return torch's counter of floating-point operations, extended to attention on CPUs.

    torch 2.14 does not count the operations of attention on CPUs.
    """
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    attention = {
        forward: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
        backward: lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4]),
    }
    return FlopCounterMode(display=False, custom_mapping=attention)


def count(model: ModelConfig, size: int, map_size: int = MAP_SIZE) -> Counted:
    """Count the parameters of a network, and the memory and operations that training needs per print. Takes seconds.

    The network runs on fake tensors, which have shapes but no values. Only the forward pass runs. The backward pass is
    assumed to visit the layers in reverse order, with twice the operations of the forward pass in each layer.

    Args:
        model: Configuration of the network.
        size: Side of the input images, in pixels.
        map_size: Side of the predicted minutia maps, in pixels.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    from fingerprint_accel.models.deepprint import DeepPrint

    saved: dict[int, int] = {}  # bytes of each storage, by address; no storage is freed here, so addresses are unique
    before: dict[torch.nn.Module, int] = {}  # operations before the first call of each module

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage.nbytes()
        return tensor

    def note(module: torch.nn.Module, _: Any) -> None:
        before.setdefault(module, counter.get_total_flops())

    with FakeTensorMode():
        network = DeepPrint(model, map_size)
        for module in network.modules():
            module.register_forward_pre_hook(note)
        image = torch.zeros(2, 1, size, size)
        kept = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with flop_counter() as counter, kept, torch.autocast("cpu", torch.bfloat16):
            output = network(image)
    for weight in network.parameters():
        saved.pop(weight.untyped_storage()._cdata, None)
    del output
    parameters, total = sum(_trained(network)), counter.get_total_flops()
    copies = 2 * parameters  # bytes of the bf16 weights, which are saved once per batch
    return Counted(
        parameters=parameters,
        largest_block=max(sum(weight.numel() for weight in block.parameters()) for block in network.blocks),
        saved_bytes=max(0, sum(saved.values()) - copies) / 2,
        flops=3 * total / 2,
        branch_dims=network.branch_dims,
        gradients=_gradients(network, before, total),
    )


def _gradients(network: torch.nn.Module, before: dict[torch.nn.Module, int], total: int) -> tuple[Gradient, ...]:
    """Return the gradients of a network in the order in which the backward pass completes them.

    Args:
        network: The network.
        before: Operations of the forward pass before the first call of each module, in the order of the calls.
        total: Operations of the forward pass.
    """
    sizes: dict[torch.nn.Module, list[int]] = {module: [] for module in before}
    for name, module in network.named_modules():
        caller = module
        while caller not in before:  # a module around it uses its parameters without a call
            name = name.rpartition(".")[0]
            caller = network.get_submodule(name)
        sizes[caller] += _trained(module, recurse=False)
    calls = reversed(before.items())
    return tuple(Gradient(size, 1 - past / total) for module, past in calls for size in reversed(sizes[module]))


def _trained(module: torch.nn.Module, recurse: bool = True) -> list[int]:
    return [weight.numel() for weight in module.parameters(recurse) if weight.requires_grad]
