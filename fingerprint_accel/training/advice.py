"""What to do when training waits: which stage is slow, and the setting that would help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

WAITS_TOO_LONG = 0.05  # share of the time
IDLE_GPU = 0.9  # utilisation below which a GPU has time to spare
BUSY_READER = 0.5  # share of the time that the reading thread works, above which it is the bottleneck


@dataclass(frozen=True)
class Situation:
    """What is set already, so that no advice asks for it, or for what would be refused.

    Attributes:
        source: "shards", or "synthetic" for prints rendered while training.
        lz4: prints are stored compressed.
        may_read_blocks: `--reading.order block` is not used yet, and goes with the other knobs.
        may_replay: `--training.compile reduce-overhead` is not used yet, and goes with the other knobs.
    """

    source: Literal["shards", "synthetic"] = "shards"
    lz4: bool = False
    may_read_blocks: bool = True
    may_replay: bool = True


def advice(
    record: Mapping[str, float], stages: Mapping[str, float], seconds: float, situation: Situation | None = None
) -> str:
    """One line of advice on a window of training, or "" where nothing is wrong.

    Args:
        record: of the window: `data_wait_share`, and `gpu_utilisation` (0 to 1) where it is known.
        stages: seconds that the reading thread spent on each stage in the window (`TrainingLoader.seconds`).
        seconds: length of the window.
        situation: what is set already.
    """
    situation = situation or Situation()
    wait = record["data_wait_share"]
    if wait > WAITS_TOO_LONG:
        return f"{wait:.0%} of the time waits for data: {_slow_stage(stages, seconds, situation)}"
    if record.get("gpu_utilisation", 1.0) < IDLE_GPU:
        replay = ", or CUDA graphs: --training.compile reduce-overhead" if situation.may_replay else ""
        return (
            f"the GPU is busy {record['gpu_utilisation']:.0%} of the time and does not wait for data, so it waits for "
            f"Python: give it more at once (a larger --training.batch-size{replay})"
        )
    return ""


def _slow_stage(stages: Mapping[str, float], seconds: float, situation: Situation) -> str:
    if situation.source == "synthetic":
        return (
            "prints are rendered while training; write them once (`fingerprint-accel synth`) and train on that "
            "dataset, or render on a GPU"
        )
    working = sum(stages.values())
    if working < BUSY_READER * seconds:
        return (
            f"the reading thread works {working / max(1e-9, seconds):.0%} of it, so batches come in bursts, or other "
            "processes take its core; give each process of the run two cores"
        )
    slowest = max(stages, key=lambda name: stages[name])
    if slowest == "decode":
        return "decoding lz4 is the slow stage; `fingerprint-accel pack SRC OUT --encoding raw` trades disk for speed"
    if slowest == "order":
        return "drawing the order is the slow stage; a larger --training.batch-size draws more at once"
    remedies = ["copy the dataset to a local disk"]
    remedies += ["read neighbours together (--reading.order block)"] if situation.may_read_blocks else []
    remedies += [] if situation.lz4 else ["read less (`fingerprint-accel pack SRC OUT --encoding lz4`)"]
    return f"reading from disk is the slow stage; {', or '.join(remedies)}"


class Adviser:
    """Says each kind of thing once in a while.

    Args:
        situation: what is set already.
        every: records of silence after a line.
    """

    def __init__(self, situation: Situation, every: int = 10) -> None:
        self.situation, self.every = situation, every
        self._stages: dict[str, float] = {}
        self._silent = 0
        self._warm = False

    def window(self, record: Mapping[str, float], stages: Mapping[str, float], seconds: float) -> str:
        """Advice on the window since the last call, or "" where there is none, or it was given lately.

        A GPU that idles in the first window is not spoken of: it waits for kernels to be compiled and chosen.

        Args:
            record: of the window.
            stages: seconds by stage since the loader was made.
            seconds: length of the window.
        """
        here = {name: value - self._stages.get(name, 0.0) for name, value in stages.items()}
        self._stages = dict(stages)
        warm, self._warm = self._warm, True
        if self._silent > 0:
            self._silent -= 1
            return ""
        known = record if warm else {"data_wait_share": record["data_wait_share"]}
        line = advice(known, here, seconds, self.situation)
        if line:
            self._silent = self.every
        return line

    def whole_run(self, wait: float, seconds: float) -> str:
        """Advice on the run so far: share of the time that waited for data, and seconds of training."""
        return advice({"data_wait_share": wait}, self._stages, seconds, self.situation)
