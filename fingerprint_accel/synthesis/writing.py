"""`fingerprint-accel synth`: a dataset folder of fingers that nobody has, made in parallel and resumable.

The prints are made in parts (`parts.py`), finger by finger, in a hidden folder beside the dataset; then the parts are
joined, in an order shuffled over fingers, and deleted.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch
from tqdm import tqdm

from fingerprint_accel.data.inspection import save_contact_sheet
from fingerprint_accel.data.launch import ALONE, Launch
from fingerprint_accel.data.order import permutation
from fingerprint_accel.data.part_folder import alone_at, workers_here
from fingerprint_accel.data.shard_writing import DATASET, DatasetInfo, Record, ShardWriter
from fingerprint_accel.data.shards import Shards, open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.outputs import check_folder
from fingerprint_accel.synthesis.orientation import CLASSES
from fingerprint_accel.synthesis.parts import Parts, Plan, make_part
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.synthesis.skin import finger_name
from fingerprint_accel.text import aligned

DEFAULT_STYLE = Style()
ARGUMENTS = "synthesis.json"  # in the dataset folder: what it was made with
CONTACT_SHEET = "contact_sheet.png"
BYTES_AT_ONCE = 2**27  # of images, while parts are joined
MINUTIAE_BYTES = 1000  # of a print, roughly


@dataclass(frozen=True)
class SynthesisSummary:
    """What a synthesis did.

    Attributes:
        out: the dataset folder.
        info: of the dataset.
        classes: fingers by pattern class.
        minutiae: (N,) number of minutiae of each print.
        megabytes: size of the dataset folder.
        made: prints that this run made; the others were there.
        seconds: that this run took.
    """

    out: Path
    info: DatasetInfo
    classes: Counter[str]
    minutiae: np.ndarray
    megabytes: float
    made: int
    seconds: float

    def table(self) -> str:
        """The summary as aligned text."""
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
    device: str = "auto",
    overwrite: bool = False,
    progress: bool = True,
    launch: Launch = ALONE,
) -> SynthesisSummary | None:
    """Writes a dataset folder of synthetic prints; goes on from what an interrupted call with these arguments has left.

    The prints depend on nothing but fingers, impressions, seed, style and first_finger, and on whether a CPU or a GPU
    makes them. Finger i of a seed is the same however many fingers there are.

    Args:
        out: dataset folder to make.
        fingers: how many, numbered from `first_finger`.
        impressions: of each finger, numbered from 0.
        seed: same seed, same fingers; datasets of different seeds have no finger in common.
        style: sensors, quality, share of partial touches, ppi, canvas.
        first_finger: number of the first finger.
        workers: processes on a CPU; 0 for one per core, 1 for this process alone. A script that asks for more needs
            `if __name__ == "__main__":` around the call.
        device: "cpu", "cuda", or "auto" for a GPU if there is one; a GPU works in this process.
        overwrite: replace `out` if it is a dataset folder, and parts that another call has left.
        progress: shows progress bars.
        launch: the processes that share the work; each calls this, and `out` lies where all of them see it.

    Returns:
        The summary on the main process, None on others.

    Raises:
        UserError: a number out of range, no such device, too little room on the disk, a worker that was killed, `out`
            exists, or parts of another call lie beside it.
    """
    started = time.perf_counter()
    out = Path(out)
    if workers < 0:
        raise UserError(f"--workers {workers}: must not be negative")
    check_folder(out, DATASET)
    plan = Plan(fingers, impressions, seed, first_finger, style, _device(device, launch))
    parts = Parts(out.with_name(f".{out.name}.parts"), plan)
    made = 0
    with alone_at(out, launch):
        joined = launch.first(lambda: _joined(out, parts))
        if not joined:
            made = _make(parts, out, launch, workers, overwrite, progress)
        if not launch.main:
            return None
        if not joined:
            _join(parts, out, overwrite, progress)
        shards = open_dataset(out)
        save_contact_sheet(shards, out / CONTACT_SHEET)
        parts.remove()
    return _summary(out, shards, made, time.perf_counter() - started)


def _device(name: str, launch: Launch) -> str:
    """Resolves "auto", and gives each process of a machine its own GPU."""
    there = torch.cuda.is_available()
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {name}: unknown; there are auto, cpu, cuda")
    if name == "cuda" and not there:
        raise UserError("--device cuda: torch finds no GPU here; take --device cpu")
    if name == "cpu" or not there:
        return "cpu"
    if launch.size > 1:
        torch.cuda.set_device(launch.local_rank % torch.cuda.device_count())
    return "cuda"


def _joined(out: Path, parts: Parts) -> bool:
    """Whether a run of the same arguments was cut off at the very end: dataset there, parts not yet deleted."""
    try:
        return parts.stored() == parts.arguments == json.loads((out / ARGUMENTS).read_text())
    except (OSError, ValueError):
        return False


def _make(parts: Parts, out: Path, launch: Launch, workers: int, overwrite: bool, progress: bool) -> int:
    """Makes this process's share of the missing parts and returns how many prints that were."""
    plan = parts.plan

    def begin() -> None:
        check_folder(out, DATASET, overwrite)
        parts.begin(overwrite)
        parts.check_room(plan.prints * (plan.style.canvas**2 + MINUTIAE_BYTES))

    missing = parts.shared(launch, begin, progress)
    share = launch.share(missing)
    workers = workers_here(workers, launch, len(share)) if plan.device == "cpu" else 1
    there = plan.prints - sum(len(plan.fingers_of(part)) for part in missing) * plan.impressions
    with launch.counting("making", plan.prints, there, progress) as made:
        return parts.make(launch, _make_on_one_thread, ((parts, part) for part in share), workers, made)


def _make_on_one_thread(task: tuple[Parts, int]) -> int:
    """One process, one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return make_part(task)
    finally:
        torch.set_num_threads(before)


def _join(parts: Parts, out: Path, overwrite: bool, progress: bool) -> None:
    """Parts to shards, in an order shuffled over fingers; some rows at a time are in memory."""
    plan, canvas = parts.plan, parts.plan.style.canvas
    order = permutation(plan.prints, plan.seed, epoch=0, level=2)
    at_once = max(1, min(1024, BYTES_AT_ONCE // canvas**2))
    with (
        ShardWriter(out, plan.style.ppi, canvas, overwrite=overwrite, truth=True) as writer,
        tqdm(total=plan.prints, desc="joining", unit="print", disable=not progress) as bar,
    ):
        (writer.folder / ARGUMENTS).write_text(json.dumps(parts.arguments, indent=2) + "\n")
        for start in range(0, plan.prints, at_once):
            rows = order[start : start + at_once]
            prints = dict(parts.read(rows))
            for row in rows.tolist():
                made = prints[row]
                finger, impression = divmod(row, plan.impressions)
                key = finger_name(plan.seed, plan.first_finger + finger, plan.style.siblings)
                source = f"synthetic/{plan.style.quality}/{CLASSES[made.kind]}"
                writer.add(Record(made.image, key, impression, source, made.minutiae, made.truth))
            bar.update(len(rows))
        writer.close()


def _summary(out: Path, shards: Shards, made: int, seconds: float) -> SynthesisSummary:
    sources = shards.table["source"].filter(pc.equal(shards.table["impression"], 0))
    classes = Counter({row["values"].split("/")[-1]: row["counts"] for row in pc.value_counts(sources).to_pylist()})
    minutiae = pc.list_value_length(shards.table["minutiae"]).to_numpy() // 4
    size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    return SynthesisSummary(out, shards.info, classes, minutiae, size, made, seconds)
