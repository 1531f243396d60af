"""FSDP, for networks that do not fit into the memory of one device.

Every process holds a slice of each weight, of its gradient and of its optimizer state. The weights of a block are
gathered while the block computes (Zhao et al. 2023, "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel",
arXiv 2304.11277). `accelerate config` switches it on. Checkpoints contain whole tensors.
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

# torch's FSDP and distributed tensors take seconds to import, so that functions import them on demand


def fsdp_plugin(config: Config) -> FullyShardedDataParallelPlugin | None:
    """Return the FSDP settings of the launch, or None without FSDP.

    Weights are gathered in float32, and autocast converts them to bf16 as it does without FSDP.

    Raises:
        UserError: If the settings do not work with this training.
    """
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return None
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
    from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy

    require(os.environ.get("FSDP_VERSION") == "2", "FSDP version 1 is not supported: set fsdp_version: 2")
    plugin = FullyShardedDataParallelPlugin(
        mixed_precision_policy=MixedPrecisionPolicy(reduce_dtype=HALF.get(config.training.gradient_compression)),
        cpu_ram_efficient_loading=False,  # every process draws the same weights from the seed
    )
    require(
        plugin.auto_wrap_policy is not size_based_auto_wrap_policy,
        "fsdp_auto_wrap_policy SIZE_BASED_WRAP is not supported: set TRANSFORMER_BASED_WRAP",
    )
    require(
        not plugin.activation_checkpointing,
        "fsdp_activation_checkpointing renames weights: set it to false, and use --model.gradient-checkpointing",
    )
    require(
        not isinstance(plugin.cpu_offload, CPUOffloadPolicy), "fsdp_offload_params is not supported: set it to false"
    )
    return plugin


def switch_on(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin | None, config: Config) -> None:
    """Switch FSDP on for CPU processes, for which Accelerate 1.15 selects DDP (`AcceleratorState.__init__`).

    Raises:
        UserError: If options do not work with FSDP.
    """
    state = accelerator.state
    if plugin is not None and state.distributed_type in (DistributedType.MULTI_CPU, DistributedType.FSDP):
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    if not accelerator.is_fsdp2:
        return
    training, loss = config.training, config.loss
    require(training.optimizer == "adamw", "torch has no fused SGD for FSDP: use --training.optimizer adamw")
    require(accelerator.mixed_precision != "fp16", "FSDP does not work with fp16: use --training.precision bf16 or no")
    require(training.compile == "no", "FSDP does not work with compiled blocks: use --training.compile no")
    require(
        training.auto_micro_batch_size != "yes",
        "with FSDP no process can rehearse a step alone: leave --training.auto-micro-batch-size at auto, and set a "
        "--training.batch-size that fits",
    )
    require(loss.class_sample_rate == 1, "FSDP does not work with sampled classes: use --loss.class-sample-rate 1")


def prepare(
    accelerator: Accelerator, bare: TrainingModule, optimizer: torch.optim.Optimizer, average: ModelEmaV3 | None
) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Prepare module and optimizer with Accelerate, and move or shard the moving average.

    With FSDP this also does what Accelerate leaves out. FSDP does not touch heads that are sharded by class.

    Args:
        accelerator: The accelerator.
        bare: Network and losses.
        optimizer: The optimizer.
        average: Moving average of the network, or None.

    Raises:
        UserError: If the FSDP settings name layers that this network does not have.
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
            f"fsdp_transformer_layer_cls_to_wrap: this network has no {name}; leave the setting out, or use "
            f"{','.join(bare._no_split_modules)}",
        )
    plugin.ignored_modules = [head.to(accelerator.device) for head in bare.loss.sharded_heads.values()]
    module, prepared = accelerator.prepare(bare, optimizer)
    _keep_slices_apart(prepared.param_groups)
    bare.forward = accelerator.autocast()(bare.forward)  # type: ignore[method-assign]
    register_fsdp_forward_method(bare, "embed")
    if average is not None:
        average.foreach = False  # foreach operations do not accept slices and whole buffers in one call
        if plugin.transformer_cls_names_to_wrap:
            parts = {type(part).__name__ for part in average.modules()}
            plugin.transformer_cls_names_to_wrap = [n for n in plugin.transformer_cls_names_to_wrap if n in parts]
        fsdp2_prepare_model(accelerator, average.module)
    for part in [*bare.modules(), *(average.modules() if average is not None else [])]:
        if isinstance(part, FSDPModule) and accelerator.device.type == "cpu":
            part.set_force_sum_reduction_for_comms(True)  # gloo has no mean reduction
    return module, prepared


def _keep_slices_apart(groups: list[dict]) -> None:
    """Move tensors that FSDP does not slice to groups of their own, because fused optimizers accept no mixture."""
    for group in list(groups):
        others = [parameter for parameter in group["params"] if not is_slice(parameter)]
        if others and len(others) < len(group["params"]):
            group["params"] = [parameter for parameter in group["params"] if is_slice(parameter)]
            groups.append({**group, "params": others})


def reshard(module: torch.nn.Module) -> None:
    """Free the gathered weights of an FSDP module after a forward pass. Does nothing for other modules."""
    if hasattr(module, "reshard"):
        cast("FSDPModule", module).reshard()


def is_slice(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is a slice of FSDP (a DTensor)."""
    return hasattr(tensor, "full_tensor")


def gather_full(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole tensor of an FSDP slice; all processes call this. Other tensors are returned unchanged."""
    return cast("DTensor", tensor).full_tensor() if is_slice(tensor) else tensor


def shard_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return this process's slice of a whole tensor if `like` is a slice of FSDP, else the tensor itself."""
    if not is_slice(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh = cast("DTensor", like)
    return distribute_tensor(tensor, mesh.device_mesh, mesh.placements, src_data_rank=None)


def load_whole(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Load a state dict of whole tensors into a module that may be sliced.

    Raises:
        RuntimeError: If the state dict belongs to another module.
    """
    own = module.state_dict()
    module.load_state_dict({name: shard_like(tensor, own.get(name, tensor)) for name, tensor in tensors.items()})
