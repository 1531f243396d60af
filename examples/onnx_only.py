"""Compares two prints with what `fingerprint-accel export MODEL --onnx model.onnx` wrote.

Needs onnxruntime, numpy and Pillow: python examples/onnx_only.py model.onnx a.png b.png 500
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image

PPI = 300  # at which the model was trained


def canvas(path, ppi, side):
    """The image in the middle of side x side white pixels at PPI: (side, side) uint8, ridges dark."""
    image = Image.open(path).convert("L")
    size = (round(image.width * PPI / ppi), round(image.height * PPI / ppi))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    page = Image.new("L", (side, side), 255)
    page.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(page)


def embed(model, paths, ppi):
    """(N, D) float32 of unit length, one line per image file."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    side = session.get_inputs()[0].shape[1]
    canvases = np.stack([canvas(path, ppi, side) for path in paths])
    return session.run(["embeddings"], {"images": canvases})[0]


if __name__ == "__main__":
    model, a, b, ppi = sys.argv[1:]
    embeddings = embed(model, [a, b], int(ppi))
    print(f"similarity {embeddings[0] @ embeddings[1]:.3f}")
