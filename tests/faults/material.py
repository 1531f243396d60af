"""Make the tiny inputs of all trials: scans, datasets, a model, galleries, embeddings and a run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .children import command_line, nothing, run, training
from .sources import make_files, make_subjects, ridges

CANVAS, PPI = 128, 300
FEW = ["--workers", "1"]
NETWORK = [
    *("--reading.validation-fraction", "0.3", "--preprocess.crop", "96", "--preprocess.size", "32"),
    *("--model.variant", "Tex", "--model.trunk", "compact", "--model.width", "8", "--model.embedding-dim", "16"),
    *("--training.tracker", "none", "--training.precision", "no", "--training.ema-decay", "0.9"),
    *("--training.warmup-steps", "2", "--resume", "auto", "--training.timeout", "10"),
]
LAST = ["--training.save-every", "0", "--training.validate-every", "0"]  # one checkpoint, at the end


def _scans(folder: Path) -> None:
    from PIL import Image

    for finger in range(1, 5):
        for impression in (1, 2):
            Image.fromarray(ridges(finger + 0.05 * impression)).save(folder / f"{finger}_{impression}.png")
    (folder / "5_1.png").write_bytes(b"nothing")


def _model(folder: Path) -> None:
    import torch

    from fingerprint_accel.config import ModelConfig, PreprocessConfig
    from fingerprint_accel.extraction.extractor import FingerprintExtractor

    torch.manual_seed(0)
    config = ModelConfig(variant="Tex", trunk="compact", width=8, embedding_dim=16)
    preprocess = PreprocessConfig(crop=96, size=32)
    extractor = FingerprintExtractor(config, preprocess, ppi=PPI, canvas=CANVAS)
    # Without this, all embeddings of an untrained network would be almost equal.
    layer = extractor.model.texture_branch[-1]
    prints = torch.from_numpy(np.stack([_on_canvas(finger) for finger in range(8)]))
    outputs: list[torch.Tensor] = []
    hook = layer.register_forward_hook(lambda *arguments: outputs.append(arguments[2]))
    extractor(prints)
    hook.remove()
    layer.bias.data -= outputs[0].mean(dim=0)
    extractor.save_pretrained(folder)


def _on_canvas(finger: int) -> np.ndarray:
    return np.ascontiguousarray(ridges(finger)[36 : 36 + CANVAS, 36 : 36 + CANVAS])


def synth_words(out: str, fingers: int, seed: int) -> list[str]:
    """Return the words of a command that renders small prints."""
    size = ["--canvas", str(CANVAS), "--dataset-ppi", str(PPI), "--device", "cpu", "--quality", "clean"]
    return ["synth", "--out", out, "--fingers", str(fingers), "--impressions", "2", "--seed", str(seed), *size, *FEW]


def make(folder: Path) -> Path:
    """Make the material in a folder, unless it is there already, and return the folder."""
    if (folder / "complete").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "scans").mkdir(parents=True)
    _in_child(lambda: _scans(folder / "scans"), folder)
    _in_child(command_line(synth_words("prints", 8, 3)), folder)
    _in_child(command_line(synth_words("others", 4, 4)), folder)
    _in_child(lambda: _model(folder / "model"), folder)
    (folder / "people.csv").write_text(
        "path,finger,impression,person\n"
        + "".join(f"scans/{finger}_1.png,{finger},1,person{finger}\n" for finger in (1, 2, 3))
    )
    _in_child(command_line(["enroll", "gallery", "people.csv", "--model", "model"]), folder)
    _in_child(command_line(["enroll", "gallery", "prints", "--model", "model"]), folder)
    shutil.copytree(folder / "gallery", folder / "indexed")
    _in_child(command_line(["search", "indexed", "scans/1_2.png", "--index", "--model", "model"]), folder)
    words = ["--out", "embeddings", "--model", "model", "--device", "cpu", "--batch-size", "2"]
    _in_child(command_line(["extract", "prints", *words]), folder)
    _in_child(command_line(["calibrate", "model", "prints", "--out", "calibrated"]), folder)
    _in_child(training([*training_words(folder, 6), "--out", "run"]), folder)
    _in_child(training([*training_words(folder, 6), *LAST, "--out", "last"]), folder)
    numbers = ["--layout", "fvc", "--canvas", str(CANVAS), *FEW]
    _in_child(command_line(["import", "scans", "--out", "numbered", *numbers]), folder)
    _in_child(lambda: make_files(folder / "files"), folder)
    _in_child(lambda: make_subjects(folder / "prints", folder / "files" / "subjects.csv"), folder)
    shutil.copytree(folder / "indexed", folder / "changing")
    _in_child(command_line(["remove", "changing", "--person", "person2"]), folder, _stop_in_a_change)
    (folder / "complete").write_text(json.dumps({"canvas": CANVAS}))
    return folder


def training_words(material: Path, steps: int, batch: int = 4) -> list[str]:
    """Return the options of a short training run, without its output folder."""
    saves = ["--training.save-every", "2", "--training.validate-every", "4", "--training.log-every", "1"]
    length = ["--training.steps", str(steps), "--training.batch-size", str(batch)]
    return [*NETWORK, *saves, *length, "--data", str(material / "prints")]


def _stop_in_a_change() -> None:
    """Make this process end as soon as it has recorded which files of a gallery will change."""
    from fingerprint_accel import durable

    write = durable.write_file

    def written(path: Path, content: str | bytes) -> None:
        write(path, content)
        if path.name == "changes.json":
            os._exit(0)

    durable.write_file = written


def _in_child(action: Callable[[], object], folder: Path, before: Callable[[], None] = nothing) -> None:
    ended = run(action, folder, before=before)
    if ended.verdict != "ok":
        raise RuntimeError(f"making the material failed (exit code {ended.code}): {ended.err[-2000:]}")
