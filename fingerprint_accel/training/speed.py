"""Make training steps faster: compilation, TF32, and options for the exchange of gradients between processes."""

from __future__ import annotations

import os
import stat
import sys
import warnings
from pathlib import Path

import torch
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs

from fingerprint_accel.config import TrainingConfig
from fingerprint_accel.errors import require
from fingerprint_accel.losses.exchange import talk_outside_compiled_code
from fingerprint_accel.training.module import TrainingModule

# Options of torch.compile on GPUs. With them, the backward pass of a normalisation layer recomputes its inputs where it
# uses them. With the default options, it writes the inputs to memory in float32 and reads them again, which is slower.
FEWER_PASSES = {
    "realize_reads_threshold": 7,
    "realize_opcount_threshold": 1000,
    "realize_acc_reads_threshold": 64,
}
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Largest number of compiled versions, which differ in tensor sizes and in training or evaluation mode. torch 2.11
# counts the versions of all compiled regions together. With its default of eight, some regions would not be compiled.
KINDS = 64


def set_precision(device: torch.device) -> None:
    """Enable TF32, and the search of cuDNN for the fastest convolution algorithms, on a CUDA device.

    The search is worth its time, because tensor shapes do not change. On a CPU, float32 products keep their full
    precision. With reduced precision, results would depend on the type of the processor.
    """
    if device.type != "cuda":
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*new API settings to control TF32.*")  # of torch 2.9 to 2.11
        # TF32 rounds factors to a mantissa of 10 bits, as in fp16. Sums are in float32.
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


def ddp_options(training: TrainingConfig) -> DistributedDataParallelKwargs:
    """Return the options of DDP as a keyword handler for `Accelerator`.

    `gradient_as_bucket_view` stores gradients in the buckets that are exchanged, which saves a copy of all gradients.
    `bucket_cap_mb` trades overlap with the backward pass (small buckets) against fewer messages (large buckets).
    `broadcast_buffers` is off. Instead, `StatisticsGuard` averages the statistics of batch normalisation before
    validation.
    """
    return DistributedDataParallelKwargs(
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        bucket_cap_mb=training.bucket_cap_mb,
        comm_hook=DDPCommunicationHookType(training.gradient_compression),
    )


def compile_parts(module: TrainingModule, training: TrainingConfig, device: torch.device) -> str:
    """Compile the network in place with torch.compile; on CUDA, also compile the losses.

    The names in state dicts do not change.

    Each region of the network, such as a block, is compiled alone. Equal blocks share compiled code, so compilation
    takes a fraction of the time. The module around network and losses is not compiled, because DDP installs hooks in
    this module. With `training.compile` set to `no`, nothing is compiled.

    Args:
        module: Network and losses.
        training: Options of the run.
        device: Device of the run.

    Returns:
        A note for the user if the device does not support the mode `training.compile`, else "".

    Raises:
        UserError: If another user can change the folder in which torch keeps compiled code.
    """
    mode = training.compile
    if mode == "no":
        return ""
    _check_compile_cache()
    from torch import _dynamo
    from torch._inductor import list_mode_options  # takes seconds

    _dynamo.config.recompile_limit = max(KINDS, _dynamo.config.recompile_limit)
    note = ""
    if mode == "reduce-overhead" and device.type != "cuda":
        mode, note = "default", "--training.compile reduce-overhead needs a GPU for CUDA graphs; using default"
    how = {"mode": mode} if device.type != "cuda" else {"options": {**list_mode_options(mode), **FEWER_PASSES}}
    for region in module.model.regions:
        region.compile(**how, dynamic=False)
    if device.type == "cuda":
        talk_outside_compiled_code()
        for head in module.loss.sharded_heads.values():
            # Its backward pass is written by hand and changes tensors in place. Dynamo would split it into nine graphs.
            setattr(head, "forward", torch.compiler.disable(head.forward))  # noqa: B010  (mypy refuses to assign it)
        module.loss.compile(mode=mode, dynamic=False)
    return note


def _check_compile_cache() -> None:
    """Check that the folder in which torch keeps compiled code belongs to this user.

    torch runs the code in this folder. By default, the folder has a predictable name in the temporary folder, so
    another user may have created it.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:  # chosen by the user, or set by torch after an earlier check
        return
    folder = Path(default_cache_dir())
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = folder.lstat()
    require(
        stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid() and not state.st_mode & stat.S_IWOTH,
        f"{folder}: other users can change compiled code in it; set TORCHINDUCTOR_CACHE_DIR to a folder of your own",
    )


def input_dtype(precision: str) -> torch.dtype:
    """Return the dtype of the network input for a precision. Autocast would convert the input to this dtype.

    Args:
        precision: `bf16`, `fp16` or `no`.
    """
    return HALF.get(precision, torch.float32)


def begin_step() -> None:
    """Mark the beginning of an optimizer step for CUDA graphs, which may then overwrite results of the previous step.

    Call this once per optimizer step and not once per micro-batch, because CUDA graphs could otherwise overwrite the
    accumulated gradients.
    """
    if "torch._inductor.cudagraph_trees" in sys.modules:  # without this check, the call imports the compiler
        torch.compiler.cudagraph_mark_step_begin()
