"""Gradient scaling, which fp16 needs, with everything between the scaler and the optimizer."""

import dataclasses

import torch
from accelerate.optimizer import patch_optimizer_step

from fingerprint_accel.training.meters import Meters
from fingerprint_accel.training.saving import Progress
from fingerprint_accel.training.schedule import schedule_at
from fingerprint_accel.training.setup import set_up
from fingerprint_accel.training.step import optimizer_step


def trained(config, scale):
    """Parameters after three steps, of which the second has an infinite gradient; which were skipped; the last scale.

    Args:
        config: Configuration of the run, in float32.
        scale: First factor of a gradient scaler, which is used as Accelerate does for fp16; 0 for none.
    """
    run = set_up(config)
    run.module.train()
    scaler = torch.amp.GradScaler(run.accelerator.device.type, init_scale=scale, enabled=scale > 0)
    if scale:
        run.accelerator.scaler = run.optimizer.scaler = scaler
        run.accelerator.unscale_gradients = lambda: scaler.unscale_(run.torch_optimizer)
        run.optimizer._accelerate_step_called = False
        run.optimizer._optimizer_original_step_method = run.torch_optimizer.step
        run.optimizer._optimizer_patched_step_method = patch_optimizer_step(run.optimizer, run.torch_optimizer.step)
    skipped = []
    with run.train.loader(run.order, config.training.batch_size) as loader:
        batches = iter(loader)
        for step in range(3):
            spoil = float("inf") if step == 1 else 1.0
            hook = run.parameters[0].register_hook(lambda gradient, spoil=spoil: gradient * spoil)
            meters = Meters(run.accelerator.device)
            skipped.append(bool(optimizer_step(run, batches, schedule_at(step, 3, config), meters, Progress(step))))
            hook.remove()
    return [parameter.detach().cpu() for parameter in run.parameters], skipped, scaler.get_scale()


def test_gradient_scaling_changes_only_the_scale(tiny):
    """With clipping, accumulation and sampled classes, an update without overflow is bit for bit that of float32."""
    config = dataclasses.replace(
        tiny,
        loss=dataclasses.replace(tiny.loss, sharded=True, class_sample_rate=0.5),
        training=dataclasses.replace(tiny.training, precision="no", gradient_accumulation_steps=2, max_grad_norm=1.0),
    )
    (plain, skipped, _), (scaled, as_skipped, scale) = trained(config, 0.0), trained(config, 1024.0)
    assert skipped == as_skipped == [False, True, False]
    exact = 0 if not torch.cuda.is_available() else 1e-4  # sums on a GPU depend on the order of its threads
    for ours, theirs in zip(scaled, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=exact, atol=exact)
    assert scale == 512.0
