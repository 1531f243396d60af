"""Verbs about trained models: `evaluate`, `calibrate`, `export`, `convert-flx`; and `plan`, before one is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from fingerprint_accel.cli.data import Flag
from fingerprint_accel.config import Trunk
from fingerprint_accel.errors import require
from fingerprint_accel.outputs import check_file


def evaluate(
    model: Positional[Path],
    dataset: Positional[Path],
    protocol: Literal["fvc", "all-pairs", "sampled"] = "all-pairs",
    out: Path | None = None,
    pairs: int | None = None,
    seed: int = 0,
    pairs_file: Path | None = None,
    against: Path | None = None,
    minimum_quality: float = 0.0,
    minimum_nfiq2: int = 0,
    poses: Flag = False,
    by: str = "",
    batch_size: int = 64,
    overwrite: Flag = False,
) -> None:
    """Measures the error rates of a model on a dataset; writes metrics.json, plots and report.html.

    Verification (EER, FNMR at FMR), identification in a closed and an open set, and whether the model was trained on
    these prints. The page also breaks error rates down by what the `source` of the prints tells.

    fingerprint-accel evaluate runs/quickstart datasets/db1 --protocol fvc --out evaluation/db1

    fingerprint-accel evaluate runs/b datasets/db1 --against runs/a

    fingerprint-accel evaluate small datasets/db1 --pairs-file comparisons.csv

    fingerprint-accel evaluate small datasets/db1 --by '^[^/]+'

    fingerprint-accel evaluate small datasets/db1 --minimum-nfiq2 20 --by nfiq2

    Args:
        model: Run folder (its best checkpoint), checkpoint folder, exported model folder, or bundled model.
        dataset: Dataset folder.
        protocol: fvc: every pair of a finger, first against first of other fingers. all-pairs: every pair. sampled:
            some of all pairs, every finger equally often, for large sets.
        out: Folder to write; by default evaluation/MODEL-on-DATASET.
        pairs: Of `sampled`: mated comparisons, and as many non-mated ones; default 100,000.
        seed: Of `sampled`.
        pairs_file: Comparisons to make in place of a protocol: a csv with the columns reference,probe[,mated] that
            names prints FINGER/IMPRESSION or by their source, or a benchmark of flx (.json).
        against: Another model, for the same comparisons: is the difference more than chance?
        minimum_quality: Prints below, 0 to 1, count as failures to extract: they never match.
        minimum_nfiq2: Likewise prints with a lower NFIQ 2 score, 0 to 100, or with none; `import --nfiq2` stores the
            scores.
        poses: Compare as `compare` does: every print turned and shifted in 45 ways, the best agreement counts. Takes 45
            times as long to embed, and 0.2 MB of memory per print.
        by: Regular expression whose first group, searched in the source of a print, names its group; the error rates
            of groups are printed. nfiq2: bands of the NFIQ 2 score, by the worse print of each comparison. Default:
            folders of the source, and bands where there are scores, on the page only.
        batch_size: Prints at a time.
        overwrite: Replace an evaluation in OUT.
    """
    from fingerprint_accel.evaluation.run import Extras, evaluate_command

    extras = Extras(pairs, seed, pairs_file, by, against, minimum_quality, poses, minimum_nfiq2)
    evaluate_command(model, dataset, protocol, out, batch_size, extras, overwrite)


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
    from fingerprint_accel.extraction.export import KIND, save_onnx, save_torch, traced
    from fingerprint_accel.extraction.extractor import FingerprintExtractor

    wanted = [(path, save) for path, save in ((onnx, save_onnx), (torch_file, save_torch)) if path is not None]
    require(bool(wanted), "nothing to write: give --onnx FILE, --torch FILE, or both")
    for path, _ in wanted:
        check_file(path, KIND)
        path.parent.mkdir(parents=True, exist_ok=True)
    extractor = FingerprintExtractor.from_pretrained(model)
    program = traced(extractor)
    for path, save in wanted:
        print(f"{path}: {save(extractor, program, path)}")


def convert_flx(checkpoint: Positional[Path], out: Path) -> None:
    """Turns a checkpoint of flx into a model folder; all six variants, any number of training subjects.

    Nothing in the checkpoint is executed. docs/from_flx.md says what differs from flx.

    fingerprint-accel convert-flx best_model.pyt --out models/flx

    Args:
        checkpoint: What flx has saved, usually best_model.pyt.
        out: Model folder to write.
    """
    from fingerprint_accel.compat.flx_weights import convert

    config = convert(checkpoint, out).model.config
    print(f"{out}: DeepPrint {config.variant}, {config.embedding_dim} numbers")


def plan(
    fingers: int,
    impressions: float = 10,
    gpus: str = "1xH100",
    canvas: int = 320,
    trunk: Trunk = "inception_v4",
    fsdp: bool = False,
) -> None:
    """What will training take? Disk, memory of a GPU by part, the recipe to use, and projected hours.

    fingerprint-accel plan --fingers 100000 --impressions 10 --gpus 8xA100-80

    Args:
        fingers: To train on.
        impressions: Prints of each, on average.
        gpus: How many of which: A100-40, A100-80, H100, H200, L40S or RTX4090, as in 4xA100-40.
        canvas: Side of a stored print in pixels.
        trunk: Of the network.
        fsdp: The GPUs share the network out (recipes/hardware/fsdp.yaml).
    """
    from fingerprint_accel.plan import plan as table

    print(table(fingers, impressions, gpus, canvas, trunk, fsdp))
