"""Finds the micro-batch that fits into memory before training begins, on all ranks together.

A rank that runs out of memory inside a step leaves the others waiting for its gradients. So the step is rehearsed
first, on each rank for itself: preparation, network, losses, backward, with room kept for what the optimizer will
remember. Where one rank has no room, all take smaller micro-batches and more of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fingerprint_accel.config import Config
from fingerprint_accel.errors import UserError
from fingerprint_accel.training.schedule import schedule_at
from fingerprint_accel.training.setup import Run
from fingerprint_accel.training.speed import begin_step
from fingerprint_accel.training.step import prepared


def smaller_batch(config: Config) -> tuple[int, int] | None:
    """(batch size, accumulation) with the same product, of at most half the batch size, or None where there is none."""
    training, together = config.training, config.reading.samples_per_class * config.reading.siblings
    product = training.batch_size * training.gradient_accumulation_steps
    for size in range(training.batch_size // 2, 0, -1):
        if product % size == 0 and size % together == 0:
            return size, product // size
    return None


def auto_micro_batch_size(run: Run, step: int, position: int) -> None:
    """Lowers the device batch until every rank has room for it; the prints of each step stay what they were. Not with
    FSDP, where no rank can rehearse alone.

    Args:
        run: whose configuration is changed where need be.
        step: optimizer steps done.
        position: in the stream of prints.

    Raises:
        UserError: the smallest micro-batch is too large.
    """
    wanted = run.config.training.auto_micro_batch_size
    if wanted == "no" or (wanted == "auto" and (run.accelerator.device.type == "cpu" or run.accelerator.is_fsdp2)):
        return
    while True:
        short = torch.tensor(float(not _has_room(run, step, position)), device=run.accelerator.device)
        ranks = round(run.accelerator.reduce(short, "sum").item())
        if ranks == 0:
            return
        before, smaller = run.config.training, smaller_batch(run.config)
        if smaller is None:
            raise UserError(
                f"out of memory with micro-batches of {before.batch_size} prints, and none is smaller; choose a "
                "smaller network, --model.gradient-checkpointing, or a smaller --preprocess.size"
            )
        training = dataclasses.replace(before, batch_size=smaller[0], gradient_accumulation_steps=smaller[1])
        run.config = dataclasses.replace(run.config, training=training)
        run.accelerator.gradient_accumulation_steps = training.gradient_accumulation_steps
        run.accelerator.print(
            f"out of memory on {ranks} of {run.accelerator.num_processes} processes with batch {before.batch_size} x "
            f"{before.gradient_accumulation_steps}: all go on with {smaller[0]} x {smaller[1]}, the same "
            f"{run.samples_per_step} prints per step in the same order"
        )


def _has_room(run: Run, step: int, position: int) -> bool:
    """Rehearses one micro-batch on this rank; leaves no trace in weights, gradients and statistics."""
    buffers = [(buffer, buffer.clone()) for buffer in run.bare.buffers()]
    try:
        _rehearse(run, step, position)
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        for parameter in run.bare.parameters():
            parameter.grad = None
        for buffer, before in buffers:
            buffer.copy_(before)
        if run.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()


def _rehearse(run: Run, step: int, position: int) -> None:
    accelerator, size, bare = run.accelerator, run.config.training.batch_size, run.bare
    now = schedule_at(step, run.steps, run.config)
    samples = run.order.take(position + accelerator.process_index * size, size)
    batch = run.train.read(*samples, truth=bare.learns_truth).to(accelerator.device)
    bare.train()
    begin_step()
    states = 0 if run.optimizer.state else {"adamw": 2, "sgd": 1}[run.config.training.optimizer]  # numbers per weight
    kept = [torch.empty_like(part) for part in bare.parameters() for _ in range(states)]
    inputs, loss_config = prepared(run, batch, now), run.config.loss
    # losses of a rank that need those of the others cannot be rehearsed alone
    waits = accelerator.num_processes > 1 and (loss_config.contrastive_weight > 0 or loss_config.sharded)
    with accelerator.autocast():
        if waits or loss_config.class_sample_rate < 1:  # nor are classes drawn yet
            output = bare.model(inputs[0])
            more = (output.minutia_map, output.contact, *(output.pose or ()))
            parts = [*output.branches.values(), *(part for part in more if part is not None)]
            loss = sum((part.float().mean() for part in parts), torch.zeros((), device=accelerator.device))
        else:
            loss = bare(*inputs)[0]
    loss.backward()
    del kept


@contextmanager
def explained(run: Run, step: int) -> Iterator[None]:
    """Says what to do where memory runs out in the middle of training; the `PreemptionMonitor` tells other ranks."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        smaller = smaller_batch(run.config)
        remedy = "a smaller network or --model.gradient-checkpointing"
        if smaller is not None:
            remedy = (
                f"--resume auto --training.batch-size {smaller[0]} --training.gradient-accumulation-steps {smaller[1]}"
            )
        raise UserError(
            f"out of memory in step {step + 1} with micro-batches of {run.config.training.batch_size} prints; "
            f"go on with {remedy}"
        ) from error
