"""The commands that write, and how to compare what they have written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .children import Child, Ended, command_line, nothing, ranks, training
from .material import CANVAS, FEW, synth_words, training_words

TIMES = ("seconds", "samples_per_second", "data_wait_share", "date", "gpu", "memory", "_mb", "per_second")
UNEQUAL = (".html", ".png", ".pt2", ".onnx")  # suffixes of files that contain times
SIZE = ["--canvas", str(CANVAS)]


@dataclass(frozen=True)
class Command:
    """A command that writes.

    Attributes:
        name: Name in tables.
        words: Words of the command, given the folder of the material. The command runs in a folder of its own.
        out: File or folder that the command writes.
        start: Folders and files of the material that are copied to the folder of the command, by their new names.
        processes: Number of processes of a training launch; 0 for commands other than training.
        weight: How often long runs choose this command, relative to others.
    """

    name: str
    words: Callable[[Path], Sequence[str]]
    out: str
    start: dict[str, str] = field(default_factory=dict)
    processes: int = 0
    weight: int = 1

    def prepare(self, folder: Path, material: Path) -> Path:
        """Make the folder of a trial as it is before the command, and return it."""
        emptied(folder)
        for there, here in self.start.items():
            source = material / there
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, folder / here)
        return folder

    def begin(
        self, folder: Path, material: Path, before: Callable[[], Any] = nothing, more: Sequence[str] = ()
    ) -> list[Child]:
        """Start the command in a folder; training may start several processes."""
        words = [*self.words(material), *more]
        action = training(words) if self.processes else command_line(words)
        environment = {"TMPDIR": str(temporary_of(folder)), "MPLCONFIGDIR": str(material)}

        def prepared() -> None:
            _small_shards()
            before()

        return [Child(action, folder, prepared, {**environment, **of_rank}) for of_rank in ranks(self.processes or 1)]

    def run(self, folder: Path, material: Path, before: Callable[[], Any] = nothing) -> Ended:
        """Run the command in a folder to its end."""
        return wait_all(self.begin(folder, material, before))


def temporary_of(folder: Path) -> Path:
    """Return the folder for temporary files of a trial, which lies outside the folder of the trial."""
    return folder.with_name(f"{folder.name}.tmp")


def emptied(folder: Path) -> Path:
    """Make a folder for a trial, and the folder for its temporary files, and empty them."""
    for place in (folder, temporary_of(folder)):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
    return folder


def wait_all(children: Sequence[Child], timeout: float = 120.0) -> Ended:
    """Wait for all processes of a command; return how the first one ended that did not end well."""
    ended = [child.wait(timeout) for child in children]
    return next((each for each in ended if each.code), ended[0])


def _small_shards() -> None:
    """Let commands write several shards of the few prints."""
    import tempfile

    from fingerprint_accel.data import shard_writing
    from fingerprint_accel.extraction import bulk

    shard_writing.LEAST_ROWS, bulk.BATCHES_PER_SHARD = 4, 2
    tempfile.tempdir = os.environ.get("TMPDIR")


COMMANDS = {
    command.name: command
    for command in (
        Command("synth", lambda m: synth_words("set", 6, 5), "set", weight=2),
        Command("synth --overwrite", lambda m: [*synth_words("set", 6, 5), "--overwrite"], "set", {"others": "set"}),
        Command(
            "import",
            lambda m: ["import", str(m / "scans"), "--out", "set", "--layout", "fvc", *SIZE, *FEW],
            "set",
            weight=3,
        ),
        Command(
            "import, 2 workers",
            lambda m: ["import", str(m / "scans"), "--out", "set", "--layout", "fvc", *SIZE, "--workers", "2"],
            "set",
        ),
        Command(
            "merge",
            lambda m: [
                *("merge", str(m / "prints"), str(m / "others"), "--out", "set", "--rows-per-shard", "4"),
                *("--encoding", "lz4", *FEW),
            ],
            "set",
            weight=3,
        ),
        Command(
            "extract",
            lambda m: [
                *("extract", str(m / "prints"), "--out", "embeddings", "--model", str(m / "model")),
                *("--device", "cpu", "--batch-size", "2"),
            ],
            "embeddings",
            weight=3,
        ),
        Command(
            "enroll",
            lambda m: ["enroll", "gallery", str(m / "people.csv"), "--model", str(m / "model")],
            "gallery",
            weight=3,
        ),
        Command(
            "enroll more",
            lambda m: ["enroll", "gallery", str(m / "others"), "--model", str(m / "model")],
            "gallery",
            {"indexed": "gallery"},
            weight=3,
        ),
        Command(
            "remove",
            lambda m: ["remove", "gallery", "--person", "person2"],
            "gallery",
            {"indexed": "gallery"},
            weight=3,
        ),
        Command(
            "search --index",
            lambda m: ["search", "gallery", str(m / "scans" / "1_2.png"), "--index", "--model", str(m / "model")],
            "gallery",
            {"gallery": "gallery"},
            weight=2,
        ),
        Command("evaluate", lambda m: ["evaluate", str(m / "model"), str(m / "prints"), "--out", "report"], "report"),
        Command(
            "calibrate",
            lambda m: ["calibrate", str(m / "model"), str(m / "prints"), "--out", "model"],
            "model",
            weight=2,
        ),
        Command(
            "calibrate in place",
            lambda m: ["calibrate", "model", str(m / "prints")],
            "model",
            {"model": "model"},
            weight=2,
        ),
        Command("export --torch", lambda m: ["export", str(m / "model"), "--torch", "model.pt2"], "model.pt2"),
        Command("export --onnx", lambda m: ["export", str(m / "model"), "--onnx", "model.onnx"], "model.onnx"),
        Command("inspect", lambda m: ["inspect", str(m / "prints"), "--out", "sheet.png"], "sheet.png"),
        Command(
            "inspect --audit",
            lambda m: ["inspect", str(m / "prints"), "--audit", "--model", str(m / "model"), "--out", "audit.png"],
            "audit.png",
        ),
        Command("training", lambda m: [*training_words(m, 8), "--out", "run"], "run", processes=1, weight=4),
        Command(
            "training, 2 processes",
            lambda m: [*training_words(m, 8, 2), "--out", "run"],
            "run",
            processes=2,
            weight=2,
        ),
    )
}


def snapshot(place: Path) -> dict[str, str]:
    """Return a digest of each file below a path, without what differs between two equal runs, such as times."""
    if not place.exists():
        return {}
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    older = sorted(place.glob("checkpoints/step-*"))[:-1]  # a signal may have added a checkpoint to them
    files = [path for path in files if path.parent not in older and not _is_lock(path)]
    return {str(path.relative_to(place.parent)): hashlib.sha256(_comparable(path)).hexdigest() for path in files}


def _comparable(path: Path) -> bytes:
    """Return the content of a file without times and durations."""
    data = path.read_bytes()
    if path.suffix in (".json", ".jsonl"):
        lines = data.splitlines() if path.suffix == ".jsonl" else [data]
        with contextlib.suppress(ValueError):  # damaged
            return json.dumps([_timeless(json.loads(line)) for line in lines]).encode()
    if path.suffix in UNEQUAL:
        return b"" if _is_whole(path, data) else data
    return data


def _is_whole(path: Path, data: bytes) -> bool:
    """Return whether a file of a format that contains the time of its writing is whole."""
    if path.suffix == ".html":
        return data.rstrip().endswith(b"</html>")
    if path.suffix == ".png":
        return data.endswith(b"IEND\xaeB`\x82")
    if path.suffix == ".pt2":
        return data.startswith(b"PK") and b"PK\x05\x06" in data[-200:]
    return len(data) > 1000


def _timeless(values: Any) -> Any:
    if isinstance(values, dict):
        return {
            name: _timeless(value)
            for name, value in values.items()
            if name != "checksum" and not any(word in name for word in TIMES) and not name.endswith(UNEQUAL)
        }
    return [_timeless(value) for value in values] if isinstance(values, list) else values


def leftovers(folder: Path, command: Command) -> list[str]:
    """Return the names of files that a finished command has left beside its output, or in its output."""
    beside = [path.name for path in folder.iterdir() if path.name not in _beside(command) and not _is_lock(path)]
    inside = folder / command.out
    hidden = re.compile(r"\..*|records")
    within = [
        str(path.relative_to(folder))
        for path in (inside.rglob("*") if inside.is_dir() else ())
        if hidden.fullmatch(path.name) and not _is_lock(path)
    ]
    place = temporary_of(folder)
    temporary = [f"TMPDIR/{path.name}" for path in place.iterdir()]
    return [*beside, *within, *temporary]


def _is_lock(path: Path) -> bool:
    """Return whether a file is an empty lock file, which a killed process may leave; the next one deletes it."""
    return path.name.endswith(".lock") and path.is_file() and not path.stat().st_size


def _beside(command: Command) -> set[str]:
    sheet = str(Path(command.out).with_suffix(".jsonl")) if command.out == "audit.png" else ""
    return {command.out, sheet, *command.start.values()}
