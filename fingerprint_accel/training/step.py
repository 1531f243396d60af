"""Run one optimizer step: forward and backward passes of all micro-batches, clipping, and the updates."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fingerprint_accel.data.batch import Batch
from fingerprint_accel.training.heads import clip_gradients, draw_classes, put_classes_back
from fingerprint_accel.training.meters import Meters
from fingerprint_accel.training.saving import Progress, seed_step
from fingerprint_accel.training.schedule import Schedule
from fingerprint_accel.training.setup import Run
from fingerprint_accel.training.speed import begin_step, input_dtype


def optimizer_step(
    run: Run, batches: Iterator[Batch], now: Schedule, meters: Meters, progress: Progress
) -> torch.Tensor:
    """Run one optimizer step: compute gradients on its micro-batches, and update weights and class centres.

    Args:
        run: The run.
        batches: Iterator over micro-batches.
        now: Learning rate, augmentation strength and margin of this step.
        meters: Object to which the losses and the gradient norm are added.
        progress: Progress of the run before this step. It is not changed.

    Returns:
        () bool on the device, True if the update was skipped because the loss or a gradient was not finite.
    """
    accelerator, training = run.accelerator, run.config.training
    optimizer = run.torch_optimizer
    begin_step()
    seed_step(training.seed, progress.step, accelerator.process_index)
    for group in optimizer.param_groups:
        group["lr"] = now.learning_rate * group["rate"]
    losses, fingers, branches = [], [], []
    draw_classes(run, progress.position)
    for _ in range(training.gradient_accumulation_steps):
        batch = next(batches)
        with accelerator.accumulate(run.module):
            loss, parts, embeddings = run.module(*prepared(run, batch, now))
            accelerator.backward(loss)
            losses.append({"loss": loss.detach(), **parts})
            fingers.append(batch.finger)
            branches.append(embeddings)
            if accelerator.sync_gradients:
                norm = clip_gradients(run)
                bad = ~torch.isfinite(norm)
                # A fused optimizer skips its update on the device if `found_inf` is 1. A GradScaler sets this value.
                # Without a scaler, it is set here. A test of the norm on the host would wait for the device in each
                # step.
                if accelerator.scaler is None:
                    optimizer.found_inf, optimizer.grad_scale = bad.float(), None  # type: ignore[attr-defined]
                run.optimizer.step()
                run.optimizer.zero_grad()
    put_classes_back(run)
    if run.config.loss.center_weight > 0:
        prints = {name: torch.cat([part[name].float() for part in branches]) for name in branches[0]}
        run.bare.loss.update_centers(prints, torch.cat(fingers), skip=bad)
    mean = {name: torch.stack([part[name] for part in losses]).mean() for name in losses[0]}
    meters.add(mean, norm, bad, run.samples_per_step)
    return bad


def prepared(run: Run, batch: Batch, now: Schedule) -> tuple[torch.Tensor | None, ...]:
    """Preprocess and augment a micro-batch, and return it as the arguments of `TrainingModule.forward`.

    Args:
        run: The run.
        batch: The micro-batch, on the device.
        now: Augmentation strength and margin of this step.
    """
    needs_maps, dtype = run.bare.model.config.needs_minutia_maps, input_dtype(run.accelerator.mixed_precision)
    image, maps = run.preprocessor(batch, True, needs_maps, now.augmentation, dtype)
    truth = run.preprocessor.truth(batch, True, now.augmentation) if run.bare.learns_truth else (None, None)
    margin = torch.full((), now.margin, device=image.device)  # a float would be a constant in compiled losses
    return image, batch.finger, maps, batch.minutia_count > 0, margin, *truth
