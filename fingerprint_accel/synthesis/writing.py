"""Write a dataset folder of synthetic prints (`fingerprint-accel synth`), in parallel and resumable."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch

from fingerprint_accel import __version__
from fingerprint_accel.data.dataset_card import origin_of, write_dataset_card
from fingerprint_accel.data.inspection import save_contact_sheet
from fingerprint_accel.data.order import permutation
from fingerprint_accel.data.shard_writing import (
    DATASET,
    MINUTIAE_BYTES,
    SHARD_NAMES,
    DatasetInfo,
    Record,
    publish_dataset,
    rows_per_shard,
    seal_dataset,
    write_shard,
)
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.data.truth import Truth
from fingerprint_accel.durable import write_json
from fingerprint_accel.errors import require
from fingerprint_accel.executors import open_workers
from fingerprint_accel.jobs import Job, run
from fingerprint_accel.outputs import check_folder
from fingerprint_accel.staging import Facts
from fingerprint_accel.synthesis.impressions import Prints, impression_keys, render
from fingerprint_accel.synthesis.orientation import CLASSES
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.synthesis.skin import finger_name, make_masters
from fingerprint_accel.text import aligned

DEFAULT_STYLE = Style()
ARGUMENTS = "synthesis.json"  # file in the dataset folder that stores the arguments
CONTACT_SHEET = "contact_sheet.png"
PIXELS_AT_ONCE = 2**24  # pixels rendered at a time: 163 prints of 320 x 320; a GPU needs about 200 bytes per pixel
FINGERS_AT_ONCE = {"cpu": 1, "cuda": 64}  # fingers generated at a time; 64 keep a GPU busy
MOST_FINGERS, MOST_IMPRESSIONS, LAST_FINGER = 10**7, 2**15 - 1, 2**31 - 1


@dataclass(frozen=True)
class Plan:
    """Arguments that determine the contents of a synthetic dataset.

    Attributes:
        fingers: number of fingers.
        impressions: number of impressions of each finger.
        seed: random seed. A finger depends only on its index, the seed and `style.siblings`.
        first_finger: index of the first finger.
        style: appearance of the impressions.
        device: "cpu" or "cuda". The results of these two devices can differ.
        persons: whether names of fingers state a person and a finger position; see `skin.finger_name`.

    Raises:
        UserError: if a number is out of range.
    """

    fingers: int
    impressions: int
    seed: int
    first_finger: int
    style: Style
    device: str
    persons: bool = False

    def __post_init__(self) -> None:
        for option, value, low, high in (
            ("--fingers", self.fingers, 1, MOST_FINGERS),
            ("--impressions", self.impressions, 1, MOST_IMPRESSIONS),
            ("--seed", self.seed, 0, 2**63 - 1),
            ("--first-finger", self.first_finger, 0, LAST_FINGER),
        ):
            require(low <= value <= high, f"{option} {value}: must lie between {low} and {high}")


@dataclass(frozen=True)
class SynthesisSummary:
    """Summary of a synthetic dataset and of the call that wrote it.

    Attributes:
        out: dataset folder.
        info: contents of `fingerprint.json`.
        classes: number of fingers of each pattern class.
        minutiae: (N,) number of minutiae of each print.
        megabytes: size of the dataset folder, MB.
        made: number of prints that this call rendered. A resumed call renders only the missing prints.
        seconds: duration of this call.
    """

    out: Path
    info: DatasetInfo
    classes: Counter[str]
    minutiae: np.ndarray
    megabytes: float
    made: int
    seconds: float

    @classmethod
    def of(cls, out: Path, made: int, seconds: float) -> SynthesisSummary:
        """Read the summary of a finished dataset folder.

        Args:
            out: dataset folder.
            made: number of prints that this call rendered.
            seconds: duration of this call.
        """
        shards = open_dataset(out)
        sources = shards.table["source"].filter(pc.equal(shards.table["impression"], 0))
        counts = pc.value_counts(sources).to_pylist()
        classes = Counter({row["values"].split("/")[-1]: row["counts"] for row in counts})
        minutiae = pc.list_value_length(shards.table["minutiae"]).to_numpy() // 4
        size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
        return cls(out, shards.info, classes, minutiae, size, made, seconds)

    def table(self) -> str:
        """Format the summary as a text table with aligned columns."""
        low, median, high = np.percentile(self.minutiae, [0, 50, 100]).astype(int)
        speed = f" ({self.made / max(1e-9, self.seconds):.0f} prints/s)" if self.made else ""
        rows = [("fingers", f"{self.info.fingers}"), ("impressions", f"{self.info.prints}")]
        rows += [(f"  {name}", f"{self.classes[name] / self.info.fingers:.1%} of fingers") for name in CLASSES]
        rows += [
            ("minutiae per print", f"{low} to {high}, median {median}"),
            ("MB", f"{self.megabytes:.1f}"),
            ("seconds", f"{self.seconds:.1f}{speed}"),
            ("dataset", str(self.out)),
            ("contact sheet", str(self.out / CONTACT_SHEET)),
        ]
        return aligned(rows)


def write_synthetic_dataset(
    out: Path | str,
    fingers: int,
    impressions: int,
    seed: int = 0,
    style: Style = DEFAULT_STYLE,
    first_finger: int = 0,
    workers: int = 0,
    cluster: str = "",
    device: str = "auto",
    overwrite: bool = False,
    progress: bool = True,
    persons: bool = False,
) -> SynthesisSummary:
    """Write a dataset folder of synthetic prints. A call with the same arguments resumes an interrupted call.

    The contents depend on `fingers`, `impressions`, `seed`, `style`, `first_finger` and the kind of device (CPU or
    GPU). A finger depends only on its index, `seed` and `style.siblings`.

    Args:
        out: dataset folder to create.
        fingers: number of fingers.
        impressions: number of impressions of each finger.
        seed: random seed. Different seeds give different fingers.
        style: sensors, quality, share of partial impressions, ppi and canvas.
        first_finger: index of the first finger.
        workers: number of CPU processes; 0 for one per core, 1 for the calling process. With several processes, a
            script needs `if __name__ == "__main__":` around the call.
        cluster: address of a Dask scheduler, or its scheduler file. The workers of this scheduler are used instead of
            processes of this machine; see `executors.open_workers`.
        device: "cpu", "cuda" for all GPUs of this machine, or "auto" for GPUs if available.
        overwrite: replace `out` if it is a dataset folder, and discard unfinished shards of a call with different
            arguments.
        progress: show a progress bar.
        persons: make persons of ten fingers: names of fingers state a person and a finger position, see
            `skin.finger_name`. The prints stay the same.

    Raises:
        UserError: if a number is out of range, the device does not exist, the disk has too little space, a worker
            process was killed, `out` exists, or there are unfinished shards of a call with different arguments.
    """
    started = time.perf_counter()
    out = Path(out)
    check_folder(out, DATASET)
    with open_workers(workers, cluster, device) as team:
        plan = Plan(fingers, impressions, seed, first_finger, style, team.device, persons)
        made = run(SynthJob(plan), out, team.executor, overwrite, progress)
    return SynthesisSummary.of(out, made, time.perf_counter() - started)


class SynthJob(Job):
    """Job that renders a synthetic dataset shard by shard.

    A shard holds all impressions of a random subset of the fingers.
    """

    label, kind, pattern = "making", DATASET, SHARD_NAMES

    def __init__(self, plan: Plan) -> None:
        self.plan, style = plan, plan.style
        self.bytes_per_print = style.canvas**2 + MINUTIAE_BYTES
        self.arguments = {name: value for name, value in vars(plan).items() if name != "style"} | vars(style)
        self.arguments |= {"sensors": list(style.sensors), "partial": style.partial_share}
        self.arguments |= {"fingerprint_accel": __version__, "torch": torch.__version__}
        per_shard = max(1, rows_per_shard(plan.fingers * plan.impressions, style.canvas) // plan.impressions)
        order = permutation(plan.fingers, plan.seed, epoch=0, level=2)
        self._fingers = np.split(order, range(per_shard, plan.fingers, per_shard))
        self.sizes = [len(fingers) * plan.impressions for fingers in self._fingers]

    def task(self, shard: int) -> Callable[[Path], Facts]:
        """Return a picklable function that writes one shard; see `Job.task`."""
        return functools.partial(_write_shard, self.plan, self._fingers[shard])

    def publish(self, folder: Path, facts: list[Facts]) -> None:
        """Write the metadata, the dataset card and the contact sheet of a finished dataset; see `Job.publish`."""
        style = self.plan.style
        publish_dataset(folder, self.names, facts, style.ppi, style.canvas, truth=True)
        write_json(folder / ARGUMENTS, self.arguments)
        origin = origin_of("synth", self.arguments, ["fingerprint_accel", "torch"], synthetic=True)
        write_dataset_card(folder, origin, truth=True)
        save_contact_sheet(open_dataset(folder), folder / CONTACT_SHEET)
        seal_dataset(folder)


def _write_shard(plan: Plan, fingers: np.ndarray, path: Path) -> Facts:
    """Render all impressions of the given fingers, and write them in random order to one shard.

    Args:
        plan: arguments of the dataset.
        fingers: (F,) indices of the fingers, relative to `plan.first_finger`.
        path: file to write.
    """
    before = torch.get_num_threads()
    if plan.device == "cpu":
        torch.set_num_threads(1)  # there is one process per core
    try:
        rows = [row for some in _rendered(plan, fingers) for row in some]
    finally:
        torch.set_num_threads(before)
    shuffled = [rows[place] for place in permutation(len(rows), plan.seed, epoch=0, level=2).tolist()]
    return write_shard(path, shuffled, plan.style.canvas, truth=True)


def _rendered(plan: Plan, fingers: np.ndarray) -> Iterator[list[Record]]:
    """Render all impressions of the given fingers, and yield them in groups as dataset records.

    Args:
        plan: arguments of the dataset.
        fingers: (F,) indices of the fingers, relative to `plan.first_finger`.
    """
    at_once = max(1, min(128, PIXELS_AT_ONCE // plan.style.canvas**2))  # prints per call of `render`
    every = torch.arange(plan.impressions, device=plan.device)
    numbers = torch.from_numpy(fingers).to(plan.device) + plan.first_finger
    for group in numbers.split(FINGERS_AT_ONCE[plan.device]):
        masters = make_masters(plan.seed, group, plan.style.siblings)
        which = torch.arange(len(group), device=plan.device).repeat_interleave(len(every))
        for some, touches in zip(which.split(at_once), every.repeat(len(group)).split(at_once), strict=True):
            prints = render(masters, some, impression_keys(plan.seed, group[some], touches), plan.style)
            made = (group[some] - plan.first_finger, masters.kind[some], touches)
            yield _records(plan, prints, *(values.tolist() for values in made))


def _records(plan: Plan, prints: Prints, fingers: list[int], kinds: list[int], impressions: list[int]) -> list[Record]:
    """Convert rendered prints to dataset records.

    Args:
        plan: arguments of the dataset.
        prints: B prints.
        fingers: finger index of each print, relative to `plan.first_finger`.
        kinds: pattern class of each print.
        impressions: impression index of each print.
    """
    images, minutiae, counts, poses = (
        values.cpu().numpy() for values in (prints.image, prints.minutiae, prints.count, prints.pose)
    )
    contacts = np.packbits(prints.contact.flatten(1).cpu().numpy(), axis=1)  # format of `pack_contact`
    found = []
    for i, (finger, kind, impression) in enumerate(zip(fingers, kinds, impressions, strict=True)):
        key = finger_name(plan.seed, plan.first_finger + finger, plan.style.siblings, plan.persons)
        source = f"synthetic/{plan.style.quality}/{CLASSES[kind]}"
        truth = Truth(poses[i].copy(), contacts[i].tobytes())
        found.append(Record(images[i], key, impression, source, minutiae[i, : counts[i]].copy(), truth, finger))
    return found
