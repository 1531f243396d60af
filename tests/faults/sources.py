"""Make one valid file of each format that the package reads from users, for `fuzzing`."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np


def ridges(phase: float, side: int = 200) -> np.ndarray:
    """Return an image (side, side) uint8 that looks like the print of a finger at 500 ppi."""
    y, x = np.mgrid[:side, :side]
    inside = (x - side / 2) ** 2 + (y - side / 2) ** 2 < (0.42 * side) ** 2
    bent = x / 1.5 + y / (5 + 4 * phase) + 3 * np.sin(y / 40 + phase)
    return np.where(inside, 128 + 100 * np.cos(bent + phase), 255).astype(np.uint8)


def image(kind: str, side: int = 150, **options: object) -> bytes:
    """Return an image file with the picture of a print."""
    from PIL import Image

    file = io.BytesIO()
    picture = ridges(1, side)
    deep = Image.fromarray(picture.astype(np.uint16) * 257)
    bits = options.pop("bits", 8)
    drawn = {8: Image.fromarray(picture), 16: deep, 1: Image.fromarray(picture).convert("1")}[bits]
    if kind == "WSQ":
        import wsq  # noqa: F401  (registers WSQ with Pillow)
    drawn.save(file, kind, **options)
    return file.getvalue()


def points(count: int = 5) -> np.ndarray:
    """Return minutiae (count, 4) inside an image of 150 pixels."""
    rng = np.random.default_rng(0)
    return np.column_stack([rng.uniform(30, 120, (count, 2)), rng.uniform(0, 6, count), rng.uniform(0, 1, count)])


def _minutiae(suffix: str) -> bytes:
    from template_files import WRITERS

    return WRITERS[suffix](points().astype(np.float32), 150, 150)


def _transaction(kind: int) -> bytes:
    from record_files import incits_minutiae, transaction, type_2, type_4, type_14

    grey = ridges(1, 150)
    some = [(x, y, np.degrees(angle), quality) for x, y, angle, quality in points().tolist()]
    record = type_4(1, grey, 2) if kind == 4 else type_14(1, grey, 2, "NONE")
    return transaction(type_2(f018="Doe"), record, incits_minutiae(1, some, 500))


def _slap() -> bytes:
    from record_files import transaction, type_14

    thumbs = [np.pad(ridges(finger, 260), ((20, 60), (20, 20)), constant_values=255) for finger in range(2)]
    return transaction(type_14(1, np.hstack(thumbs), 15, "PNG"))


def _finger_image(version: str) -> bytes:
    import record_files

    grey = ridges(1, 150)
    views = [(grey, 2, "NONE"), (grey, 7, "NONE")]
    if version == "incits":
        return record_files.iso_2005(views, incits=True)
    return record_files.iso_2005(views) if version == "2005" else record_files.iso_2011(views, certified=True)


def _pairs() -> bytes:
    rows = [b"%d/1,%d/2,%d\n" % (one, two, one == two) for one in range(1, 5) for two in range(1, 5)]
    return b"reference,probe,mated\n" + b"".join(rows)


def _flx_pairs() -> bytes:
    first = {"array_subject": [0, 1, 2, 3], "array_impression": [0, 0, 0, 0]}
    second = {"array_subject": [0, 1, 3, 2], "array_impression": [1, 1, 1, 1]}
    return json.dumps({"array_sample1": first, "array_sample2": second}).encode()


def _listing() -> bytes:
    rows = ["path,finger,impression,ppi,position,person"]
    rows += [f"{finger}_1.png,{finger},1,500,{finger},anna" for finger in range(1, 5)]
    return "\n".join(rows).encode() + b"\n"


def _flx() -> bytes:
    import torch

    weights = {"texture_branch.1.weight": torch.ones(4, 3), "trunk.0.bias": torch.zeros(8)}
    file = io.BytesIO()
    torch.save({"model_state_dict": weights, "loss_state_dict": {}}, file)
    return file.getvalue()


ACCELERATE = b"""compute_environment: LOCAL_MACHINE
distributed_type: 'NO'
downcast_bf16: 'no'
machine_rank: 0
mixed_precision: 'no'
num_machines: 1
num_processes: 1
rdzv_backend: static
same_network: true
use_cpu: true
"""
FILES: dict[str, Callable[[], bytes]] = {
    "image.png": lambda: image("PNG"),
    "image-16.png": lambda: image("PNG", bits=16),
    "image.jpg": lambda: image("JPEG", quality=90),
    "image.bmp": lambda: image("BMP"),
    "image.tif": lambda: image("TIFF", compression="tiff_lzw"),
    "image-g4.tif": lambda: image("TIFF", bits=1, compression="group4"),
    "image.jp2": lambda: image("JPEG2000"),
    "image.gif": lambda: image("GIF"),
    "image.pgm": lambda: image("PPM"),
    "image.webp": lambda: image("WEBP", lossless=True),
    "image.wsq": lambda: image("WSQ"),
    "minutiae.xyt": lambda: _minutiae(".xyt"),
    "minutiae.min": lambda: _minutiae(".min"),
    "minutiae.mnt": lambda: _minutiae(".mnt"),
    "minutiae.iso": lambda: _minutiae(".iso"),
    "minutiae.fmr": lambda: _minutiae(".fmr"),
    "minutiae.incits378": lambda: _minutiae(".incits378"),
    "minutiae.ansi": lambda: _minutiae(".ansi"),
    "minutiae.isocc": lambda: _minutiae(".isocc"),
    "iso-2005.fir": lambda: _finger_image("2005"),
    "iso-2011.fir": lambda: _finger_image("2011"),
    "incits-381.fir": lambda: _finger_image("incits"),
    "type-4.an2": lambda: _transaction(4),
    "type-14.an2": lambda: _transaction(14),
    "slap.an2": _slap,
    "listing.csv": _listing,
    "pairs.csv": _pairs,
    "pairs.json": _flx_pairs,
    "best_model.pyt": _flx,
    "default_config.yaml": lambda: ACCELERATE,
    "key": lambda: b"0123456789abcdef" * 4 + b"\n",
}


def make_files(folder: Path) -> None:
    """Write the files of all formats to a folder."""
    folder.mkdir(exist_ok=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content())
        (folder / name).chmod(0o600)


def make_subjects(dataset: Path, file: Path) -> None:
    """Write a csv file that gives each finger of a dataset a subject."""
    from fingerprint_accel.data.shards import open_dataset

    keys = open_dataset(dataset).key_of_finger
    file.write_text("finger_key,subject\n" + "".join(f"{key},person{row}\n" for row, key in enumerate(keys)))
