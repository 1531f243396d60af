"""Advise the user on how to make training faster, from measurements of the steps and of the reading thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fingerprint_accel.synthesis.source import SyntheticPrints
from fingerprint_accel.training.setup import Run

WAITS_TOO_LONG = 0.05  # advice is given if training waits for data for more than this share of the time
IDLE_GPU = 0.9  # advice is given if the GPU utilisation is lower than this
BUSY_READER = 0.5  # the reading thread is the bottleneck if it is busy for more than this share of the time


@dataclass(frozen=True)
class Situation:
    """Properties of a run that `advice` depends on.

    With these properties, the advice names no option that is already set or that does not work in this run.

    Attributes:
        source: "shards" for a dataset folder, "synthetic" for prints that are rendered during training.
        lz4: Whether the prints are stored with lz4 compression.
        may_read_blocks: Whether `--reading.order block` works in this run and is not set.
        may_replay: Whether `--training.compile reduce-overhead` works in this run and is not set.
    """

    source: Literal["shards", "synthetic"] = "shards"
    lz4: bool = False
    may_read_blocks: bool = True
    may_replay: bool = True


def situation(run: Run) -> Situation:
    """Return the properties of a run that `advice` depends on."""
    config, reading = run.config, run.config.reading
    gathers = reading.samples_per_class > 1 or reading.balanced or reading.siblings > 1
    replays = config.training.compile in ("reduce-overhead", "max-autotune")
    return Situation(
        source="synthetic" if isinstance(run.train, SyntheticPrints) else "shards",
        lz4=not isinstance(run.train, SyntheticPrints) and run.train.shards.info.encoding == "lz4",
        may_read_blocks=reading.order != "block" and not gathers,
        may_replay=not (replays or config.model.gradient_checkpointing or run.accelerator.is_fsdp2),
    )


def advice(record: Mapping[str, float], stages: Mapping[str, float], seconds: float, known: Situation) -> str:
    """Return one line of advice on how to make training faster, or "" if no bottleneck is found.

    Args:
        record: Measurements of a period of training: `data_wait_share`, the share of the time spent waiting for data,
            and `gpu_utilisation` if known. Both are from 0 to 1.
        stages: Seconds that the reading thread spent on each stage (such as "decode") during the period, by name of the
            stage; see `TrainingLoader.seconds`.
        seconds: Duration of the period.
        known: Properties of the run that the advice depends on.
    """
    wait = record["data_wait_share"]
    if wait > WAITS_TOO_LONG:
        return f"training waits for data {wait:.0%} of the time: {_slow_stage(stages, seconds, known)}"
    if record.get("gpu_utilisation", 1.0) < IDLE_GPU:
        replay = ", or CUDA graphs: --training.compile reduce-overhead" if known.may_replay else ""
        return (
            f"the GPU is busy {record['gpu_utilisation']:.0%} of the time and does not wait for data, so kernel-launch "
            f"overhead dominates: give it more work per launch (a larger --training.batch-size{replay})"
        )
    return ""


def _slow_stage(stages: Mapping[str, float], seconds: float, known: Situation) -> str:
    if known.source == "synthetic":
        return (
            "prints are rendered during training; write them to a dataset (`fingerprint-accel synth`) and train on it, "
            "or render on a GPU"
        )
    working = sum(stages.values())
    if working < BUSY_READER * seconds:
        return (
            f"the reading thread is busy only {working / max(1e-9, seconds):.0%} of the time, so it lacks a core; give "
            "each process of the run two cores"
        )
    slowest = max(stages, key=lambda name: stages[name])
    if slowest == "decode":
        return (
            "decoding lz4 is the slow stage; `merge SRC --out OUT --encoding raw` needs more disk space and is faster"
        )
    if slowest == "order":
        return "computing the order of prints is the slow stage; use a larger --training.batch-size"
    remedies = ["copy the dataset to a local disk"]
    remedies += ["read neighbouring prints (--reading.order block)"] if known.may_read_blocks else []
    remedies += [] if known.lz4 else ["compress the prints (`merge SRC --out OUT --encoding lz4`)"]
    return f"reading from disk is the slow stage; {', or '.join(remedies)}"


class Adviser:
    """Gives advice on how to make training faster, but not after each record.

    Args:
        known: Properties of the run that the advice depends on.
        every: Number of records without advice after each record with advice.
    """

    def __init__(self, known: Situation, every: int = 10) -> None:
        self.known, self.every = known, every
        self._stages: dict[str, float] = {}
        self._silent = 0
        self._warm = False

    def window(self, record: Mapping[str, float], stages: Mapping[str, float], seconds: float) -> str:
        """Return advice on the training steps since the last call, or "".

        GPU utilisation is ignored in the first call, because kernels are compiled and chosen in the first steps.

        Args:
            record: Record of these steps.
            stages: Seconds that the reading thread has spent on each stage since the start of the run, by name.
            seconds: Duration of these steps.
        """
        here = {name: value - self._stages.get(name, 0.0) for name, value in stages.items()}
        self._stages = dict(stages)
        warm, self._warm = self._warm, True
        if self._silent > 0:
            self._silent -= 1
            return ""
        seen = record if warm else {"data_wait_share": record["data_wait_share"]}
        line = advice(seen, here, seconds, self.known)
        if line:
            self._silent = self.every
        return line

    def whole_run(self, wait: float, seconds: float) -> str:
        """Return one line on how to make the whole run faster, or "" if nothing slowed it down.

        Args:
            wait: Share of the time that training waited for data, 0 to 1.
            seconds: Duration of training.
        """
        return advice({"data_wait_share": wait}, self._stages, seconds, self.known)
