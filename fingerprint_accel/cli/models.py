"""Verbs about trained models: `compare`, `enroll`, `search`, `calibrate`, `export`, `convert-flx`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from fingerprint_accel.durable import write_file
from fingerprint_accel.errors import require
from fingerprint_accel.outputs import check_picture
from fingerprint_accel.text import aligned


def compare(
    reference: Positional[Path],
    probe: Positional[Path],
    model: str = "small",
    ppi: int = 500,
    poses: bool = True,
    out: Path | None = None,
) -> None:
    """Says how alike two prints are, and whether they pass as one finger.

    The similarity lies between -1 and 1. A threshold at a false match rate (FMR) of 0.1 % lets one of 1,000 prints of
    other fingers pass, if they are like the prints that it was measured on. Decisions are shown where the model was
    calibrated on real prints (`calibrate`); the bundled models were not.

    fingerprint-accel compare a.png b.png

    fingerprint-accel compare a.bmp b.wsq --ppi 569 --model runs/db1

    fingerprint-accel compare a.png b.png --out pair.png

    Args:
        reference: Image of a print, ridges dark.
        probe: Image of another.
        model: Bundled model, run folder (its best checkpoint), checkpoint folder, or exported model folder.
        ppi: Resolution of both images, pixels per inch.
        poses: Also try turns and shifts, and take the best agreement.
        out: PNG file to write: both prints side by side, and one on the other in the pose that compared best.
    """
    from fingerprint_accel.extraction.comparison import compare_prints
    from fingerprint_accel.extraction.extractor import open_extractor
    from fingerprint_accel.extraction.poses import UPRIGHT

    require(ppi > 0, f"--ppi {ppi}: must be above 0")
    if out is not None:
        check_picture(out, (reference, probe))
    extractor = open_extractor(model)
    found = compare_prints(extractor, reference, probe, ppi, None if poses else UPRIGHT)
    rows = found.rows()
    if out is not None:
        from fingerprint_accel.extraction.pair_picture import pair_png  # matplotlib takes a second to import

        write_file(out, pair_png(found, (reference.name, probe.name), extractor))
        rows.append(("picture", str(out)))
    print(f"{aligned(rows)}\n{found.basis}")


def enroll(
    gallery: Positional[Path],
    prints: Positional[list[Path]],
    model: str = "small",
    ppi: int = 500,
    batch_size: int = 64,
    fuse: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Adds prints to a gallery that `search` looks in; makes the gallery if it is not there.

    One call adds all of its prints or none. Prints that are enrolled already, by name and image, are not added again.
    Images are named by their path, the prints of a dataset FINGER/IMPRESSION. A gallery belongs to the model that
    filled it.

    fingerprint-accel enroll known scans/*.png

    fingerprint-accel enroll known datasets/db1 --model runs/db1

    fingerprint-accel enroll known scans/anna-left-thumb/*.png --fuse

    Args:
        gallery: Gallery folder.
        prints: Image files, or one dataset folder.
        model: Bundled model, run folder (its best checkpoint), checkpoint folder, or exported model folder.
        ppi: Resolution of the images; a dataset knows its own.
        batch_size: Prints at a time.
        fuse: Join the prints of each finger in one template, named by the finger: of a dataset by its fingers, of
            images by the folder that they lie in.
    """
    from fingerprint_accel.extraction.search_commands import enroll_command

    enroll_command(gallery, prints, model, ppi, batch_size, fuse)


def search(
    gallery: Positional[Path],
    probe: Positional[Path],
    model: str = "small",
    ppi: int = 500,
    top: int = 10,
    index: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Finds the prints of a gallery that are most like one print; compares with every one of them, or with --index with
    those that an index proposes, which is for a million prints and more.

    fingerprint-accel search known unknown.png --top 5

    Args:
        gallery: Gallery folder, see `enroll`.
        probe: Image of a print, ridges dark.
        model: The model that filled the gallery.
        ppi: Resolution of the image, pixels per inch.
        top: How many to show.
        index: Search by an index, kept in the gallery (pip install 'fingerprint_accel[faiss]').
    """
    from fingerprint_accel.extraction.search_commands import search_command

    search_command(gallery, probe, model, ppi, top, index)


def calibrate(model: Positional[str], dataset: Positional[Path], out: Path | None = None, center: bool = True) -> None:
    """Measures a model's thresholds on prints like yours, and keeps them with the model.

    Until then `compare`, `search` and `demo` show similarities without decisions. All pairs of prints are compared, as
    they are and best over poses. Needs fingers that the model was not trained on, two prints of some of them; FMR 0.1 %
    takes 1,000 non-mated comparisons, and more fingers give a better threshold. Of large datasets some fingers are
    chosen. The weights stay as they are.

    With 20 fingers or more the mean template of the prints is kept too, and subtracted from every template from now on:
    what all prints of a sensor have in common makes different fingers look alike. The thresholds are measured on
    fingers that the mean does not come from. A gallery from before belongs to the model without the mean: enrol again.

    fingerprint-accel calibrate runs/db1 datasets/db2

    fingerprint-accel calibrate small datasets/db1 --out models/small-db1

    Args:
        model: Run folder (its exported model/ is updated), exported model folder (is updated), checkpoint folder or
            bundled model (both with --out).
        dataset: Dataset folder.
        out: Model folder to write; MODEL then stays as it is.
        center: Subtract the mean template of these prints from every template.
    """
    from fingerprint_accel.evaluation.calibration import calibrate_command

    calibrate_command(model, dataset, out, center)


def export(
    model: Positional[str],
    onnx: Path | None = None,
    torch_file: Annotated[Path | None, tyro.conf.arg(name="torch")] = None,
) -> None:
    """Writes a model for other runtimes, preparation included, and checks it against the original.

    Input `images` (N, canvas, canvas) uint8, ridges dark; output `embeddings` (N, D) float32 of unit length; any N.

    fingerprint-accel export small --onnx small.onnx

    Args:
        model: Bundled model, run folder (its best checkpoint), checkpoint folder, or exported model folder.
        onnx: ONNX file to write; needs `pip install 'fingerprint-accel[onnx]'`.
        torch_file: `torch.export` file to write (.pt2); torch opens it without this package.
    """
    from fingerprint_accel.extraction.export import export_command

    export_command(model, onnx, torch_file)


def convert_flx(checkpoint: Positional[Path], out: Path) -> None:
    """Turns a checkpoint of flx into a model folder; all six variants, any number of training subjects.

    Nothing in the checkpoint is executed. docs/from_flx.md says what differs from flx.

    fingerprint-accel convert-flx best_model.pyt --out models/flx

    Args:
        checkpoint: What flx has saved, usually best_model.pyt.
        out: Model folder to write.
    """
    from fingerprint_accel.compat.flx_weights import convert

    extractor = convert(checkpoint, out)
    config = extractor.model.config
    print(f"{out}: DeepPrint {config.variant}, {config.embedding_dim} numbers")
