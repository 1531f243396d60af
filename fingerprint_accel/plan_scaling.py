"""Model the communication of a training step on several GPUs: which collectives run, how long they take, and how much
of this time the backward pass hides.

A collective is an operation of all processes together, such as the sum of a tensor over processes (all-reduce).
`benchmarks/scaling.py` compares this model with counted collectives and measured steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from fingerprint_accel.config import Config
from fingerprint_accel.plan_devices import Cluster
from fingerprint_accel.plan_network import Counted, Gradient

FORWARD = 1 / 3  # share of the forward pass in the operations of a step; the backward pass has twice as many


@dataclass(frozen=True)
class Collective:
    """A collective operation of a training step.

    Attributes:
        kind: Operation, as in `torch.distributed`.
        size: Bytes of the tensor that each process passes.
        purpose: What is exchanged.
        ready: Share of the backward pass after which the operation can start, or None if all processes wait for it.
        every: The operation runs once in this number of steps.
    """

    kind: Literal["all_reduce", "all_gather"]
    size: int
    purpose: Literal["gradients", "identity heads", "gradient norm", "centres", "losses"]
    ready: float | None = None
    every: int = 1


def sent(collective: Collective, cluster: Cluster) -> float:
    """Return the bytes that each process sends in a collective, by the ring algorithm."""
    rounds = 2 / cluster.processes if collective.kind == "all_reduce" else 1
    return rounds * (cluster.processes - 1) * collective.size


def duration(collective: Collective, cluster: Cluster) -> float:
    """Return the duration of a collective.

    The ring passes through each machine once. Latencies are counted as in `ncclTopoTuneModel` of NCCL.
    """
    if cluster.processes == 1:
        return 0.0
    rounds = 2 if collective.kind == "all_reduce" else 1
    between = rounds * (cluster.machines - 1)  # messages in a row over the network
    within = rounds * (cluster.processes - 1) - between
    latency = cluster.launch + between * cluster.network.latency + within * cluster.link.latency
    return latency + sent(collective, cluster) / min(link.bandwidth for link in cluster.links)


def buckets(gradients: Iterable[Gradient], config: Config) -> list[Collective]:
    """Return the reductions of gradients, which DDP collects in buckets.

    DDP fills the buckets in the order in which gradients are ready. A bucket that has reached its capacity is reduced
    while the backward pass continues. Since `training.bucket_cap_mb` is set, the first bucket is not smaller than the
    others.

    Args:
        gradients: Gradients that DDP averages, in the order in which they are ready.
        config: Configuration of the run.
    """
    capacity, width = config.training.bucket_cap_mb * 2**20, 4 if config.training.gradient_compression == "no" else 2
    found, filled, ready = [], 0, 0.0
    for gradient in gradients:
        filled, ready = filled + gradient.size, gradient.ready
        if 4 * filled >= capacity:  # before compression
            found.append(Collective("all_reduce", width * filled, "gradients", ready))
            filled = 0
    return found + [Collective("all_reduce", width * filled, "gradients", ready)] * (filled > 0)


def collectives(counted: Counted, config: Config, fingers: int, processes: int) -> list[Collective]:
    """Return the collectives of a step of DDP with one micro-batch, in the order in which they run.

    There is no synchronised batch normalisation. Validation and checkpoints are not included.

    Args:
        counted: Size of the network, see `plan_network.count`.
        config: Configuration of the run.
        fingers: Number of training fingers.
        processes: Number of processes.
    """
    if processes == 1:
        return []
    loss, training, dims = config.loss, config.training, counted.branch_dims
    prints, parts = training.batch_size, 1 + len(loss.matryoshka_dims)
    found: list[Collective] = []
    heads = []
    if loss.sharded:
        everyone = prints * processes
        for dim in dims.values():
            width = dim + sum(loss.matryoshka_dims)
            found += [
                Collective("all_gather", 4 * prints * width, "identity heads"),
                Collective("all_gather", 8 * prints, "identity heads"),  # fingers
                Collective("all_reduce", 4 * parts * everyone, "identity heads"),  # largest logits
                Collective("all_reduce", 3 * 4 * parts * everyone, "identity heads"),  # sums of exponentials
            ]
            heads.append(Collective("all_reduce", 4 * everyone * width, "identity heads"))  # gradients of embeddings
        found += reversed(heads)
        gradients = counted.gradients
    else:
        biases = [1] if loss.head == "softmax" else []
        vectors = [Gradient(fingers * each, 0.0) for dim in reversed(dims.values()) for each in (dim, *biases)]
        gradients = (*vectors, *counted.gradients)
    found += buckets(gradients, config)
    if loss.sharded:
        found.append(Collective("all_reduce", 4, "gradient norm"))
    if loss.center_weight > 0:
        found.append(Collective("all_gather", 8 * prints, "centres"))  # fingers
        found += [Collective("all_gather", 4 * prints * dim, "centres") for dim in dims.values()]
    return [*found, Collective("all_reduce", 4 * _losses(config, len(dims)), "losses", every=training.log_every)]


def _losses(config: Config, branches: int) -> int:
    """Return the number of values that are averaged over processes for a record in `metrics.jsonl`."""
    loss, model = config.loss, config.model
    terms = branches * (1 + (loss.center_weight > 0) + (loss.contrastive_weight > 0)) + model.needs_minutia_maps
    terms += (model.cells > 0) + (model.variant.startswith("Loc") and loss.pose_weight > 0)
    return int(terms) + 3  # the total loss, the gradient norm, and the number of skipped updates


@dataclass(frozen=True)
class Step:
    """Projected duration of a training step, in seconds.

    Attributes:
        compute: Computation of a process.
        communication: All collectives, as if nothing else ran.
        waiting: The part of `communication` that the backward pass does not hide.
    """

    compute: float
    communication: float
    waiting: float

    @property
    def seconds(self) -> float:
        """Duration of the step."""
        return self.compute + self.waiting

    @property
    def efficiency(self) -> float:
        """Speed of a process as a share of its speed without communication."""
        return self.compute / self.seconds


def step(compute: float, operations: list[Collective], cluster: Cluster) -> Step:
    """Project the duration of a training step.

    Reductions of gradients run one after the other beside the backward pass, and do not slow it down. All processes
    compute equally fast.

    Args:
        compute: Seconds of computation of a process. The forward pass takes `FORWARD` of them.
        operations: Collectives of the step, see `collectives`.
        cluster: Devices and connections.
    """
    backward = compute * (1 - FORWARD)
    blocking = ended = overlapped = 0.0
    for operation in operations:
        seconds = duration(operation, cluster) / operation.every
        if operation.ready is None:
            blocking += seconds
        else:
            ended = max(ended, operation.ready * backward) + seconds
            overlapped += seconds
    return Step(compute, blocking + overlapped, blocking + max(0.0, ended - backward))
