"""Save the state of a run as a checkpoint."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fingerprint_accel.durable import write_json
from fingerprint_accel.models.checkpoint_folder import MOST_STEPS, name_of_step
from fingerprint_accel.training.checkpoint import Checkpoint, optimizer_tensors, prune, save_checkpoint
from fingerprint_accel.training.heads import whole_tensors
from fingerprint_accel.training.setup import Run
from fingerprint_accel.untrusted import Fields

STATISTICS = "running_statistics_of_ranks"  # name of a tensor in a checkpoint
# Each checkpoint contains this text, as documentation.
RNG_RULE = (
    "before optimizer step s, rank r seeds torch with a hash of (seed, s, r); order and augmentation are hashes too"
)


@dataclass
class Progress:
    """Counters and results that change during training. A checkpoint contains these values and tensors.

    Attributes:
        step: Number of optimizer steps done.
        position: Number of prints read from the stream of training prints, over all processes.
        best_eer: Lowest validation EER so far, or None before the first validation. If only the alignment network is
            trained, it is the lowest alignment error in mm.
        best_step: Step of the best validation.
        validations_without_gain: Number of validations since the best one, for early stopping.
        skipped: Number of updates that were skipped because a loss or gradient was not finite.
        meters: Sums of the measurements since the last record of `metrics.jsonl`, see `Meters.state`.
    """

    step: int = 0
    position: int = 0
    best_eer: float | None = None
    best_step: int = 0
    validations_without_gain: int = 0
    skipped: int = 0
    meters: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, fields: Fields) -> Progress:
        """Read the progress of a run from the description of a checkpoint.

        Raises:
            UserError: If a value is missing or out of range.
        """
        meters = fields.part("meters")
        updates, stored = meters.integer("updates", 0, MOST_STEPS, default=0), meters.part("sums")
        sums = {name: stored.numbers(name) for name in stored.values}
        has_best = fields.values.get("best_eer") is not None
        counts = {
            name: fields.integer(name, 0, MOST_STEPS) for name in ("step", "best_step", "validations_without_gain")
        }
        return cls(
            **counts,
            position=fields.integer("position", 0, 10**6 * MOST_STEPS),
            best_eer=fields.number("best_eer", 0) if has_best else None,
            skipped=fields.integer("skipped", 0, MOST_STEPS, default=0),
            meters={"updates": updates, "sums": sums} if updates else {},
        )


def save(run: Run, progress: Progress, best: bool = False, statistics: torch.Tensor | None = None) -> None:
    """Save the state of a run as a checkpoint, and delete old checkpoints.

    All ranks must call this, because they contribute their slices of sharded tensors. Rank 0 writes the files.

    Args:
        run: The run.
        progress: Counters and results of the run.
        best: Whether this checkpoint is the best one so far. The name of the checkpoint is then written to `best.json`.
        statistics: (R, K) running statistics of batch normalisation of each rank, if the checkpoint is saved at a step
            at which an undisturbed run saves none. The weights of the network contain their mean. A resumed run
            continues from the values of each rank, and is bit-identical to the undisturbed run.
    """
    scaler = run.accelerator.scaler
    tensors = {f"loss.{name}": tensor for name, tensor in run.bare.loss.state_dict().items()}
    tensors |= optimizer_tensors(run.torch_optimizer, run.parameter_names)
    tensors = whole_tensors(run.bare, tensors)
    if statistics is not None:
        tensors[STATISTICS] = statistics
    model = whole_tensors(run.bare, run.bare.model.state_dict())
    ema = whole_tensors(run.bare, run.ema.module.state_dict()) if run.ema is not None else None
    if not run.accelerator.is_main_process:
        return
    state = {
        **dataclasses.asdict(progress),
        **stream_of(run),
        "rng": RNG_RULE,
        "gradient_scaler": scaler.state_dict() if scaler is not None else None,
        "processes": run.accelerator.num_processes,
    }
    name = save_checkpoint(run.folder, Checkpoint(model, tensors, state, ema))
    if best:
        name_best(run.folder, name, progress)
    prune(run.folder, run.config.training.save_total_limit, name_of_step(progress.best_step))


def stream_of(run: Run) -> dict[str, Any]:
    """Return the values (data, seed, options) that determine which prints a run reads, and in which order.

    A run can resume from a checkpoint only if all these values are the same in the checkpoint.
    """
    return {
        "fingers": run.train.classes,
        "prints": len(run.train),
        **dataclasses.asdict(run.train.info),
        "seed": run.config.training.seed,
        "order": run.order.rule,
        "data": run.train.identity,
    }


def name_best(run: Path, name: str, progress: Progress) -> None:
    """Write the name of the best checkpoint to `best.json`."""
    write_json(run / "best.json", {"checkpoint": name, "step": progress.best_step, "eer": progress.best_eer})


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed the random number generator of torch, which dropout uses, for one optimizer step of one rank.

    Each step has a seed of its own, so that checkpoints need not contain the state of a random number generator.
    """
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % 2**63
    torch.manual_seed(mixed)
