"""Compare two prints with an exported model, using only onnxruntime, numpy and Pillow.

fingerprint-accel export small --onnx model.onnx
python examples/onnx_only.py model.onnx a.png b.png 500
"""

import os
import sys

import numpy as np
from PIL import Image

PPI = 300  # resolution of the prints that the model was trained on


def canvas(path: str, ppi: int, side: int) -> np.ndarray:
    """Return the image resampled to `PPI`, in the middle of a white canvas (side, side) uint8, ridges dark."""
    image = Image.open(path).convert("L")
    size = (round(image.width * PPI / ppi), round(image.height * PPI / ppi))
    image = image.resize(size, Image.Resampling.BICUBIC)
    page = Image.new("L", (side, side), 255)
    page.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(page)


def embed(model: str, paths: list[str], ppi: int) -> np.ndarray:
    """Embed image files of `ppi` pixels per inch: (N, D) float32 of unit length, one row for each file."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime 1.29 and later send usage data unless this is set before
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    side = session.get_inputs()[0].shape[1]
    canvases = np.stack([canvas(path, ppi, side) for path in paths])
    embeddings: np.ndarray = session.run(["embeddings"], {"images": canvases})[0]
    return embeddings


if __name__ == "__main__":
    model, a, b, ppi = sys.argv[1:]
    embeddings = embed(model, [a, b], int(ppi))
    print(f"similarity {embeddings[0] @ embeddings[1]:.3f}")
