"""Networks that outgrow a device: every process keeps a slice of each weight, of its gradient and of what the optimizer
remembers of it, and a block's weights are gathered while it computes (Zhao et al. 2023, "PyTorch FSDP: Experiences on
Scaling Fully Sharded Data Parallel", arXiv 2304.11277). As `accelerate config` has been told; checkpoints stay whole.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, parse_flag_from_env

from fingerprint_accel.config import Config
from fingerprint_accel.errors import require
from fingerprint_accel.training.module import TrainingModule
from fingerprint_accel.training.speed import HALF

if TYPE_CHECKING:
    from timm.utils.model_ema import ModelEmaV3
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

# torch's FSDP and distributed tensors take seconds to import: only where they are used


def fsdp_plugin(config: Config) -> FullyShardedDataParallelPlugin | None:
    """Accelerate's settings of FSDP where it was launched with such, else None.

    Weights are gathered as they are, in float32, and autocast turns them into bf16 as it does without FSDP.

    Raises:
        UserError: settings that do not go with this training.
    """
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return None
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
    from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy

    require(os.environ.get("FSDP_VERSION") == "2", "FSDP of version 1 is not supported: set fsdp_version: 2")
    plugin = FullyShardedDataParallelPlugin(
        mixed_precision_policy=MixedPrecisionPolicy(reduce_dtype=HALF.get(config.training.gradient_compression)),
        cpu_ram_efficient_loading=False,  # every process draws the same weights from the seed
    )
    require(
        plugin.auto_wrap_policy is not size_based_auto_wrap_policy,
        "parts cannot be wrapped by size: set fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP",
    )
    require(
        not plugin.activation_checkpointing,
        "fsdp_activation_checkpointing renames weights: set it to false and give --model.gradient-checkpointing",
    )
    require(
        not isinstance(plugin.cpu_offload, CPUOffloadPolicy), "fsdp_offload_params is not supported: set it to false"
    )
    return plugin


def switch_on(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin | None, config: Config) -> None:
    """Makes sure that several processes use FSDP: on CPUs Accelerate 1.15 would take DDP (`AcceleratorState.__init__`).

    Raises:
        UserError: knobs that do not go with FSDP.
    """
    state = accelerator.state
    if plugin is not None and state.distributed_type in (DistributedType.MULTI_CPU, DistributedType.FSDP):
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    if not accelerator.is_fsdp2:
        return
    training, loss = config.training, config.loss
    require(training.optimizer == "adamw", "torch has no fused sgd for FSDP: choose --training.optimizer adamw")
    require(accelerator.mixed_precision != "fp16", "FSDP goes with --training.precision bf16 or no, not with fp16")
    require(training.compile == "no", "FSDP gathers weights block by block: leave --training.compile at no")
    require(
        training.auto_micro_batch_size != "yes",
        "with FSDP no process can rehearse a step alone: leave --training.auto-micro-batch-size at auto, and choose "
        "the batch size",
    )
    require(loss.class_sample_rate == 1, "classes cannot be sampled with FSDP: leave --loss.class-sample-rate at 1")


def prepare(
    accelerator: Accelerator, bare: TrainingModule, optimizer: torch.optim.Optimizer, average: ModelEmaV3 | None
) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """`accelerator.prepare`; with FSDP also what Accelerate leaves out. `average` goes to the device, or into slices.

    Heads that are sharded by class stay what they are: FSDP leaves them alone.

    Raises:
        UserError: Accelerate was told to wrap layers that this network does not have.
    """
    if not accelerator.is_fsdp2:
        if average is not None:
            average.to(accelerator.device)
        return accelerator.prepare(bare, optimizer)
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

    plugin = accelerator.state.fsdp_plugin
    known = {type(part).__name__ for part in bare.modules()}
    for name in plugin.transformer_cls_names_to_wrap or []:
        require(
            name in known,
            f"fsdp_transformer_layer_cls_to_wrap: no {name} in this network, leave it out or name "
            f"{','.join(bare._no_split_modules)}",
        )
    plugin.ignored_modules = [head.to(accelerator.device) for head in bare.loss.sharded_heads.values()]
    module, prepared = accelerator.prepare(bare, optimizer)
    _keep_slices_apart(prepared.param_groups)
    bare.forward = accelerator.autocast()(bare.forward)  # type: ignore[method-assign]
    register_fsdp_forward_method(bare, "embed")
    if average is not None:
        average.foreach = False  # it does not take slices and whole buffers together
        if plugin.transformer_cls_names_to_wrap:
            parts = {type(part).__name__ for part in average.modules()}
            plugin.transformer_cls_names_to_wrap = [n for n in plugin.transformer_cls_names_to_wrap if n in parts]
        fsdp2_prepare_model(accelerator, average.module)
    for part in [*bare.modules(), *(average.modules() if average is not None else [])]:
        if isinstance(part, FSDPModule) and accelerator.device.type == "cpu":
            part.set_force_sum_reduction_for_comms(True)  # gloo knows no mean
    return module, prepared


def _keep_slices_apart(groups: list[dict]) -> None:
    """Fused optimizers do not take FSDP's slices and other tensors in one group."""
    for group in list(groups):
        others = [parameter for parameter in group["params"] if not is_slice(parameter)]
        if others and len(others) < len(group["params"]):
            group["params"] = [parameter for parameter in group["params"] if is_slice(parameter)]
            groups.append({**group, "params": others})


def reshard(module: torch.nn.Module) -> None:
    """Has FSDP give up weights of a module that stayed gathered behind a forward pass; others are left as they are."""
    if hasattr(module, "reshard"):
        cast("FSDPModule", module).reshard()


def is_slice(tensor: torch.Tensor) -> bool:
    """Whether this is FSDP's slice of a tensor, torch's DTensor."""
    return hasattr(tensor, "full_tensor")


def gather_full(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with the slices of all processes, all of which call this; other tensors as they are."""
    return cast("DTensor", tensor).full_tensor() if is_slice(tensor) else tensor


def shard_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's slice of a whole tensor, where `like` is such a slice; else the tensor as it is."""
    if not is_slice(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh = cast("DTensor", like)
    return distribute_tensor(tensor, mesh.device_mesh, mesh.placements, src_data_rank=None)


def load_whole(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Loads a state dict of whole tensors.

    Raises:
        RuntimeError: it is another module's.
    """
    own = module.state_dict()
    module.load_state_dict({name: shard_like(tensor, own.get(name, tensor)) for name, tensor in tensors.items()})
