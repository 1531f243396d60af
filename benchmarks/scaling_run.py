"""Train a few steps in one process of a run, with computation replaced by pauses, and record what the steps do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from traffic import Traffic

from fingerprint_accel.config import Config, LossConfig, ModelConfig, PreprocessConfig, ReadingConfig, TrainingConfig
from fingerprint_accel.losses.deepprint import DeepPrintLoss
from fingerprint_accel.models.deepprint import DeepPrint
from fingerprint_accel.plan_network import flop_counter
from fingerprint_accel.plan_scaling import FORWARD
from fingerprint_accel.preprocess.minutia_map import MAP_SIZE
from fingerprint_accel.training import loop
from fingerprint_accel.training.module import TrainingModule
from fingerprint_accel.training.setup import Run, set_up

SIZE = 32  # side of the images in pixels, small, so that a step computes little
TWO = 2  # fingers of a head that hardly adds gradients
WARM = 4  # steps before the clock starts; in the second one, DDP puts gradients into new buckets


def configuration(data: Path, out: Path, sharded: bool, steps: int, batch_size: int = 2) -> Config:
    """Return the options of a run of a small network, of which the gradients fill several buckets."""
    return Config(
        data=str(data),
        out=str(out),
        reading=ReadingConfig(validation_fraction=0.0),
        model=ModelConfig(variant="TexMinu", trunk="compact", width=16, embedding_dim=128),
        loss=LossConfig(head="cosface", sharded=sharded),
        preprocess=PreprocessConfig(crop=128, size=SIZE),
        training=TrainingConfig(
            batch_size=batch_size,
            steps=steps,
            warmup_steps=1,
            precision="no",
            tracker="none",
            log_every=1,
            bucket_cap_mb=1,
        ),
    )


def _loss(config: Config, **options: Any) -> Config:
    return replace(config, loss=replace(config.loss, **options))


VARIATIONS: dict[str, Callable[[Config], Config]] = {
    "sharded, matryoshka": lambda config: _loss(config, matryoshka_dims=(8, 16)),
    "full, softmax, bf16": lambda config: replace(
        _loss(config, sharded=False, head="softmax"), training=replace(config.training, gradient_compression="bf16")
    ),
    "sharded": lambda config: config,
    "full, no centres": lambda config: _loss(config, sharded=False, center_weight=0.0),
}
"""Changes of `configuration` with other collectives."""


@dataclass
class Recorded:
    """What the steps of a process did.

    Attributes:
        seconds: Duration of each step after `WARM` steps, from one start to the next.
        collectives: Operations of the step before the last, and the bytes that this process passed; empty if they were
            not counted.
        latency: Seconds that a small message takes to a neighbour.
    """

    seconds: list[float]
    collectives: list[tuple[str, int]]
    latency: float

    @property
    def median(self) -> float:
        """Median duration of a step in seconds."""
        return statistics.median(self.seconds)


def train(config: Config, paused: float = 0.0, counted: bool = False) -> Recorded:
    """Train, and record the steps.

    Args:
        config: Configuration of the run.
        paused: Seconds of a step in which the network pauses, see `pause`.
        counted: Whether to record collectives. DDP then calls Python for each bucket.
    """
    run = set_up(config)
    pause(run.bare.model, paused)
    latency = hop(run)
    traffic: Traffic | None = None
    before: list[tuple[str, int]] = []
    if counted and run.accelerator.num_processes > 1:
        traffic = Traffic()
        if config.training.gradient_compression == "no":  # else Accelerate has registered a hook, which is recorded
            assert isinstance(run.module, nn.parallel.DistributedDataParallel)
            run.module.register_comm_hook(None, traffic.hook)
    starts: list[float] = []
    one_step = loop.optimizer_step

    def noted(*arguments: Any) -> torch.Tensor:
        starts.append(time.perf_counter())
        if traffic is not None:
            before[:] = traffic.collectives
            traffic.collectives.clear()
        return one_step(*arguments)

    loop.optimizer_step = noted  # type: ignore[assignment]
    try:
        loop.train(run)
    finally:
        loop.optimizer_step = one_step
        if traffic is not None:
            traffic.stop()
    return Recorded([end - start for start, end in pairwise(starts[WARM:])], before, latency)


def pause(network: nn.Module, seconds: float) -> None:
    """Let a network pause in each step, as if its layers computed longer.

    The pauses take no processor time, so that many processes can share a core. Each layer pauses in proportion to its
    operations, in the forward pass before it computes, and in the backward pass before its gradients are computed.

    Args:
        network: The network.
        seconds: Duration of all pauses of a step.
    """
    before: dict[nn.Module, int] = {}
    operations: dict[nn.Module, int] = {}

    def enter(layer: nn.Module, _: Any) -> None:
        before[layer] = counter.get_total_flops()

    def leave(layer: nn.Module, _: Any, output: Any) -> None:
        operations[layer] = counter.get_total_flops() - before[layer]

    layers = [layer for layer in network.modules() if any(True for _ in layer.parameters(recurse=False))]
    hooks = [layer.register_forward_pre_hook(enter) for layer in layers]
    hooks += [layer.register_forward_hook(leave) for layer in layers]
    with flop_counter() as counter, torch.no_grad():
        network(torch.zeros(2, 1, SIZE, SIZE))
    for hook in hooks:
        hook.remove()
    for layer, number in operations.items():
        if number:
            _pause(layer, seconds * number / counter.get_total_flops())


def _pause(layer: nn.Module, seconds: float) -> None:
    def after(_: nn.Module, __: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: time.sleep(seconds * (1 - FORWARD)))

    layer.register_forward_pre_hook(lambda *_: time.sleep(seconds * FORWARD))
    layer.register_forward_hook(after)


def hop(run: Run) -> float:
    """Return the seconds that a small message takes to a neighbour, from reductions of four bytes."""
    processes = run.accelerator.num_processes
    if processes == 1:
        return 0.0
    tensor, seconds = torch.zeros(1), []
    for _ in range(50):
        started = time.perf_counter()
        dist.all_reduce(tensor)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds) / (2 * (processes - 1))


def ready_buckets(config: Config, size: int, batch_size: int = 2, rounds: int = 5) -> dict[str, Any]:
    """Measure when DDP's buckets of gradients are ready, on one process.

    Args:
        config: Configuration of the run. Only network, losses and buckets matter.
        size: Side of the images in pixels.
        batch_size: Prints of a batch.
        rounds: Measured steps, after two that are not measured.

    Returns:
        `buckets`: bytes of each bucket, and the median share of the backward pass after which the bucket is ready.
        `forward`: median share of the forward pass in both passes.
    """
    dist.init_process_group("gloo")
    model = DeepPrint(config.model)
    module = TrainingModule(model, DeepPrintLoss(config.loss, model, TWO)).train()
    parallel = nn.parallel.DistributedDataParallel(
        module, gradient_as_bucket_view=True, broadcast_buffers=False, bucket_cap_mb=config.training.bucket_cap_mb
    )
    seen: list[tuple[int, float]] = []

    def hook(state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        seen.append((bucket.buffer().nbytes, time.perf_counter()))
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    hook.__annotations__ = Traffic.hook.__annotations__  # DDP checks them, and those of this module are texts
    parallel.register_comm_hook(None, hook)
    image, finger = torch.randn(batch_size, 1, size, size), torch.zeros(batch_size, dtype=torch.int64)
    maps, known = torch.rand(batch_size, 6, MAP_SIZE, MAP_SIZE), torch.ones(batch_size, dtype=torch.bool)
    shares, forward = [], []
    for _ in range(rounds + 2):
        seen.clear()
        started = time.perf_counter()
        loss = parallel(image, finger, maps, known)[0]
        turned = time.perf_counter()
        loss.backward()
        ended = time.perf_counter()
        module.zero_grad()
        shares.append([(moment - turned) / (ended - turned) for _, moment in seen])
        forward.append((turned - started) / (ended - started))
    medians = [statistics.median(column) for column in zip(*shares[2:], strict=True)]
    sizes = [nbytes for nbytes, _ in seen]
    return {"buckets": list(zip(sizes, medians, strict=True)), "forward": statistics.median(forward[2:])}
