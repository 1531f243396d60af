"""Export a model with its preprocessing to ONNX or `torch.export`, and compare the outputs with the original model."""

from __future__ import annotations

import importlib
import io
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fingerprint_accel.durable import write_file
from fingerprint_accel.errors import UserError, write_errors
from fingerprint_accel.extraction.centring import centred
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.outputs import mark
from fingerprint_accel.preprocess.geometric import turned_and_shifted, upright

OPSET = 20  # the first opset whose bilinear GridSample gives the same results in all runtimes
LARGEST_BATCH = 4096
TRIED = (1, 3, 8)  # batch sizes for which the output of an exported file is compared with the original
ROUNDS = 5  # number of timed runs
KIND = "exported model"  # mark in the files, by which a later export recognises that it may replace them


class Embedder(nn.Module):
    """Traceable module that maps images to embeddings: preprocessing, alignment, network and centring of an extractor.

    Each print is embedded in a single pose, its original rotation and position. There is no loop over the batch, so the
    batch size can be dynamic.

    Args:
        extractor: model to export.
    """

    center: torch.Tensor | None

    def __init__(self, extractor: FingerprintExtractor) -> None:
        super().__init__()
        self.model, self.preprocessor = extractor.running, extractor.preprocessor
        self.crop = float(extractor.preprocess_config.crop)
        self.alignment_network = extractor.alignment_network
        self.register_buffer("center", extractor.center)
        self.branches, self.cells = len(extractor.model.branch_dims), extractor.cells

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embed a batch of canvases, which are square images with one print each.

        Args:
            images: (B, canvas, canvas) uint8, ridges dark.

        Returns:
            (B, D) float32 of unit length.
        """
        pose = upright(1, self.crop, images.device).repeated(images.shape[0])
        inputs = self.preprocessor.pixels(images, pose)
        if self.alignment_network is None:
            output = self.model(inputs)
        else:  # the same operations as in `FingerprintExtractor.alignment`
            pose = turned_and_shifted(self.alignment_network.transform(inputs), self.crop)
            output = self.model.describe(self.preprocessor.pixels(images, pose))
        return centred(output.embedding, self.center, self.branches, self.cells)


def traced(extractor: FingerprintExtractor) -> torch.export.ExportedProgram:
    """Trace a model with `torch.export`; the batch size of the program can vary up to `LARGEST_BATCH`."""
    embedder = Embedder(extractor).cpu().eval()
    example = torch.zeros(2, extractor.canvas, extractor.canvas, dtype=torch.uint8)
    with torch.no_grad():
        embedder(example)  # fills cached tables, which would otherwise contain traced tensors
        batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
        return torch.export.export(embedder, (example,), dynamic_shapes=({0: batch},))


def save_torch(extractor: FingerprintExtractor, program: torch.export.ExportedProgram, path: Path) -> str:
    """Write a `torch.export` file, and compare its embeddings and speed with the original model.

    `torch.export.load` opens the file without this package.

    Args:
        extractor: original model.
        program: traced model, from `traced`.
        path: file to write.

    Returns:
        Text with the size of the file, the largest difference from the original embeddings and the time per print.

    Raises:
        UserError: if the file cannot be written.
    """
    buffer = io.BytesIO()  # if the disk is full, the writer of torch ends the process
    torch.export.save(program, buffer, extra_files={mark(KIND): ""})
    module = torch.export.load(buffer).module()
    found = _checked(extractor, lambda images: module(torch.from_numpy(images)).detach().numpy())
    return _written(path, buffer.getvalue(), found)


def save_onnx(extractor: FingerprintExtractor, program: torch.export.ExportedProgram, path: Path) -> str:
    """Write an ONNX file, and compare its embeddings and speed in onnxruntime with the original model.

    The file has the input `images`, (N, canvas, canvas) uint8, and the output `embeddings`, (N, D) float32.

    Args:
        extractor: original model.
        program: traced model, from `traced`.
        path: file to write.

    Returns:
        Text with the size of the file, the largest difference from the original embeddings and the time per print.

    Raises:
        UserError: if onnx, onnxscript or onnxruntime is not installed, or the file cannot be written.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime 1.29 and later send usage data unless this is set before
    try:
        runtime: Any = importlib.import_module("onnxruntime")
        for name in ("onnx", "onnxscript"):
            importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install 'fingerprint-accel[onnx]'") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["embeddings"],
            verbose=False,
        )
    assert written is not None, "the new exporter returns a program"
    written.model.metadata_props["written_by"] = mark(KIND)
    content = written.model_proto.SerializeToString()
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = _checked(extractor, lambda images: session.run(["embeddings"], {"images": images})[0])
    return _written(path, content, found)


def _written(path: Path, content: bytes, found: str) -> str:
    """Write an exported file, and return its size and the results of its check as text.

    Raises:
        UserError: if the file cannot be written. An earlier file then stays as it is.
    """
    with write_errors():
        write_file(path, content)
    return f"{len(content) / 1e6:.1f} MB, {found}"


def _checked(extractor: FingerprintExtractor, run: Callable[[np.ndarray], np.ndarray]) -> str:
    """Run an exported file and the original model on random images; return the largest difference and speed as text.

    Args:
        extractor: original model.
        run: function that embeds images (N, canvas, canvas) uint8 with the exported file.
    """
    extractor = extractor.cpu()

    def original(images: np.ndarray) -> np.ndarray:
        return extractor(torch.from_numpy(images)).numpy()

    generator, largest = np.random.default_rng(0), 0.0
    for count in TRIED:
        images = generator.integers(0, 256, (count, extractor.canvas, extractor.canvas), np.uint8)
        largest = max(largest, float(np.abs(run(images) - original(images)).max()))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):  # alternately, so that other load on the machine affects both equally
        for function, found in zip((run, original), times, strict=True):
            started = time.perf_counter()
            function(images)
            found.append(1000 * (time.perf_counter() - started) / len(images))
    ours, theirs = map(statistics.median, times)
    return (
        f"differs from PyTorch by at most {largest:.1e}; {ours:.1f} ms per print in batches of {TRIED[-1]}, PyTorch "
        f"{theirs:.1f} ms"
    )
