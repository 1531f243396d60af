"""Verbs that make and look at datasets: `import`, `merge`, `synth`, `inspect`, `verify`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from fingerprint_accel.errors import UserError

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]  # --flag, without a --no-flag beside it
Enhance = Annotated[Flag, tyro.conf.arg(help="Store prints whose ridges are enhanced, once and for all.")]
Workers = Annotated[int, tyro.conf.arg(help="Processes on a CPU; 0 for one per core.")]
Cluster = Annotated[
    str,
    tyro.conf.arg(help="Dask cluster that does the work, by address or scheduler file; its workers see all folders."),
]
Overwrite = Annotated[Flag, tyro.conf.arg(help="Replace OUT, and unfinished shards of another command beside it.")]
Inverted = Annotated[
    Literal["auto", "yes", "no"],
    tyro.conf.arg(help="Ridges are light on dark; auto looks at the paper of each print."),
]
Mirror = Annotated[
    Flag, tyro.conf.arg(help="Images are seen from behind, as prints lifted with tape: turn left to right.")
]
Layout = Literal["fvc", "folders", "flx", "nist", "socofing", "records", "csv"]


def import_files(
    src: Positional[Path],
    out: Path,
    layout: Layout | None = None,
    names: str = "",
    key: tuple[str, ...] = (),
    ppi: int = 500,
    inverted: Inverted = "auto",
    mirror: Mirror = False,
    raw_size: str = "",
    dataset_ppi: int = 300,
    canvas: int = 320,
    minutiae: Path | None = None,
    xyt_kind: Literal["auto", "nist", "m1"] = "auto",
    find_minutiae: Literal["no", "mindtct"] = "no",
    nfiq2: Flag = False,
    encoding: Literal["raw", "lz4"] = "raw",
    enhance: Enhance = False,
    workers: Workers = 0,
    cluster: Cluster = "",
    seed: int = 0,
    overwrite: Overwrite = False,
) -> None:
    """Makes a dataset folder from the prints below a folder: images, ANSI/NIST transactions, finger image records.

    Every file is imported, or listed with its reason in OUT/rejected.jsonl. Layouts, by the name of a file below SRC:
      fvc       101_1.tif                       finger 101, impression 1
      folders   anna-left-thumb/any.png         the folder is the finger
      flx       10_9.png, f0001_01.png          finger and impression, in any folder
      nist      00002302_R_500_roll_01.png      SD300 to SD302: subject and finger position
      socofing  1__M_Left_index_finger.BMP      altered versions are further impressions
      records   card.an2                        the records of ANSI/NIST files tell person and finger position
      csv       SRC is the file: path,finger,impression[,ppi][,minutiae][,position]

    Other names are read by a regular expression, --names, with groups finger or subject, and impression, position
    (1 to 10, 13 and 14 for four fingers of a hand, left_index, R2) and ppi where the names state them.

    The same arguments give the same bytes. If it is interrupted or killed, the same command goes on from there.

    fingerprint-accel import scans/DB1_B --out datasets/db1 --layout fvc --ppi 500

    fingerprint-accel import cards --out datasets/cards --layout records --key 2.018 2.022

    fingerprint-accel import casia --out datasets/casia --names "(?P<finger>.+_[LR][0-3])_(?P<impression>[0-4])"

    fingerprint-accel import scans.csv --out datasets/scans --layout csv --cluster scheduler.json

    Args:
        src: Folder of images, or the csv file.
        out: Dataset folder to make.
        layout: How file names tell finger and impression.
        names: Regular expression that reads names without their suffix, whole paths if it has a slash in it.
        key: Fields of ANSI/NIST files that name the person, as 2.018; by default 1.009, or the file's name.
        ppi: Resolution of the images, pixels per inch; a ppi that names, the csv or a record states wins.
        raw_size: WIDTHxHEIGHT of files of raw pixels, 8 bits each.
        dataset_ppi: Resolution of the dataset.
        canvas: Side of a print in the dataset, pixels.
        minutiae: Folder of minutiae files that do not lie beside the images: FOLDER/anna/1.iso for SRC/anna/1.png, or
            FOLDER/1.iso if no other image is called 1. A file that fits several images is used for none of them.
        xyt_kind: Of .xyt files: as mindtct writes them (nist) or with -m1; auto tells it from all of them.
        find_minutiae: Find minutiae where no file states them, with NIST's detector (pip install nbis-py); what it
            calls unreliable is left out.
        nfiq2: Store NIST's quality score, 0 to 100 (pip install nbis-py; takes about 0.4 s a print).
        encoding: Of the images in the dataset; lz4 takes less room, without loss.
        seed: Of the order in which prints are written.
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
    """`WxH` -> (height, width)."""
    if not text:
        return None
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or not int(match[1]) * int(match[2]):
        raise UserError(f"--raw-size {text}: give WIDTHxHEIGHT in pixels, as 388x374")
    return int(match[2]), int(match[1])


def _enhancement(wanted: bool) -> Callable[[Any, int], Any] | None:
    """The filters that `import` and `merge` hand to their workers; torch is loaded only where they are wanted."""
    if not wanted:
        return None
    from fingerprint_accel.preprocess.enhance import enhance_canvas

    return enhance_canvas


def merge(
    src: Positional[list[Path]],
    out: Path,
    rows_per_shard: int = 0,
    dataset_ppi: int = 0,
    canvas: int = 0,
    encoding: Literal["raw", "lz4"] | None = None,
    enhance: Enhance = False,
    join_fingers: Flag = False,
    keep: str = "",
    drop: str = "",
    seed: int = 0,
    workers: Workers = 0,
    cluster: Cluster = "",
    overwrite: Overwrite = False,
) -> None:
    """Makes one dataset folder from one or more, with other shards, encoding, resolution or canvas.

    Fingers of different SRC are kept apart: where two have the same key, the folder's name goes before it.

    --keep and --drop select fingers by their key. Use them to split a dataset, or to erase a person.

    The same arguments give the same bytes. If it is interrupted or killed, the same command goes on from there.

    fingerprint-accel merge datasets/db1 datasets/db2 --out datasets/both --encoding lz4

    fingerprint-accel merge datasets/db1 --out datasets/fast --enhance

    fingerprint-accel merge datasets/db1 --out datasets/db1-test --keep "10[89]|110"

    fingerprint-accel merge datasets/db1 --out datasets/db1-250 --dataset-ppi 250 --cluster tcp://head:8786

    Args:
        src: Dataset folders, one or more.
        out: Dataset folder to make.
        rows_per_shard: Prints per file; 0 for 32 to 1,024, so that there are at least 64 files.
        dataset_ppi: Resolution of the dataset, pixels per inch; 0 for that of the first SRC.
        canvas: Side of a print in the dataset, pixels; 0 for that of the first SRC.
        encoding: Of the images; lz4 takes less room, without loss; by default that of the first SRC.
        join_fingers: Fingers of different SRC with the same key are one; impressions that collide are renumbered.
        keep: Regular expression; only fingers whose whole key matches are merged.
        drop: Regular expression; fingers whose whole key matches are left out.
        seed: Of the order in which prints are written.
    """
    from fingerprint_accel.data.merging import MergeOptions
    from fingerprint_accel.data.merging import merge as merge_datasets

    options = MergeOptions(
        dataset_ppi, canvas, encoding or "", rows_per_shard, join_fingers, _enhancement(enhance), seed, keep, drop
    )
    merge_datasets(src, out, options, workers=workers, cluster=cluster, overwrite=overwrite).show()


def synth(
    out: Path,
    fingers: int,
    impressions: int,
    seed: int = 0,
    sensors: tuple[str, ...] = ("optical", "capacitive", "thermal", "ink"),
    quality: str = "default",
    partial: float | None = None,
    dataset_ppi: int = 300,
    canvas: int = 320,
    first_finger: int = 0,
    siblings: int = 1,
    workers: Workers = 0,
    cluster: Cluster = "",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Makes a dataset folder of synthetic fingerprints, with exact minutiae, pose and contact.

    Sensors; each print is taken by one of those named:
      optical     glass prism: even, sharp, dark ridges
      capacitive  silicon chip: small, noisy, fixed stripes
      thermal     swept silicon: broad ridges, soft shading
      ink         inked and scanned paper: uneven ink, large
      latent      lifted mark: faint, smeared, dirty

    Qualities, of what goes wrong at a touch (turn, partial contact, pressure, dryness, dirt):
      clean       little
      default     what a usual capture shows
      poor        much
      mixed       anything from clean to poor; four touches of ten are partial

    The same arguments give the same bytes. Finger i of a seed is the same however many fingers are made. If it is
    interrupted or killed, the same command goes on from there. All GPUs of the machine are used, or else all cores.

    fingerprint-accel synth --out datasets/synthetic --fingers 1000 --impressions 8

    fingerprint-accel synth --out datasets/touch --fingers 200 --impressions 4 --sensors capacitive --quality poor

    fingerprint-accel synth --out datasets/large --fingers 50000 --impressions 10 --cluster scheduler.json

    Args:
        out: Dataset folder to make.
        fingers: How many fingers.
        impressions: Prints of each finger.
        seed: Decides all fingers and prints; other seeds, other fingers.
        sensors: One or more of the sensors above.
        quality: One of the qualities above.
        partial: Share of touches, 0 to 1, that show a part of the finger: its tip, its lower half, one side, or what a
            narrow window leaves; by default 0.4 for mixed and 0 for the others.
        dataset_ppi: Resolution of the dataset, pixels per inch.
        canvas: Side of a print in the dataset, pixels.
        first_finger: Number of the first finger; 1000 gives those that follow on --fingers 1000.
        siblings: So many fingers in a row share class, flow, period and creases: only minutiae tell them apart.
        device: What makes the prints; auto takes GPUs if there are any.
    """
    from fingerprint_accel.synthesis.sensors import Style
    from fingerprint_accel.synthesis.writing import write_synthetic_dataset

    style = Style(sensors, quality, dataset_ppi, canvas, siblings, partial)
    summary = write_synthetic_dataset(
        out, fingers, impressions, seed, style, first_finger, workers, cluster, device, overwrite
    )
    print(summary.table())


def inspect(
    dataset: Positional[Path],
    out: Path | None = None,
    fingers: int = 5,
    minutiae: Flag = False,
    audit: Flag = False,
    model: str = "small",
) -> None:
    """Prints what a dataset holds and draws a contact sheet.

    With --audit it lists suspects, and the sheet shows them: the same picture twice, fingers that are one, a finger
    that is two, prints under a wrong finger, minutiae that do not fit their print. Each is a line of OUT's .jsonl.

    fingerprint-accel inspect datasets/db1

    fingerprint-accel inspect datasets/db1 --audit --out db1-audit.png

    Args:
        dataset: Dataset folder.
        out: PNG file to write; by default contact_sheet.png, or audit.png.
        fingers: Rows of the contact sheet.
        minutiae: Draw minutiae on the prints.
        audit: Look for prints that are wrong. Takes about as long as `extract`.
        model: Of an audit: run folder, checkpoint, exported model folder, or bundled model.
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


def verify(folder: Positional[Path]) -> None:
    """Compares the files of a folder with the checksums that were taken when they were written.

    fingerprint-accel verify datasets/db1

    fingerprint-accel verify runs/mine

    Args:
        folder: Dataset, gallery, embeddings, exported model, checkpoint, or run folder with all its checkpoints.
    """
    from fingerprint_accel.extraction.verifying import verify as compare

    files, size = compare(folder)
    print(f"{folder}: {files} file{'s' * (files != 1)}, {size / 1e6:.1f} MB, all as they were written")
