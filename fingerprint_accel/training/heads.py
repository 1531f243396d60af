"""Identity heads in training: those that processes share out are kept apart from DDP, clipped with the rest and saved
whole; those of a trained network start from the prints of each finger.
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

PRINTS_PER_FINGER = 2  # at most: a mean of two is near enough to start from
ROWS_AT_ONCE = 1 << 15  # sent to the process that saves: 64 MiB of 512 numbers each


def draw_classes(run: Run, position: int) -> None:
    """Before an update: chooses the classes it is about where heads sample them. `position`: of its prints."""
    if run.config.loss.class_sample_rate == 1:
        return
    samples, _ = run.order.take(position, run.samples_per_step)  # a function of the position: no rank needs to ask
    device = run.accelerator.device
    finger = torch.empty(len(samples), dtype=torch.int64, pin_memory=device.type == "cuda")  # the host does not wait
    finger.numpy()[:] = run.train.labels[samples]
    finger = finger.to(device, non_blocking=True)
    for head in run.bare.loss.sharded_heads.values():
        head.draw(finger, run.torch_optimizer)


def put_classes_back(run: Run) -> None:
    """After an update, whether it was skipped or not."""
    for head in run.bare.loss.sharded_heads.values():
        head.put_back(run.torch_optimizer)


def clip_gradients(run: Run) -> torch.Tensor:
    """Clips to `training.max_grad_norm`; returns the () norm of all gradients, slices of other processes included."""
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
    """A gradient that is not finite on one rank makes one so on every rank: a GradScaler, which looks at the gradients
    of its own process, then skips the update on all or on none."""
    gradients = [parameter.grad for parameter in slices if parameter.grad is not None]
    gradients[0].view(-1)[:1].add_(reduce(get_total_norm(gradients) * 0))


def whole_tensors(module: TrainingModule, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors, each whole in place of this process's slice, on rank 0; nothing on the others.

    All ranks call this, with the same names.

    Args:
        module: whose heads may be slices; FSDP's slices know what they are of.
        tensors: weights by name, and what the optimizer remembers of them by `optimizer.<name>.<entry>`.
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
    """(R, ...) on every rank -> (C, ...) of all classes in order, in rank 0's main memory; elsewhere the part."""
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
    """(N,) labels -> (M,) indices of the first `most` of each label, ascending."""
    order = np.argsort(labels, kind="stable")
    ranked = labels[order]
    starts = np.flatnonzero(np.diff(ranked, prepend=ranked[:1] - 1))
    rank = np.arange(len(ranked)) - np.repeat(starts, np.diff(starts, append=len(ranked)))
    return np.sort(order[rank < most])


@torch.no_grad()
def start_heads(run: Run) -> None:
    """Sets every class vector to the mean embedding of a few of the finger's prints, for a network that knows fingers.

    Random class vectors pull the embeddings about until they have been learned, which with many fingers takes longer
    than an epoch. As in proxy initialisation for metric learning (Movshovitz-Attias et al. 2017, arXiv 1703.07464,
    learn such proxies from random ones) and imprinted weights (Qi, Brown and Lowe 2018, arXiv 1712.07136). The same on
    every rank. Lengths stay what they were, on average.
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
