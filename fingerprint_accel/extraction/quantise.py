"""Quantise the convolutions of an exported ONNX model to 8 bits, with ranges that are measured on example prints.

The method is static post-training quantisation (Jacob et al. 2018, arXiv 1712.05877) by `onnxruntime.quantization`:
weights are int8 with a scale for each output channel, and activations are uint8 with a scale and a zero point for each
tensor. onnxruntime fuses the inserted QuantizeLinear and DequantizeLinear nodes into integer convolutions.
"""

from __future__ import annotations

import importlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fingerprint_accel.errors import UserError
from fingerprint_accel.privacy import private_files

ALIGNMENT = "model.alignment."  # prefix of the weights of the alignment network
HEAD = (".vectors.weight", ".contact.weight")  # ends of the weights of the dense head
FLOAT_LAYERS = 1  # convolutions of the trunk, one after the other, that are not quantised
FOLLOWING = ("Relu", "MaxPool", "AveragePool", "Concat")  # operators that run on the outputs of convolutions
BATCH_SIZE = 8


@private_files()
def quantised(content: bytes, images: np.ndarray) -> Any:
    """Quantise an ONNX model that `export.onnx_file` has made.

    These layers stay in float32: the preprocessing, the alignment network, the first convolution, the last sum of a
    residual block and the head. The alignment network selects the most probable pose, so that a small error can change
    the whole template. The first convolution has a single input channel, for which integer kernels are not faster.

    The range of a tensor is the mean over batches of the smallest and of the largest value in a batch. The range over
    all batches would depend on the most unusual print. It changed the EER of the model `small` on FVC2002 DB3_B by 0.25
    points, the mean changes it by 0.00.

    Args:
        content: content of the ONNX file.
        images: (N, canvas, canvas) uint8 canvases on which the ranges of the activations are measured.

    Returns:
        Quantised `onnx.ModelProto`.

    Raises:
        UserError: if the network has no convolution to quantise.
        OSError: if the temporary files cannot be written.
    """
    onnx: Any = importlib.import_module("onnx")
    quantization: Any = importlib.import_module("onnxruntime.quantization")
    prepare: Any = importlib.import_module("onnxruntime.quantization.shape_inference").quant_pre_process
    with tempfile.TemporaryDirectory() as folder:
        given, plain, small = (Path(folder) / name for name in ("given.onnx", "float32.onnx", "int8.onnx"))
        given.write_bytes(content)
        prepare(given, plain, skip_symbolic_shape=True)  # folds constants, and infers shapes
        chosen = nodes_to_quantise(onnx.load(plain))
        if not chosen:
            raise UserError("the network has no convolutions that could be quantised; export it without --int8")
        advice = logging.getLogger()  # the package logs advice on steps that were done above to the root logger
        level = advice.level
        advice.setLevel(logging.ERROR)
        try:
            quantization.quantize_static(
                plain,
                small,
                _Reader(images),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=["Conv", *FOLLOWING],
                nodes_to_quantize=chosen,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
                extra_options={"CalibMovingAverage": True},  # the mean over batches
            )
        finally:
            advice.setLevel(level)
        return onnx.load(small)


def nodes_to_quantise(model: Any) -> list[str]:
    """Return the names of the nodes of an ONNX model that `quantised` quantises.

    These are the convolutions of the trunk behind the first `FLOAT_LAYERS`, and the nodes of the types `FOLLOWING` all
    of whose inputs come from them.

    Args:
        model: `onnx.ModelProto` with its nodes in topological order.
    """
    weights = {each.name: each.dims for each in model.graph.initializer}
    layers: dict[str, int] = {}  # number of convolutions in front of a tensor, from the image on
    chosen, reached = [], set()
    for node in model.graph.node:
        layer = max((layers.get(name, 0) for name in node.input), default=0)
        if node.op_type == "Conv":
            name = node.input[1]
            layer = 1 if name in weights and weights[name][1] == 1 else layer + 1  # an image has one channel
            takes = name in weights and layer > FLOAT_LAYERS
            takes = takes and not name.startswith(ALIGNMENT) and not name.endswith(HEAD)
        else:
            takes = node.op_type in FOLLOWING and all(name in reached for name in node.input)
        layers.update(dict.fromkeys(node.output, layer))
        if takes:
            chosen.append(node.name)
            reached.update(node.output)
    return chosen


class _Reader:
    """Iterator over batches of canvases, with the interface of `onnxruntime.quantization.CalibrationDataReader`.

    Args:
        images: (N, canvas, canvas) uint8.
    """

    def __init__(self, images: np.ndarray) -> None:
        self.batches: Iterator[np.ndarray] = iter(np.split(images, range(BATCH_SIZE, len(images), BATCH_SIZE)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the inputs of the next batch, or None after the last one."""
        images = next(self.batches, None)
        return None if images is None else {"images": images}
