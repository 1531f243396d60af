"""Import a tree of files of every kind by one command, and account for every file.

python benchmarks/cupboard.py --out FILE.json                    # 2,000 files: about 4 minutes to make, 1 to import
python benchmarks/cupboard.py --files 300 --keep /tmp/cupboard   # keeps the tree and the dataset

The benchmark compares the result of the import with the truth: each print by finger, impression, picture and minutiae,
and each rejected file by its reason. All differences are listed. The exit code is 1 if there is one.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from cupboard_kinds import fill
from cupboard_tree import MOST_SHIFT, NAMES, RAW_SIZE, Cupboard, Expected, files_below
from machine import machine, versions
from print_files import png
from results_file import check_results, write_results

from fingerprint_accel.errors import one_line_errors
from fingerprint_accel.text import aligned

FILES = 2000
PLAIN = 1000  # files; fewer if there are fewer prints
NEAR = 1.5  # pixels of the canvas within which a minutia of the truth must lie


@dataclass
class Outcome:
    """Result of a kind of file: counts, reasons, and the largest difference and shift of its prints.

    Attributes:
        files: Number of files.
        prints: Number of imported prints.
        rejected: Number of rejected files or records.
        compared: Number of prints with a known picture.
        difference: Largest difference, in grey levels.
        shift: Largest shift, in pixels.
        reasons: Reasons for rejection.
    """

    files: int = 0
    prints: int = 0
    rejected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    difference: float = 0.0
    shift: float = 0.0

    def add(self, other: Outcome) -> None:
        """Add the counts of another kind to this one."""
        self.files += other.files
        self.prints += other.prints
        self.rejected += other.rejected
        self.compared += other.compared
        self.reasons += other.reasons
        self.difference, self.shift = max(self.difference, other.difference), max(self.shift, other.shift)


def import_command(root: Path, out: Path) -> list[str]:
    """Return the command that imports the tree."""
    return _command(root, out, "--names", NAMES, "--raw-size", RAW_SIZE)


def _command(root: Path, out: Path, *words: str) -> list[str]:
    """Return the command that imports a folder, with further options."""
    return [sys.executable, "-m", "fingerprint_accel.cli", "import", str(root), "--out", str(out), *words]


def import_plain(cupboard: Cupboard, folder: Path) -> dict[str, float]:
    """Measure the import of `PLAIN` of the same prints, as PNG files with plain names."""
    (folder / "plain").mkdir()
    prints = cupboard.prints.made[:PLAIN]
    for found in prints:
        (folder / "plain" / f"{found.number}_1.png").write_bytes(png(found.grey))
    return per_second(measured(_command(folder / "plain", folder / "plain-dataset", "--layout", "fvc")), len(prints))


def per_second(cost: dict[str, float], prints: int) -> dict[str, float]:
    """Add prints per second and prints per processor second to the costs."""
    return cost | {f"prints_per_{name[:-1]}": round(prints / cost[name], 1) for name in ("seconds", "cpu_seconds")}


def measured(command: list[str]) -> dict[str, float]:
    """Run a command and measure it.

    Returns:
        Seconds, processor seconds, and the largest memory of all its processes together in MB.

    Raises:
        SystemExit: The command failed.
    """
    started, before = time.perf_counter(), _cpu_seconds()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    most = [0.0]
    watching = threading.Thread(target=_watch, args=(process, most))
    watching.start()
    output, _ = process.communicate()
    seconds = time.perf_counter() - started
    watching.join()
    if process.returncode:
        raise SystemExit(output)
    print(output[output.rfind("\r") + 1 :])
    cpu = _cpu_seconds() - before
    return {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "peak_mb": round(most[0])}


def _cpu_seconds() -> float:
    """Return the processor seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _watch(process: subprocess.Popen[str], most: list[float]) -> None:
    """Record the largest memory of a process and its descendants until it ends."""
    while process.poll() is None:
        most[0] = max(most[0], sum(_own_mb(number) for number in _family(process.pid)))
        time.sleep(0.2)


def _family(number: int) -> Iterator[int]:
    """Yield a process and all its descendants."""
    yield number
    for thread in Path(f"/proc/{number}/task").glob("*/children"):
        try:
            children = thread.read_text().split()
        except OSError:
            continue
        for child in children:
            yield from _family(int(child))


def _own_mb(number: int) -> float:
    """Return the memory of a process in MB. Shared memory is divided among its users."""
    try:
        text = Path(f"/proc/{number}/smaps_rollup").read_text()
    except OSError:  # the process has ended
        return 0.0
    return int(text.split("\nPss:")[1].split()[0]) / 1e3 if "\nPss:" in text else 0.0


def compare(cupboard: Cupboard, out: Path) -> tuple[dict[str, Outcome], list[str]]:
    """Return the result of each kind of file, and all differences from the truth."""
    outcomes: dict[str, Outcome] = defaultdict(Outcome)
    for what in cupboard.kinds.values():
        outcomes[what].files += 1
    wrong = [f"{path}: not in the truth" for path in files_below(cupboard.root) if path not in cupboard.kinds]
    wrong += _prints(cupboard, out, outcomes)
    wrong += _rejections(cupboard, out, outcomes)
    return dict(outcomes), wrong


def _prints(cupboard: Cupboard, out: Path, outcomes: dict[str, Outcome]) -> Iterator[str]:
    """Compare the rows of the dataset with the truth."""
    notes = [json.loads(line) for line in _lines(out / "notes.jsonl")]
    rows = {row["source"]: row for row in datasets.load_from_disk(str(out))}
    for source in sorted(rows.keys() - cupboard.expected.keys()):
        yield f"{source}: imported, and should not be"
    for source, expected in cupboard.expected.items():
        if source not in rows:
            yield f"{source}: not imported"
            continue
        row, outcome = rows[source], outcomes[expected.what]
        outcome.prints += 1
        key, impression = row["finger_key"], row["impression"]
        if key != expected.finger_key or expected.impression not in (None, impression):
            yield f"{source}: finger {key}, impression {impression}; not {expected.finger_key}, {expected.impression}"
        said = [note["note"] for note in notes if note["path"] == source]
        if expected.note and not any(note.startswith(expected.note) for note in said):
            yield f"{source}: nothing said of it that begins with '{expected.note}'"
        yield from _picture(source, expected, row, outcome)


def _picture(source: str, expected: Expected, row: dict[str, Any], outcome: Outcome) -> Iterator[str]:
    """Compare the canvas and the minutiae of a row with the truth."""
    minutiae = np.asarray(row["minutiae"], np.float32).reshape(-1, 4)
    if not expected.minutiae and len(minutiae):
        yield f"{source}: {len(minutiae)} minutiae, and should have none"
    if expected.print is None:
        return
    canvas, places = expected.print.placed
    found = np.frombuffer(row["image"], np.uint8).reshape(canvas.shape)
    shift, difference = moved_and_differing(found, canvas)
    outcome.compared += 1
    outcome.difference, outcome.shift = max(outcome.difference, difference), max(outcome.shift, shift)
    if difference > expected.tolerance or shift > (MOST_SHIFT if expected.tolerance else 0):
        allowed = f"{expected.tolerance} are allowed"
        yield f"{source}: differs by {difference:.2f} grey levels, {allowed}, and lies {shift:.1f} pixels aside"
    if expected.minutiae:
        distance = np.hypot(*(places[:, None, :2] - minutiae[None, :, :2]).transpose(2, 0, 1))
        if len(places) != len(minutiae) or distance.min(axis=1).max() > NEAR:
            yield f"{source}: {len(minutiae)} minutiae, not {len(places)}, or elsewhere"


def moved_and_differing(found: np.ndarray, canvas: np.ndarray) -> tuple[float, float]:
    """Return the shift in pixels between two canvases (S, S) uint8 of a print, and their difference.

    The difference is the mean absolute difference in grey levels where both canvases show the print.
    """
    difference = np.abs(found.astype(np.int16) - canvas)
    if difference.mean() < 1:
        return 0.0, float(difference.mean())
    spectra = [np.fft.fft2(255.0 - image) for image in (found, canvas)]
    alike = np.fft.ifft2(spectra[0] * spectra[1].conj()).real
    row, column = (int(place) for place in np.unravel_index(alike.argmax(), alike.shape))
    around = np.roll(alike, (1 - row, 1 - column), (0, 1))[:3, :3]
    by = (_vertex(around[:, 1], row, len(alike)), _vertex(around[1], column, len(alike)))
    moved = 255 - np.fft.ifft2(_moved(spectra[1], by)).real.clip(0, 255)
    rim = int(np.ceil(max(map(abs, by)))) + 1
    inside = (slice(rim, -rim), slice(rim, -rim))
    return float(np.hypot(*by)), float(np.abs(found[inside] - moved[inside]).mean())


def _vertex(three: np.ndarray, peak: int, side: int) -> float:
    """Return the place of the maximum of the parabola through three neighbouring values, -side / 2 to side / 2."""
    before, top, after = three
    place = peak + 0.5 * (before - after) / (before - 2 * top + after)
    return float((place + side / 2) % side - side / 2)


def _moved(spectrum: np.ndarray, by: tuple[float, float]) -> np.ndarray:
    """Return the spectrum of an image that is moved by (rows, columns)."""
    frequency = np.fft.fftfreq(len(spectrum))
    return spectrum * np.exp(-2j * np.pi * (frequency[:, None] * by[0] + frequency[None, :] * by[1]))


def _rejections(cupboard: Cupboard, out: Path, outcomes: dict[str, Outcome]) -> Iterator[str]:
    """Compare rejected.jsonl with the truth."""
    absolute = str(cupboard.root.resolve()) + "/"  # paths of minutiae files are absolute
    found = [json.loads(line) for line in _lines(out / "rejected.jsonl")]
    open_reasons = defaultdict(list)
    for line in found:
        open_reasons[line["path"].removeprefix(absolute)].append(line["reason"])
    for (what, path, start), count in cupboard.rejected.items():
        fitting = [reason for reason in open_reasons[path] if reason.startswith(start)][:count]
        if len(fitting) < count:
            yield f"{path}: not rejected with '{start}' but {open_reasons[path] or 'not at all'}"
        for reason in fitting:
            open_reasons[path].remove(reason)
            outcomes[what].rejected += 1
            outcomes[what].reasons[start] += 1
    for path, reasons in open_reasons.items():
        yield from (f"{path}: rejected, and should not be: {reason}" for reason in reasons)


def _lines(path: Path) -> list[str]:
    """Return the lines of a file, or none if it is missing."""
    return path.read_text().splitlines() if path.is_file() else []


def table(outcomes: dict[str, Outcome]) -> str:
    """Format the results as a Markdown table. Kinds that differ only after a comma share a row."""
    lines = [
        "| what was met | files | prints imported | rejected | difference | shift | reason |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    together: dict[str, Outcome] = defaultdict(Outcome)
    for what, outcome in outcomes.items():
        together[what.partition(", ")[0]].add(outcome)
    for what, outcome in together.items():
        reasons = "; ".join(dict.fromkeys(reason.partition(": ")[0] for reason in outcome.reasons))
        numbers = [outcome.files, outcome.prints or "", outcome.rejected or ""]
        numbers += [f"{value:.1f}" if outcome.compared else "" for value in (outcome.difference, outcome.shift)]
        lines.append(f"| {what} | {' | '.join(map(str, numbers))} | {reasons} |")
    total = [sum(getattr(each, name) for each in outcomes.values()) for name in ("files", "prints", "rejected")]
    return "\n".join([*lines, f"| **together** | {total[0]} | {total[1]} | {total[2]} | | | |"])


def main() -> None:
    """Make the tree, import it, compare, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--keep", type=Path, help="new folder that keeps the tree and the dataset")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    check_results(options.out)
    folder = options.keep or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    cupboard = Cupboard(folder / "cupboard")
    started = time.perf_counter()
    fill(cupboard, options.files)
    print(f"{len(cupboard)} files made in {time.perf_counter() - started:.0f} s", flush=True)
    cost = measured(import_command(cupboard.root, folder / "dataset"))
    outcomes, wrong = compare(cupboard, folder / "dataset")
    prints = sum(outcome.prints for outcome in outcomes.values())
    cost = per_second(cost, prints)
    plain = import_plain(cupboard, folder)
    print(table(outcomes))
    print(aligned([("", "cupboard"), *[(name, f"{value}") for name, value in cost.items()]]))
    print(aligned([("", f"{PLAIN} PNG files"), *[(name, f"{value}") for name, value in plain.items()]]))
    print("\n".join(wrong) or "every file is imported or listed, as expected")
    if options.out:
        found = {what: {**vars(each), "reasons": dict(each.reasons)} for what, each in outcomes.items()}
        results = {
            "machine": machine(torch.device("cpu")),
            "versions": versions(),
            **cost,
            "plain": plain,
            "kinds": found,
        }
        write_results(options.out, {**results, "wrong": wrong})
    if not options.keep:
        shutil.rmtree(folder)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    with one_line_errors():
        main()
