"""Export a model with its preprocessing to ONNX or `torch.export`, and compare the outputs with the original model."""

from __future__ import annotations

import copy
import importlib
import io
import os
import statistics
import time
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fingerprint_accel.durable import write_file
from fingerprint_accel.errors import UserError, write_errors
from fingerprint_accel.extraction.centring import centred
from fingerprint_accel.extraction.example_prints import example_prints
from fingerprint_accel.extraction.export_layers import replace_pooling
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.int8_check import Run, changes
from fingerprint_accel.extraction.quantise import quantised
from fingerprint_accel.models.alignment import AlignmentNetwork
from fingerprint_accel.outputs import mark
from fingerprint_accel.preprocess.geometric import turned_and_shifted

OPSET = 20  # the first opset whose bilinear GridSample gives the same results in all runtimes
LARGEST_BATCH = 4096
TRIED = (1, 3, 8)  # batch sizes for which the output of an exported file is compared with the original
SHOWN = (4, 2)  # fingers, and prints of each, on which it is compared and timed
CALIBRATION = (24, 4)  # fingers, and prints of each, on which the ranges of activations are measured for int8
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
        self.model, self.preprocessor = copy.deepcopy(extractor.running), extractor.preprocessor
        self.crop = float(extractor.preprocess_config.crop)
        self.aligns = extractor.alignment_network is not None
        self.register_buffer("center", extractor.center)
        self.branches, self.cells = len(extractor.model.branch_dims), extractor.cells

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embed a batch of canvases, which are square images with one print each.

        Args:
            images: (B, canvas, canvas) uint8, ridges dark.

        Returns:
            (B, D) float32 of unit length.
        """
        inputs = self.preprocessor.pixels(images, None)
        if not self.aligns:
            output = self.model(inputs)
        else:  # the same operations as in `FingerprintExtractor.alignment`
            assert isinstance(self.model.alignment, AlignmentNetwork)
            pose = turned_and_shifted(self.model.alignment.transform(inputs), self.crop)
            output = self.model.describe(self.preprocessor.pixels(images, pose))
        return centred(output.embedding, self.center, self.branches, self.cells)


def traced(extractor: FingerprintExtractor) -> torch.export.ExportedProgram:
    """Trace a model with `torch.export`; the batch size of the program can vary up to `LARGEST_BATCH`."""
    embedder = Embedder(extractor).cpu().eval()
    example = torch.zeros(2, extractor.canvas, extractor.canvas, dtype=torch.uint8)
    with torch.no_grad():
        replace_pooling(embedder.model, lambda: embedder(example))  # also fills cached tables, before tracing
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
    run_of = _onnxruntime()
    content = onnx_file(program)
    return _written(path, content, _checked(extractor, run_of(content)))


def save_int8(extractor: FingerprintExtractor, program: torch.export.ExportedProgram, path: Path) -> str:
    """Write an ONNX file with 8-bit convolutions, and compare it in onnxruntime with the original model.

    The input and the output are those of `save_onnx`. Synthetic prints are rendered for the ranges of the activations,
    and prints of other fingers for the comparison; see `quantise` and `int8_check`.

    Args:
        extractor: original model.
        program: traced model, from `traced`.
        path: file to write.

    Returns:
        Text with the size of the file, how similarities change, and the time per print.

    Raises:
        UserError: if onnx, onnxscript or onnxruntime is not installed, the network has no convolutions, similarities
            change by more than `int8_check.LARGEST_CHANGE`, or the file cannot be written.
    """
    run_of = _onnxruntime()
    plain = onnx_file(program)
    with write_errors():
        found = quantised(plain, example_prints(extractor.print_info, 0, *CALIBRATION))
    change = changes(extractor, run_of(found.SerializeToString()))
    change.check()
    for key, value in change.described(CALIBRATION[0] * CALIBRATION[1]).items():
        found.metadata_props.add(key=key, value=value)
    content = found.SerializeToString()
    images = example_prints(extractor.print_info, 0, *SHOWN)
    ours, theirs = milliseconds(run_of(content), run_of(plain), images)
    return _written(
        path,
        content,
        f"{change.text()}; {ours:.1f} ms per print in batches of {len(images)}, float32 ONNX {theirs:.1f} ms",
    )


def _onnxruntime() -> Callable[[bytes], Run]:
    """Return a function that opens the content of an ONNX file and returns the function that embeds canvases with it.

    Raises:
        UserError: if onnx, onnxscript or onnxruntime is not installed.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime 1.29 and later send usage data unless this is set before
    try:
        runtime: Any = importlib.import_module("onnxruntime")
        for name in ("onnx", "onnxscript"):
            importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install 'fingerprint-accel[onnx]'") from error

    def run_of(content: bytes) -> Run:
        session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
        return lambda images: session.run(["embeddings"], {"images": images})[0]

    return run_of


@lru_cache(maxsize=1)  # for a command that writes both files
def onnx_file(program: torch.export.ExportedProgram) -> bytes:
    """Return the content of the ONNX file of a traced model."""
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
    content: bytes = written.model_proto.SerializeToString()
    return content


def _written(path: Path, content: bytes, found: str) -> str:
    """Write an exported file, and return its size and the results of its check as text.

    Raises:
        UserError: if the file cannot be written. An earlier file then stays as it is.
    """
    with write_errors():
        write_file(path, content)
    return f"{len(content) / 1e6:.1f} MB, {found}"


def _checked(extractor: FingerprintExtractor, run: Run) -> str:
    """Run an exported file and the original model on rendered prints; return the largest difference and speed as text.

    Args:
        extractor: original model.
        run: function that embeds canvases with the exported file.
    """
    extractor, largest = extractor.cpu(), 0.0

    def original(images: np.ndarray) -> np.ndarray:
        return extractor(torch.from_numpy(images)).numpy()

    images = example_prints(extractor.print_info, 0, *SHOWN)
    for count in TRIED:
        largest = max(largest, float(np.abs(run(images[:count]) - original(images[:count])).max()))
    ours, theirs = milliseconds(run, original, images)
    return (
        f"differs from PyTorch by at most {largest:.1e}; {ours:.1f} ms per print in batches of {len(images)}, PyTorch "
        f"{theirs:.1f} ms"
    )


def milliseconds(first: Run, second: Run, images: np.ndarray) -> tuple[float, float]:
    """Return the median times per print of two functions that embed canvases.

    Args:
        first, second: functions that embed canvases.
        images: (N, canvas, canvas) uint8.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):  # alternately, so that other load on the machine affects both equally
        for function, found in zip((first, second), times, strict=True):
            started = time.perf_counter()
            function(images)
            found.append(1000 * (time.perf_counter() - started) / len(images))
    return statistics.median(times[0]), statistics.median(times[1])
