"""Train with FSDP (fully sharded data parallel), for networks that do not fit into the memory of one device.

Every process holds a slice of each weight, together with the matching slices of gradient and optimizer state. The whole
weights of a block of layers are gathered on all processes while the block computes (Zhao et al. 2023, "PyTorch FSDP:
Experiences on Scaling Fully Sharded Data Parallel", arXiv 2304.11277). FSDP is enabled with `accelerate config`.
Checkpoints contain whole tensors, as without FSDP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from fingerprint_accel.config import Config
from fingerprint_accel.errors import require
from fingerprint_accel.training.launch_answers import uses_fsdp
from fingerprint_accel.training.module import TrainingModule
from fingerprint_accel.training.speed import HALF

if TYPE_CHECKING:
    from timm.utils.model_ema import ModelEmaV3
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

# The modules of torch for FSDP and distributed tensors take seconds to import. Functions import them when needed.


def fsdp_plugin(config: Config) -> FullyShardedDataParallelPlugin | None:
    """Return the FSDP settings with which `accelerate launch` started this process, or None if FSDP is disabled.

    FSDP gathers weights in float32. Autocast then converts them to bf16, as without FSDP. `check_answers` must have
    accepted the settings.
    """
    if not uses_fsdp():
        return None
    from torch.distributed.fsdp import MixedPrecisionPolicy

    return FullyShardedDataParallelPlugin(
        mixed_precision_policy=MixedPrecisionPolicy(reduce_dtype=HALF.get(config.training.gradient_compression)),
        cpu_ram_efficient_loading=False,  # every process initialises the same weights from the seed
    )


def switch_on(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin | None, config: Config) -> None:
    """Enable FSDP on CPU processes too, and check that the options of the run work with FSDP.

    Accelerate 1.15 selects DDP for CPU processes (`AcceleratorState.__init__`), even if FSDP is configured.

    Args:
        accelerator: Accelerator of the run.
        plugin: Result of `fsdp_plugin`; None leaves FSDP disabled.
        config: Configuration of the run.

    Raises:
        UserError: If an option does not work with FSDP.
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
    """Wrap the training module and the optimizer with Accelerate, for DDP, FSDP or a single process.

    The moving average of the weights is moved to the device, or sharded with FSDP. With FSDP, this function also takes
    steps that Accelerate omits: it applies autocast, and registers `TrainingModule.embed` as a forward method. FSDP
    does not shard identity heads that are already sharded by class.

    Args:
        accelerator: Accelerator of the run.
        bare: Network and losses. FSDP changes this module in place.
        optimizer: Optimizer of the parameters of `bare`.
        average: Moving average of the weights of the network, or None.

    Returns:
        The wrapped module and the wrapped optimizer.

    Raises:
        UserError: If the FSDP settings name a class of layers that this network does not have.
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
        average.foreach = False  # one foreach call does not accept both sharded weights and whole buffers
        if plugin.transformer_cls_names_to_wrap:
            parts = {type(part).__name__ for part in average.modules()}
            plugin.transformer_cls_names_to_wrap = [n for n in plugin.transformer_cls_names_to_wrap if n in parts]
        fsdp2_prepare_model(accelerator, average.module)
    for part in [*bare.modules(), *(average.modules() if average is not None else [])]:
        if isinstance(part, FSDPModule) and accelerator.device.type == "cpu":
            part.set_force_sum_reduction_for_comms(True)  # the gloo backend cannot average
    return module, prepared


def _keep_slices_apart(groups: list[dict]) -> None:
    """Split the parameter groups of an optimizer in place, so that no group mixes sharded and whole parameters.

    Fused optimizers do not accept a group with both kinds of parameters.
    """
    for group in list(groups):
        others = [parameter for parameter in group["params"] if not is_slice(parameter)]
        if others and len(others) < len(group["params"]):
            group["params"] = [parameter for parameter in group["params"] if is_slice(parameter)]
            groups.append({**group, "params": others})


def reshard(module: torch.nn.Module) -> None:
    """Free the weights that an FSDP module has gathered for a forward pass. Other modules are left unchanged."""
    if hasattr(module, "reshard"):
        cast("FSDPModule", module).reshard()


def is_slice(tensor: torch.Tensor) -> bool:
    """Return whether FSDP shards a tensor (a DTensor), so that this process holds only a slice of it."""
    return hasattr(tensor, "full_tensor")


def gather_full(tensor: torch.Tensor) -> torch.Tensor:
    """Gather a tensor that FSDP shards, and return it whole. All processes must call this function.

    A tensor that is not sharded is returned unchanged.
    """
    return cast("DTensor", tensor).full_tensor() if is_slice(tensor) else tensor


def shard_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Shard a whole tensor over the processes in the same way as FSDP shards `like`.

    The tensor is returned unchanged if `like` is not sharded or has another shape.
    """
    if not is_slice(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh = cast("DTensor", like)
    return distribute_tensor(tensor, mesh.device_mesh, mesh.placements, src_data_rank=None)


def load_whole(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Load a state dict of whole tensors into a module, which FSDP may have sharded.

    Raises:
        RuntimeError: If names or shapes of the tensors do not match the module.
    """
    own = module.state_dict()
    module.load_state_dict({name: shard_like(tensor, own.get(name, tensor)) for name, tensor in tensors.items()})
