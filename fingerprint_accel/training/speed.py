"""How fast the step runs on this machine: compilation, TF32, and what processes send to each other."""

from __future__ import annotations

import sys
import warnings

import torch
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs

from fingerprint_accel.config import TrainingConfig
from fingerprint_accel.losses.exchange import talk_outside_compiled_code
from fingerprint_accel.training.module import TrainingModule

FEWER_PASSES = {
    "realize_reads_threshold": 7,
    "realize_opcount_threshold": 1000,
    "realize_acc_reads_threshold": 64,
}
"""Options of the code generator for GPUs: what the gradient of a normalisation is made of is computed where it is used,
twice if need be, not written to memory in float32 and read again."""
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
KINDS = 64
"""Versions of compiled code that blocks of one class may have: sizes, training or not. torch 2.11 counts those of all
regions together, and after eight leaves the rest uncompiled."""


def set_precision(device: torch.device) -> None:
    """On CUDA: float32 products in TF32, and convolution algorithms chosen by trial, since shapes never change.

    A CPU keeps full float32 products: with torch's reduced ones, results would depend on the make of the processor.
    """
    if device.type != "cuda":
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*new API settings to control TF32.*")  # torch 2.9 to 2.11
        # factors keep 10 bits of their mantissa, as fp16 does; sums are in float32
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


def ddp_options(training: TrainingConfig) -> DistributedDataParallelKwargs:
    """How DDP exchanges gradients. They live in its buckets, so that none is copied."""
    return DistributedDataParallelKwargs(
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        bucket_cap_mb=training.bucket_cap_mb,
        comm_hook=DDPCommunicationHookType(training.gradient_compression),
    )


def compile_parts(module: TrainingModule, training: TrainingConfig, device: torch.device) -> str:
    """Compiles the network, and on CUDA the losses, in place: names in state dicts stay as they are.

    The network is compiled region by region, which takes a fraction of the time where blocks repeat, and the losses by
    themselves: DDP has to see the module around them as it is.

    Returns:
        A note for the user, or nothing.
    """
    mode = training.compile
    if mode == "no":
        return ""
    from torch import _dynamo
    from torch._inductor import list_mode_options  # takes seconds

    _dynamo.config.recompile_limit = max(KINDS, _dynamo.config.recompile_limit)
    note = ""
    if mode == "reduce-overhead" and device.type != "cuda":
        mode, note = "default", "--training.compile reduce-overhead: CUDA graphs need a GPU; compiling with default"
    how = {"mode": mode} if device.type != "cuda" else {"options": {**list_mode_options(mode), **FEWER_PASSES}}
    for region in module.model.regions:
        region.compile(**how, dynamic=False)
    if device.type == "cuda":
        talk_outside_compiled_code()
        module.loss.compile(mode=mode, dynamic=False)
    return note


def input_dtype(precision: str) -> torch.dtype:
    """Of what preparation hands to the network: what autocast would turn it into, written once."""
    return HALF.get(precision, torch.float32)


def begin_step() -> None:
    """Tells CUDA graphs that results of the step before may be overwritten; costs nothing without them.

    Called once per optimizer step, not per micro-batch: gradients that add up over micro-batches are such results.
    """
    if "torch._inductor.cudagraph_trees" in sys.modules:  # asking for it elsewhere would import the compiler, seconds
        torch.compiler.cudagraph_mark_step_begin()
