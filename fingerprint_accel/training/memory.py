"""Find a micro-batch size that fits into the memory of all ranks, before training begins.

If a rank ran out of memory inside a step, the other ranks would wait for the gradients of this rank. Each rank
therefore rehearses a micro-batch before the first step. In a rehearsal, the rank alone runs the preprocessing, the
network, the losses and the backward pass, while memory is reserved for the optimizer state. If the micro-batch does not
fit on one rank, all ranks use smaller micro-batches, and more micro-batches per step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fingerprint_accel.config import Config
from fingerprint_accel.data.loader import PREFETCH, Subset
from fingerprint_accel.errors import UserError
from fingerprint_accel.training.schedule import schedule_at
from fingerprint_accel.training.setup import Run
from fingerprint_accel.training.speed import begin_step
from fingerprint_accel.training.step import prepared

# Errors other than torch.OutOfMemoryError that are raised if the memory of a GPU is full. With cudnn.benchmark, torch
# catches the error of each workspace that does not fit, and reports that no engine is left.
FULL_MEMORY = (
    "CUDA error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute this computation",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of torch, cuBLAS or cuDNN means that the memory of the device is full."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in FULL_MEMORY)


def smaller_batch(config: Config) -> tuple[int, int] | None:
    """Return a smaller micro-batch size, and a larger number of micro-batches, for the same number of prints per step.

    The new size is at most half of the configured size. It is a multiple of the number of prints that must be in the
    same micro-batch (`reading.samples_per_class` x `reading.siblings`).

    Returns:
        (`training.batch_size`, `training.gradient_accumulation_steps`), or None if there is no smaller size.
    """
    training, together = config.training, config.reading.samples_per_class * config.reading.siblings
    product = training.batch_size * training.gradient_accumulation_steps
    for size in range(training.batch_size // 2, 0, -1):
        if product % size == 0 and size % together == 0:
            return size, product // size
    return None


def auto_micro_batch_size(run: Run, step: int, position: int) -> None:
    """Reduce the micro-batch size of a run until a micro-batch fits into the memory of every rank.

    The number of micro-batches in an optimizer step grows, so that the prints of the step stay the same. The option
    `training.auto_micro_batch_size` can disable the function. With the default of this option, the function does
    nothing on CPUs and with FSDP. With FSDP, a rank cannot compute a micro-batch alone.

    Args:
        run: The run. The sizes in its configuration are changed if necessary.
        step: Number of optimizer steps done.
        position: Number of prints that the run has already read from the stream of training prints.

    Raises:
        UserError: If the smallest possible micro-batch does not fit.
    """
    wanted = run.config.training.auto_micro_batch_size
    if wanted == "no" or (wanted == "auto" and (run.accelerator.device.type == "cpu" or run.accelerator.is_fsdp2)):
        return
    while True:
        reason = _shortage(run, step, position)
        short = torch.tensor(float(reason is not None), device=run.accelerator.device)
        ranks = round(run.accelerator.reduce(short, "sum").item())
        if ranks == 0:
            return
        before, smaller = run.config.training, smaller_batch(run.config)
        if smaller is None:
            raise UserError(
                f"out of memory with micro-batches of {before.batch_size} prints, and there is no smaller size; use a "
                f"smaller network, --model.gradient-checkpointing, or a smaller --preprocess.size{reason or ''}"
            )
        training = dataclasses.replace(before, batch_size=smaller[0], gradient_accumulation_steps=smaller[1])
        run.config = dataclasses.replace(run.config, training=training)
        run.accelerator.gradient_accumulation_steps = training.gradient_accumulation_steps
        run.accelerator.print(
            f"out of memory on {ranks} of {run.accelerator.num_processes} processes with batch {before.batch_size} x "
            f"{before.gradient_accumulation_steps}: all continue with {smaller[0]} x {smaller[1]}, the same "
            f"{run.samples_per_step} prints per step in the same order"
        )


def _shortage(run: Run, step: int, position: int) -> str | None:
    """Return None if a micro-batch of the configured size fits into the memory of this rank.

    Otherwise the function returns the message of the error, in parentheses, or "" for torch.OutOfMemoryError.

    Args:
        run: The run.
        step: Number of optimizer steps done.
        position: Number of prints that the run has already read from the stream of training prints.
    """
    with rehearsal(run):
        try:
            rehearse(run, step, position, run.config.training.batch_size)
            return None
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return "" if isinstance(error, torch.OutOfMemoryError) else f" ({str(error).splitlines()[0]})"


@contextmanager
def rehearsal(run: Run) -> Iterator[None]:
    """Context manager for calls of `rehearse`, which must not change the run.

    At the end of the `with` block, it restores the buffers of the network and deletes the gradients.
    """
    buffers = [(buffer, buffer.clone()) for buffer in run.bare.buffers()]
    try:
        yield
    finally:
        for parameter in run.bare.parameters():
            parameter.grad = None
        for buffer, before in buffers:
            buffer.copy_(before)
        if run.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()


def rehearse(run: Run, step: int, position: int, size: int) -> None:
    """Run the forward and backward pass of a micro-batch on this rank alone, without an update of the weights.

    Meanwhile, memory for the optimizer state, and for the batches that the loader reads ahead, is reserved. Call this
    function only within `rehearsal`.

    Args:
        run: The run.
        step: Number of optimizer steps done.
        position: Number of prints that the run has already read from the stream of training prints.
        size: Number of prints in the micro-batch.

    Raises:
        RuntimeError: If the micro-batch does not fit into memory; see `is_out_of_memory`.
    """
    accelerator, bare = run.accelerator, run.bare
    now = schedule_at(step, run.steps, run.config)
    samples = run.order.take(position + accelerator.process_index * size, size)
    batch = run.train.read(*samples, truth=bare.learns_truth).to(accelerator.device)
    bare.train()
    begin_step()
    # The optimizer allocates its state at the first update: two values per weight for AdamW, one for SGD.
    states = 0 if run.optimizer.state else {"adamw": 2, "sgd": 1}[run.config.training.optimizer]
    reserved = [torch.empty_like(part) for part in bare.parameters() for _ in range(states)]
    if accelerator.device.type == "cuda" and isinstance(run.train, Subset):
        reserved += [torch.empty_like(batch.image) for _ in range(PREFETCH + 1)]
    inputs, loss_config = prepared(run, batch, now), run.config.loss
    # Losses that exchange tensors between ranks would wait for the other ranks for ever.
    waits = accelerator.num_processes > 1 and (loss_config.contrastive_weight > 0 or loss_config.sharded)
    with accelerator.autocast():
        if waits or loss_config.class_sample_rate < 1:  # class vectors are not sampled before the first step
            output = bare.model(inputs[0])
            more = (output.minutia_map, output.contact, *(output.pose or ()))
            parts = [*output.branches.values(), *(part for part in more if part is not None)]
            loss = sum((part.float().mean() for part in parts), torch.zeros((), device=accelerator.device))
        else:
            loss = bare(*inputs)[0]
    loss.backward()
    del reserved


@contextmanager
def explained(run: Run, step: int) -> Iterator[None]:
    """Context manager that turns an out-of-memory error in a step into a `UserError` with a remedy.

    Args:
        run: The run.
        step: Number of optimizer steps done before this step.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        smaller = smaller_batch(run.config)
        remedy = "a smaller network or --model.gradient-checkpointing"
        if smaller is not None:
            remedy = (
                f"--resume auto --training.batch-size {smaller[0]} --training.gradient-accumulation-steps {smaller[1]}"
            )
        raise UserError(
            f"out of memory in step {step + 1} with micro-batches of {run.config.training.batch_size} prints; "
            f"continue with {remedy}"
        ) from error
