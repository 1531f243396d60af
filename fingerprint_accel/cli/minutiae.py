"""The verb `minutiae`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional


def minutiae(
    images: Positional[list[Path]],
    model: str,
    out: Path,
    format: Literal["xyt", "iso"] = "xyt",
    ppi: int = 500,
    threshold: float = 0.2,
) -> None:
    """Finds the minutiae of prints, with a model that has a minutia branch; writes one file per image.

    Models of the variants Minu, TexMinu, LocMinu and LocTexMinu draw where minutiae lie. The bundled one has no such
    branch; `--model.variant TexMinu` of the recipes trains one.

      xyt   as NIST's mindtct writes: x, y from the bottom, degrees, score in percent
      iso   ISO/IEC 19794-2:2005, at most 255 minutiae

    fingerprint-accel minutiae scans/*.png --model runs/minutiae --out minutiae

    fingerprint-accel minutiae a.wsq --model runs/minutiae --out templates --format iso --ppi 500

    Args:
        images: Image files, ridges dark.
        model: Run folder (its best checkpoint), checkpoint folder, or exported model folder.
        out: Folder to write; files are called as their images, with another suffix.
        format: What to write, see above.
        ppi: Resolution of the images, pixels per inch.
        threshold: Least score, 0 to 1: lower finds more minutiae, and more that are none.
    """
    from fingerprint_accel.extraction.minutiae_readout import minutiae_command

    minutiae_command(images, model, out, format, ppi, threshold)
