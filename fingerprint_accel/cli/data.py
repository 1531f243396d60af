"""Verbs for datasets: `synth`, `import`, `merge`, `inspect`, `verify`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from fingerprint_accel.cli.arguments import (
    Canvas,
    Cluster,
    Dataset,
    DatasetPpi,
    Device,
    Flag,
    Inverted,
    Key,
    Mirror,
    Model,
    OutFolder,
    Overwrite,
    Paths,
    Ppi,
    Seed,
    Workers,
    arg,
)
from fingerprint_accel.errors import UserError, require

Enhance = Annotated[Flag, tyro.conf.arg(help="Store prints with enhanced ridges (Gabor filters).")]
Layout = Literal["fvc", "folders", "flx", "nist", "socofing", "records", "csv"]


def synth(
    out: OutFolder,
    fingers: Annotated[int, arg("N")],
    impressions: Annotated[int, arg("N")],
    seed: Seed = 0,
    sensors: Annotated[tuple[str, ...], arg("SENSOR ...")] = ("optical", "capacitive", "thermal", "ink"),
    quality: Annotated[str, arg("QUALITY")] = "default",
    partial: Annotated[float | None, arg("SHARE", default="0.4 for --quality mixed, otherwise 0")] = None,
    dataset_ppi: DatasetPpi = 300,
    canvas: Canvas = 320,
    first_finger: Annotated[int, arg("N")] = 0,
    siblings: Annotated[int, arg("N")] = 1,
    persons: Flag = False,
    workers: Workers = 0,
    cluster: Cluster = "",
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Generate a dataset of synthetic fingerprints.

    The dataset stores the exact minutiae, pose and contact area of every print. The same arguments always give the
    same prints. An interrupted or killed command continues when you run it again.

    Examples:
      fingerprint-accel synth --out datasets/train --fingers 1000 --impressions 8
      fingerprint-accel synth --out datasets/touch --fingers 200 --impressions 4 \\
          --sensors capacitive --quality poor

    Sensors. Each print is captured by a sensor chosen at random:
      optical     glass prism: even, sharp, dark ridges
      capacitive  silicon chip: small area, noise, fixed stripes
      thermal     swept silicon: broad ridges, soft shading
      ink         ink on paper, scanned: uneven ink, large area
      latent      mark lifted from a surface: faint, smeared, dirty

    Qualities. The quality sets how strongly prints are rotated, cropped, pressed, dried and soiled:
      clean       weak effects
      default     a usual capture
      poor        strong effects
      mixed       a random quality for each print, and 40 % partial touches

    Args:
        out: Dataset folder to write.
        fingers: Number of fingers.
        impressions: Number of prints of each finger.
        seed: Random seed. Each seed gives different fingers.
        sensors: Sensors to choose from, see above.
        quality: Quality of the prints, see above.
        partial: Share of prints (0 to 1) that show only a part of the finger.
        first_finger: Index of the first finger. 1000 continues a dataset of 1000 fingers.
        siblings: Number of consecutive fingers that differ only in their minutiae.
        persons: Make persons: every ten fingers belong to one, and finger keys state the person and the position.
    """
    from fingerprint_accel.synthesis.sensors import Style
    from fingerprint_accel.synthesis.writing import write_synthetic_dataset

    style = Style(sensors, quality, dataset_ppi, canvas, siblings, partial)
    summary = write_synthetic_dataset(
        out, fingers, impressions, seed, style, first_finger, workers, cluster, device, overwrite, persons=persons
    )
    print(summary.table())


def import_files(
    src: Annotated[Positional[Path], arg("SRC")],
    out: OutFolder,
    layout: Annotated[Layout | None, tyro.conf.arg(metavar="LAYOUT", help_behavior_hint="(or give --names)")] = None,
    names: Annotated[str, arg("REGEX", default="none")] = "",
    key: Key = (),
    ppi: Ppi = 500,
    inverted: Inverted = "auto",
    mirror: Mirror = False,
    raw_size: Annotated[str, arg("WIDTHxHEIGHT", default="none")] = "",
    dataset_ppi: DatasetPpi = 300,
    canvas: Canvas = 320,
    minutiae: Annotated[Path | None, arg("FOLDER", default="beside the images")] = None,
    xyt_kind: Literal["auto", "nist", "m1"] = "auto",
    find_minutiae: Literal["no", "mindtct"] = "no",
    nfiq2: Flag = False,
    encoding: Literal["raw", "lz4"] = "raw",
    enhance: Enhance = False,
    workers: Workers = 0,
    cluster: Cluster = "",
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make a dataset from fingerprint images and ANSI/NIST files.

    Every file below SRC is imported, or listed with a reason in OUT/rejected.jsonl. The same arguments always give the
    same dataset. An interrupted or killed command continues when you run it again.

    Examples:
      fingerprint-accel import scans/DB1_B --out datasets/db1 --layout fvc --ppi 500
      fingerprint-accel import cards --out datasets/cards --layout records
      fingerprint-accel import casia --out datasets/casia \\
          --names "(?P<finger>.+_[LR][0-3])_(?P<impression>[0-4])"

    Layouts. A layout reads finger and impression from the name of each file:
      fvc       101_1.tif                     finger 101, impression 1
      folders   anna-left-thumb/any.png       one folder for each finger
      flx       10_9.png, f0001_01.png        finger and impression, in any folder
      nist      00002302_R_500_roll_01.png    SD300 to SD302: subject and position
      socofing  1__M_Left_index_finger.BMP    altered copies are extra impressions
      records   card.an2                      finger as stated in ANSI/NIST records
      csv       SRC is a csv file with the columns
                path,finger,impression[,ppi][,minutiae][,position]

    For other names, --names takes a regular expression with the groups finger or subject, and optionally impression,
    position and ppi. A position is a code (1 to 10; 13 and 14 for a slap of four fingers) or a word such as
    left_index or R2.

    Args:
        src: Folder of images, or the csv file.
        out: Dataset folder to write.
        layout: How to read finger and impression from file names, see above.
        names: Regular expression for file names without suffix. If it contains a slash, it must match whole paths.
        raw_size: Size of raw pixel files, which have 8 bits per pixel.
        minutiae: Folder of minutiae files: FOLDER/anna/1.iso or FOLDER/1.iso for SRC/anna/1.png.
        xyt_kind: Coordinate convention of .xyt files: as mindtct writes them (nist), or as mindtct -m1 (m1).
        find_minutiae: Find missing minutiae with NIST's detector mindtct (pip install nbis-py).
        nfiq2: Store NFIQ 2 scores, 0 to 100 (pip install nbis-py). Takes about 0.4 s per print.
        encoding: Encoding of the images in the dataset. lz4 is lossless and needs less disk space.
        seed: Random seed of the order of prints in the dataset.
    """
    from fingerprint_accel.data.importing import import_dataset
    from fingerprint_accel.data.print_file import Reading

    kind = "" if xyt_kind == "auto" else xyt_kind
    import_dataset(
        src, out, layout or "", ppi, names=names, key=key,
        reading=Reading(ppi, inverted, mirror, _raw_size(raw_size), kind),
        find_minutiae="" if find_minutiae == "no" else find_minutiae, nfiq2=nfiq2,
        dataset_ppi=dataset_ppi, canvas=canvas, minutiae=minutiae, encoding=encoding,
        enhance=_enhancement(enhance), workers=workers, cluster=cluster, seed=seed, overwrite=overwrite,
    ).show()  # fmt: skip


def _raw_size(text: str) -> tuple[int, int] | None:
    """Parse text of the form WIDTHxHEIGHT into (height, width). Empty text gives None."""
    if not text:
        return None
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or not int(match[1]) * int(match[2]):
        raise UserError(f"--raw-size {text}: give WIDTHxHEIGHT in pixels, for example 388x374")
    return int(match[2]), int(match[1])


def _enhancement(wanted: bool) -> Callable[[Any, int], Any] | None:
    """Return the function that enhances the ridges of a print, or None if `wanted` is False.

    The function needs torch, which is imported only if `wanted` is True.
    """
    if not wanted:
        return None
    from fingerprint_accel.preprocess.enhance import enhance_canvas

    return enhance_canvas


def merge(
    src: Annotated[Paths, arg("SRC ...")],
    out: OutFolder,
    rows_per_shard: Annotated[int, arg("N", default="32 to 1024, for at least 64 shards")] = 0,
    dataset_ppi: Annotated[
        int, arg("PPI", "Resolution of the new dataset, in pixels per inch.", "as the first SRC")
    ] = 0,
    canvas: Annotated[int, arg("PIXELS", "Side of a print in the new dataset, in pixels.", "as the first SRC")] = 0,
    encoding: Annotated[Literal["raw", "lz4"] | None, arg("{raw,lz4}", default="as the first SRC")] = None,
    enhance: Enhance = False,
    join_fingers: Flag = False,
    keep: Annotated[str, arg("REGEX", default="all fingers")] = "",
    drop: Annotated[str, arg("REGEX", default="none")] = "",
    seed: Seed = 0,
    workers: Workers = 0,
    cluster: Cluster = "",
    overwrite: Overwrite = False,
) -> None:
    """Join datasets, select fingers, or change encoding and size.

    Fingers of different SRC stay separate. Keys (names of fingers) that occur in several SRC get the folder name as a
    prefix. An interrupted or killed command continues when you run it again.

    --keep and --drop select fingers by their key. Use them to split a dataset, or to erase a person.

    Examples:
      fingerprint-accel merge datasets/db1 datasets/db2 --out datasets/both
      fingerprint-accel merge datasets/db1 --out datasets/db1-lz4 --encoding lz4
      fingerprint-accel merge datasets/db1 --out datasets/test --keep "10[89]|110"

    Args:
        src: Dataset folders.
        out: Dataset folder to write.
        rows_per_shard: Number of prints per file.
        encoding: Encoding of the images. lz4 is lossless and needs less disk space.
        join_fingers: Treat fingers of different SRC with the same key as one finger.
        keep: Regular expression for the keys of the fingers to merge. It must match a whole key.
        drop: Regular expression for the keys of the fingers to leave out. It must match a whole key.
        seed: Random seed of the order of prints in the dataset.
    """
    from fingerprint_accel.data.merged_rows import MergeOptions
    from fingerprint_accel.data.merging import merge as merge_datasets

    require(bool(src), "no SRC given: name one or more dataset folders")
    options = MergeOptions(
        dataset_ppi, canvas, encoding or "", rows_per_shard, join_fingers, _enhancement(enhance), seed, keep, drop
    )
    merge_datasets(src, out, options, workers=workers, cluster=cluster, overwrite=overwrite).show()


def inspect(
    dataset: Dataset,
    out: Annotated[Path | None, arg("OUT", default="contact_sheet.png, or audit.png")] = None,
    fingers: Annotated[int, arg("N")] = 5,
    minutiae: Flag = False,
    audit: Flag = False,
    model: Model = "small",
) -> None:
    """Print the contents of a dataset and draw some of its prints.

    With --audit the dataset is searched for errors: identical images, one finger under two keys, two fingers under one
    key, prints under the wrong finger, and minutiae that do not fit their print. The PNG file shows prints with
    possible errors, and a .jsonl file beside it lists the errors.

    Examples:
      fingerprint-accel inspect datasets/db1
      fingerprint-accel inspect datasets/db1 --audit --out db1-audit.png

    Args:
        out: PNG file to write.
        fingers: Number of fingers in the PNG file.
        minutiae: Draw the minutiae on the prints.
        audit: Search for wrong labels and other errors. Takes about as long as `extract`.
        model: Model that compares prints for --audit.
    """
    from fingerprint_accel.data.inspection import describe, save_contact_sheet
    from fingerprint_accel.data.shards import open_dataset

    if audit:
        from fingerprint_accel.evaluation.audit.command import audit_command

        audit_command(dataset, model, out or Path("audit.png"))
        return
    out = out or Path("contact_sheet.png")
    shards = open_dataset(dataset)
    print(describe(shards))
    save_contact_sheet(shards, out, fingers, minutiae)
    print(f"contact sheet: {out}")


def verify(folder: Annotated[Positional[Path], arg("FOLDER")]) -> None:
    """Compare the files of a folder with their stored checksums.

    Examples:
      fingerprint-accel verify datasets/db1
      fingerprint-accel verify runs/mine

    Args:
        folder: Dataset, gallery, embeddings, exported model, checkpoint, or a run folder with all its checkpoints.
    """
    from fingerprint_accel.extraction.verifying import verify as compare

    files, size = compare(folder)
    print(f"{folder}: {files} file{'s' * (files != 1)}, {size / 1e6:.1f} MB, all match their checksums")
