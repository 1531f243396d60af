"""Functions for training with identity heads: class sampling, gradient clipping, gathering and initialisation.

An identity head classifies the finger of a print. It has a class vector for each training finger. In a sharded head,
each process holds the class vectors of a slice of the fingers.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from fingerprint_accel.losses.exchange import is_distributed, rank_and_world_size, reduce
from fingerprint_accel.losses.sharded import ShardedHead, slice_of_classes
from fingerprint_accel.training.checkpoint import parameter_of
from fingerprint_accel.training.fsdp import gather_full, shard_like
from fingerprint_accel.training.module import TrainingModule
from fingerprint_accel.training.setup import Run
from fingerprint_accel.training.validation import embed

PRINTS_PER_FINGER = 2  # prints of a finger whose mean embedding initialises its class vector
ROWS_AT_ONCE = 1 << 15  # class vectors in one message to rank 0: 64 MiB if a vector has 512 elements


def draw_classes(run: Run, position: int) -> None:
    """Sample the classes (training fingers) that each sharded identity head uses in the next update.

    This does nothing if `loss.class_sample_rate` is 1, because an update then uses all classes.

    Args:
        run: The run.
        position: Position of the first print of the update in the stream of training prints.
    """
    if run.config.loss.class_sample_rate == 1:
        return
    samples, _ = run.order.take(position, run.samples_per_step)  # prints of all ranks, which each rank can compute
    device = run.accelerator.device
    pinned = device.type == "cuda"  # the host would wait for a copy from memory that is not pinned
    finger = torch.empty(len(samples), dtype=torch.int64, pin_memory=pinned)
    finger.numpy()[:] = run.train.labels[samples]
    finger = finger.to(device, non_blocking=True)
    for head in run.bare.loss.sharded_heads.values():
        head.draw(finger, run.torch_optimizer)


def put_classes_back(run: Run) -> None:
    """Copy the updated class vectors of the sampled classes back to the matrix of all class vectors of each head.

    Call this after each update, also if the update was skipped. It does nothing for heads that do not sample classes.
    """
    for head in run.bare.loss.sharded_heads.values():
        head.put_back(run.torch_optimizer)


def clip_gradients(run: Run) -> torch.Tensor:
    """Clip the norm of the gradients of all parameters together to `training.max_grad_norm`.

    The value 0 of this option means that gradients are not clipped.

    Returns:
        Scalar tensor with the norm of all gradients before clipping. The norm includes the gradients of class vectors
        on other processes.
    """
    accelerator, limit = run.accelerator, run.config.training.max_grad_norm or float("inf")
    heads = run.bare.loss.sharded_heads.values()
    if not heads:
        return gather_full(accelerator.clip_grad_norm_(run.parameters, limit))
    slices = [parameter for head in heads for parameter in head.trained() if parameter.grad is not None]
    known = {id(parameter) for parameter in slices}
    groups = run.torch_optimizer.param_groups
    trained = [parameter for group in groups for parameter in group["params"] if parameter.grad is not None]
    shared = [parameter for parameter in trained if id(parameter) not in known]
    if accelerator.scaler is not None:
        spread_what_is_not_finite(slices)
    accelerator.unscale_gradients()
    norm = (_norm(shared, run).square() + reduce(_norm(slices, run).square())).sqrt()
    for parameters in (shared, slices):
        clip_grads_with_norm_(parameters, limit, norm)
    return norm


def _norm(parameters: list[torch.nn.Parameter], run: Run) -> torch.Tensor:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return gather_full(get_total_norm(gradients)) if gradients else torch.zeros((), device=run.accelerator.device)


def spread_what_is_not_finite(slices: list[torch.nn.Parameter]) -> None:
    """If any rank has a non-finite gradient, make a gradient on every rank non-finite.

    A GradScaler checks only the gradients of its own process. Without this function, some ranks would skip an update
    and others would not.

    Args:
        slices: Parameters of sharded heads on this process. At least one must have a gradient.
    """
    gradients = [parameter.grad for parameter in slices if parameter.grad is not None]
    gradients[0].view(-1)[:1].add_(reduce(get_total_norm(gradients) * 0))


def whole_tensors(module: TrainingModule, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gather whole tensors for a checkpoint from the slices of all ranks.

    All ranks must call this function with tensors of the same names.

    Args:
        module: Network and losses, whose parameters may be sharded over ranks.
        tensors: Tensors of this rank, whole or slices. The key of a weight is its name; the key of optimizer state is
            `optimizer.<name>.<entry>`.

    Returns:
        The whole tensors by name on rank 0, and an empty dictionary on other ranks.
    """
    heads = module.sharded_parameters
    found = {}
    for key in sorted(tensors) if heads else tensors:
        tensor, head = tensors[key], heads.get(parameter_of(key))
        if head is not None and tensor.ndim > 0:
            tensor = _all_classes(tensor, head.classes)
        together = gather_full(tensor)
        if rank_and_world_size()[0] == 0:
            found[key] = together if together is tensor else together.cpu()
    return found


def _all_classes(part: torch.Tensor, classes: int) -> torch.Tensor:
    """Gather the slices of a tensor of a sharded identity head from all ranks, in CPU memory of rank 0.

    Args:
        part: (R, ...) tensor with a row for each of the R classes (training fingers) of this rank.
        classes: Number C of classes of all ranks together.

    Returns:
        (C, ...) tensor on rank 0. Other ranks, and a run with one process, return `part`.
    """
    if not is_distributed():
        return part
    rank, processes = rank_and_world_size()
    everything = torch.empty((classes if rank == 0 else 0, *part.shape[1:]), dtype=part.dtype)
    for source in range(processes):
        rows = slice_of_classes(classes, source, processes)
        for begin in range(rows.start, rows.stop, ROWS_AT_ONCE):
            end = min(begin + ROWS_AT_ONCE, rows.stop)
            mine = part[begin - rows.start : end - rows.start]
            if rank == 0:
                received = mine if source == 0 else torch.empty((end - begin, *part.shape[1:])).to(part)
                if source > 0:
                    dist.recv(received, source)
                everything[begin:end] = received
            elif rank == source:
                dist.send(mine.contiguous(), 0)
    return everything if rank == 0 else part


def first_of_each(labels: np.ndarray, most: int) -> np.ndarray:
    """Return the indices of the first `most` occurrences of each label, in ascending order.

    Args:
        labels: (N,) integers.
        most: Largest number of indices for each label. All indices of a label that occurs less often are returned.
    """
    order = np.argsort(labels, kind="stable")
    ranked = labels[order]
    starts = np.flatnonzero(np.diff(ranked, prepend=ranked[:1] - 1))
    rank = np.arange(len(ranked)) - np.repeat(starts, np.diff(starts, append=len(ranked)))
    return np.sort(order[rank < most])


@torch.no_grad()
def start_heads(run: Run) -> None:
    """Initialise each class vector of the identity heads with the mean embedding of a few prints of its finger.

    This is for runs that start from a trained network. Random class vectors would distort the trained embeddings until
    the vectors are learned. With many fingers, learning them takes longer than an epoch. The method is called weight
    imprinting (Qi, Brown and Lowe 2018, arXiv 1712.07136). The mean norm of the class vectors does not change. All
    ranks must call this function.
    """
    some = first_of_each(run.train.labels, PRINTS_PER_FINGER)
    how = run.accelerator, run.bare, run.preprocessor, run.train, run.config.training.batch_size
    embeddings, labels, _ = embed(*how, some, "starting heads")
    branches = embeddings.split(list(run.bare.model.branch_dims.values()), dim=1)
    for name, vectors in zip(run.bare.model.branch_dims, branches, strict=True):
        head = run.bare.loss.heads[name]
        weight, rows = head.weight, head.rows if isinstance(head, ShardedHead) else slice(0, run.train.classes)
        assert isinstance(weight, torch.Tensor)
        here = (labels >= rows.start) & (labels < rows.stop)
        sums = torch.zeros(len(weight), vectors.shape[1]).index_add_(0, labels[here] - rows.start, vectors[here])
        lengths = gather_full(weight).norm(dim=1).sum()
        length = (reduce(lengths) if isinstance(head, ShardedHead) else lengths) / run.train.classes
        weight.copy_(shard_like(F.normalize(sums, dim=1) * length.cpu(), weight))
