"""Verbs that apply a model to prints: `compare`, `extract`, `minutiae`, `demo`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import median
from typing import Annotated, Literal

from tyro.conf import Positional

from fingerprint_accel.cli.arguments import (
    Cluster,
    Device,
    Flag,
    Inverted,
    Mirror,
    Model,
    OutFolder,
    Overwrite,
    Paths,
    Ppi,
    Protect,
    Switch,
    arg,
)
from fingerprint_accel.durable import write_file
from fingerprint_accel.errors import require
from fingerprint_accel.outputs import check_folder, check_picture
from fingerprint_accel.text import aligned


def compare(
    reference: Annotated[Positional[Path], arg("REFERENCE")],
    probe: Annotated[Positional[Path], arg("PROBE")],
    model: Model = "small",
    ppi: Ppi = 500,
    poses: Switch = True,
    out: Annotated[Path | None, arg("OUT", default="no picture")] = None,
    probe_ppi: Annotated[int, arg("PPI", default="as --ppi")] = 0,
    inverted: Inverted = "auto",
    mirror: Mirror = False,
) -> None:
    """Compare two prints and show their similarity.

    The similarity lies between -1 and 1. For a model that was calibrated on real prints (see `calibrate`), the output
    also shows whether the two prints match at several false match rates (FMR). The bundled models are not calibrated.

    Examples:
      fingerprint-accel compare a.png b.png
      fingerprint-accel compare a.bmp b.wsq --ppi 569 --probe-ppi 500 --out pair.png
      fingerprint-accel compare card.an2#4 slap.an2#3-07

    Args:
        reference: Image of a print. FILE#RECORD is one record of a file, and FILE#RECORD-POSITION one finger of a slap.
        probe: The other print, given in the same way.
        probe_ppi: Resolution of PROBE, if it differs from that of REFERENCE.
        poses: Also compare rotated and shifted copies, and show the best similarity.
        out: PNG file to write: both prints side by side, and one on top of the other.
    """
    from fingerprint_accel.data.print_file import Reading
    from fingerprint_accel.extraction.comparison import compare_prints
    from fingerprint_accel.extraction.extractor import open_extractor
    from fingerprint_accel.extraction.poses import UPRIGHT

    require(ppi > 0, f"--ppi {ppi}: must be above 0")
    if out is not None:
        check_picture(out, (reference, probe))
    extractor = open_extractor(model)
    extractor.reading = Reading(ppi, inverted, mirror)
    found = compare_prints(extractor, reference, probe, ppi, None if poses else UPRIGHT, probe_ppi)
    rows = found.rows()
    if out is not None:
        from fingerprint_accel.extraction.pair_picture import pair_png  # matplotlib takes a second to import

        write_file(out, pair_png(found, (reference.name, probe.name), extractor))
        rows.append(("picture", str(out)))
    print(f"{aligned(rows)}\n{found.basis}")


def extract(
    data: Annotated[Positional[Path], arg("DATA")],
    out: OutFolder,
    model: Model = "small",
    ppi: Ppi = 500,
    template: Literal["float32", "int8", "binary"] = "float32",
    length: Annotated[int, arg("N", default="all")] = 0,
    minimum_quality: Annotated[float, arg("QUALITY")] = 0.0,
    batch_size: Annotated[int, arg("N", default="64 on a GPU, 8 per thread on a CPU")] = 0,
    bf16: Flag = False,
    inverted: Inverted = "auto",
    mirror: Mirror = False,
    protect: Protect = None,
    cluster: Cluster = "",
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Compute the embeddings of all prints of a dataset or folder.

    All GPUs of the machine are used, or else all CPU cores. The results do not depend on the number of GPUs or cores.
    An interrupted or killed command continues when you run it again.

    Examples:
      fingerprint-accel extract datasets/db1 --out embeddings/db1
      fingerprint-accel extract scans --out embeddings/scans --template int8
      fingerprint-accel extract datasets/db1 --out embeddings/db1 --model runs/mine

    OUT contains:
      embeddings-*.safetensors  embeddings (N, D), quality (N), finger (N) and
                                impression (N); finger is -1 for image files
      prints.parquet            source of each row
      failed.jsonl              prints without an embedding, and the reasons; their
                                rows in embeddings-* contain only zeros
      config.json               model, template, arguments, versions, checksums

    Args:
        data: Dataset folder, or folder of images including its subfolders.
        out: Folder to write.
        template: Number format: float32 (4 bytes per element), int8 (1 byte) or binary (1 bit, the sign).
        length: Keep only this many elements of each branch. Needs a model that was trained for this length.
        minimum_quality: Prints below this quality (0 to 1) count as failures to acquire.
        batch_size: Number of prints in a batch.
        bf16: Run the network in bf16, which is faster on hardware that supports it.
    """
    from fingerprint_accel.extraction.bulk import Options, extract_all

    options = Options(template, length, minimum_quality, batch_size, bf16, inverted, mirror, protect)
    extract_all(data, out, model, ppi, options, cluster=cluster, device=device, overwrite=overwrite).show()


def minutiae(
    images: Annotated[Paths, arg("IMAGE ...")],
    model: Annotated[str, arg("MODEL")],
    out: OutFolder,
    format: Literal["xyt", "iso"] = "xyt",
    ppi: Ppi = 500,
    threshold: Annotated[float, arg("SCORE")] = 0.2,
) -> None:
    """Find the minutiae of prints and write a file for each image.

    The model needs a minutia branch: the variants Minu, TexMinu, LocMinu and LocTexMinu have one. The bundled models
    have no minutia branch. To train such a model, give --model.variant TexMinu to a recipe.

    Examples:
      fingerprint-accel minutiae scans/*.png --model runs/mine --out minutiae
      fingerprint-accel minutiae a.wsq --model runs/mine --out iso --format iso

    Formats:
      xyt   as NIST's mindtct: x, y from the bottom, degrees, score in percent
      iso   ISO/IEC 19794-2:2005, at most 255 minutiae

    Args:
        images: Image files.
        model: Run folder, checkpoint folder, or exported model folder.
        out: Folder to write. Files have the names of the images with the suffix of the format.
        format: File format, see above.
        threshold: Lowest score of a minutia (0 to 1). Lower values find more minutiae, but more of them are false.
    """
    from fingerprint_accel.extraction.extractor import open_extractor
    from fingerprint_accel.extraction.minutiae_readout import FOLDER, read_minutiae, write_minutiae

    require(bool(images), "no IMAGE given: name one or more image files")
    require(ppi > 0, f"--ppi {ppi}: must be above 0")
    require(0 < threshold <= 1, f"--threshold {threshold}: must be above 0 and at most 1")
    stem, count = Counter(image.stem for image in images).most_common(1)[0]
    require(
        count == 1, f"{count} images are named {stem}, so their files would overwrite each other; use one OUT for each"
    )
    check_folder(out, FOLDER)
    extractor = open_extractor(model)
    found = read_minutiae(extractor, images, ppi, threshold, progress=len(images) > 16)
    write_minutiae(out, images, found, {"format": format, "ppi": ppi, "model": extractor.identity})
    counts = sorted(map(len, found))
    print(f"{out}: minutiae of {len(images):,} prints, {counts[0]} to {counts[-1]}, median {median(counts):.0f}")


def demo(
    model: Model = "small",
    gallery: Annotated[tuple[str, ...], arg("GALLERY ...", default="none")] = (),
    port: Annotated[int, arg("PORT")] = 7860,
    protect: Protect = None,
) -> None:
    """Open a page in the browser that compares and searches prints.

    Open the printed address. Drop two images on the page to see their similarity and how they overlap. The page is
    only served to this machine, and only to those who know the whole address. It loads nothing from the internet.
    Dropped images are kept in memory only. Press Ctrl-C to stop the server.

    Examples:
      fingerprint-accel demo
      fingerprint-accel demo --gallery known --model runs/mine --port 8000

    Args:
        gallery: Galleries to search, made by `enroll`: folders, or postgresql://USER@HOST/DATABASE. The page cannot
            open other galleries.
        port: Port of the page.
    """
    from fingerprint_accel.extraction.demo import demo_command

    demo_command(model, gallery, port, protect)
