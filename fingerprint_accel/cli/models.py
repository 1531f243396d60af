"""Verbs for models: `plan`, `evaluate`, `calibrate`, `export`, `convert-flx`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from tqdm import tqdm
from tyro.conf import Positional

from fingerprint_accel.cli.arguments import BatchSize, Dataset, Flag, ModelPlace, OutFolder, Seed, Switch, arg
from fingerprint_accel.config import Trunk
from fingerprint_accel.errors import require
from fingerprint_accel.outputs import check_file


def plan(
    fingers: Annotated[int, arg("N")],
    impressions: Annotated[float, arg("N")] = 10,
    gpus: Annotated[str, arg("GPUS")] = "1xH100",
    canvas: Annotated[int, arg("PIXELS")] = 320,
    trunk: Trunk = "inception_v4",
    fsdp: Flag = False,
    network: Annotated[float, arg("GBIT")] = 100,
) -> None:
    """Estimate disk space, GPU memory and training time.

    The output also names the recipe for this number of prints. Memory is computed from the network itself. Times are
    projected from a measurement on one GPU, and the communication between GPUs is modelled.

    Examples:
      fingerprint-accel plan --fingers 100000 --impressions 10 --gpus 8xA100-80
      fingerprint-accel plan --fingers 150000 --gpus 2x8xH100 --network 400

    Args:
        fingers: Number of fingers to train on.
        impressions: Average number of prints of each finger.
        gpus: Number and type of GPUs, for example 4xA100-40, or 2x8xH100 for two machines with 8 GPUs each. Types:
            A100-40, A100-80, H100, H200, L40S, RTX4090.
        canvas: Side of a print in the dataset, in pixels.
        trunk: Trunk of the network.
        fsdp: Shard the network over the GPUs (recipes/hardware/fsdp.yaml).
        network: Speed of the network between machines in Gbit/s, of all network adapters of a machine together.
    """
    with tqdm(total=3, leave=False, bar_format="{desc}{elapsed}") as bar:

        def show(stage: str) -> None:
            bar.set_description(stage)
            bar.update()

        show("loading PyTorch")
        from fingerprint_accel.plan import plan as table

        text = table(fingers, impressions, gpus, canvas, trunk, fsdp, network, show)
    print(text)


def evaluate(
    model: ModelPlace,
    dataset: Dataset,
    protocol: Literal["fvc", "all-pairs", "sampled"] = "all-pairs",
    out: Annotated[Path | None, arg("OUT", default="evaluation/MODEL-on-DATASET")] = None,
    pairs: Annotated[int | None, arg("N", default="100000")] = None,
    seed: Seed = 0,
    pairs_file: Annotated[Path | None, arg("FILE", default="the pairs of --protocol")] = None,
    against: Annotated[Path | None, arg("MODEL", default="none")] = None,
    minimum_quality: Annotated[float, arg("QUALITY")] = 0.0,
    minimum_nfiq2: Annotated[int, arg("SCORE")] = 0,
    poses: Flag = False,
    by: Annotated[str, arg("REGEX", default="folders of the source, only in the report")] = "",
    by_person: Flag = False,
    batch_size: BatchSize = 64,
    overwrite: Flag = False,
) -> None:
    """Measure the error rates of a model on a dataset.

    Writes metrics.json, plots and report.html: verification (EER, FNMR at FMR), closed-set and open-set
    identification, error rates of groups, and whether the model was trained on these prints. Every rate is reported
    with its 95 % confidence interval and its threshold.

    Examples:
      fingerprint-accel evaluate small datasets/db1 --out evaluation/db1
      fingerprint-accel evaluate runs/b datasets/db1 --against runs/a
      fingerprint-accel evaluate small datasets/cards --minimum-nfiq2 20 --by-person

    Protocols:
      fvc        every pair of a finger; first impressions of different fingers
      all-pairs  every pair
      sampled    a random sample of pairs, for large datasets

    Args:
        protocol: Pairs to compare, see above.
        out: Folder to write.
        pairs: Number of mated and of non-mated pairs for --protocol sampled.
        seed: Random seed for --protocol sampled.
        pairs_file: Pairs to compare: a csv file with the columns reference,probe[,mated], or an flx benchmark (.json).
        against: Second model to compare with on the same pairs, with confidence intervals of the differences.
        minimum_quality: Prints below this quality (0 to 1) count as failures to acquire: they never match.
        minimum_nfiq2: Prints without an NFIQ 2 score, or below this score (0 to 100), count as failures to acquire.
        poses: Compare the best of several rotated and shifted copies, as `compare` does. Takes 6 to 45 times as long.
        by: Regular expression. Prints with the same first match in their source form a group. nfiq2 groups by score.
        by_person: Also identify persons by 1, 2, 4 and 10 fingers. Finger keys must state both, for example anna_07.
        overwrite: Replace an evaluation in OUT.
    """
    from fingerprint_accel.evaluation.run import Extras, evaluate_command

    extras = Extras(pairs, seed, pairs_file, by, against, minimum_quality, poses, minimum_nfiq2, by_person)
    evaluate_command(model, dataset, protocol, out, batch_size, extras, overwrite)


def calibrate(
    model: Annotated[Positional[str], arg("MODEL")],
    dataset: Dataset,
    out: Annotated[Path | None, arg("OUT", default="update MODEL")] = None,
    center: Switch = True,
) -> None:
    """Measure decision thresholds on your prints and store them.

    `compare`, `search` and `demo` show decisions only for calibrated models. The dataset needs fingers that the model
    was not trained on, at least two prints of some of them, and at least 1,000 non-mated pairs for a threshold at an
    FMR of 0.1 %. The weights of the model do not change.

    With 20 fingers or more, the mean template of the prints is stored too and subtracted from every template. This
    removes what all prints of one sensor have in common. Galleries made before this calibration must be enrolled again.

    Examples:
      fingerprint-accel calibrate runs/mine datasets/db2
      fingerprint-accel calibrate small datasets/db1 --out models/small-db1

    Args:
        model: Run folder or exported model folder to update. A checkpoint folder or bundled model needs --out.
        out: Model folder to write. If it is given, MODEL is not changed.
        center: Subtract the mean template of these prints from every template.
    """
    from fingerprint_accel.evaluation.calibration import calibrate_command

    calibrate_command(model, dataset, out, center)


def export(
    model: Annotated[
        Positional[str], arg("MODEL", "Bundled model, run folder, checkpoint folder, or exported model folder.")
    ],
    onnx: Annotated[Path | None, arg("FILE", default="none")] = None,
    int8: Annotated[Path | None, arg("FILE", default="none")] = None,
    torch_file: Annotated[Path | None, arg("FILE", default="none"), tyro.conf.arg(name="torch")] = None,
) -> None:
    """Export a model to ONNX or torch.export.

    The exported model includes preprocessing. The embeddings of the exported model are compared with those of the
    original. Input: images (N, canvas, canvas) uint8 with dark ridges. Output: embeddings (N, D) float32 of unit norm.
    N can vary.

    With --int8, the convolutions compute with 8 bits, which is faster on a CPU with VNNI instructions. Embeddings
    change slightly. If they change too much, no file is written.

    Examples:
      fingerprint-accel export small --onnx small.onnx
      fingerprint-accel export small --int8 small-int8.onnx
      fingerprint-accel export runs/mine --torch mine.pt2

    Args:
        onnx: ONNX file to write (pip install 'fingerprint-accel[onnx]').
        int8: ONNX file with 8-bit convolutions to write. Needs the packages that --onnx needs.
        torch_file: torch.export file (.pt2) to write. It can be loaded without fingerprint_accel.
    """
    from fingerprint_accel.extraction.export import KIND, save_int8, save_onnx, save_torch, traced
    from fingerprint_accel.extraction.extractor import FingerprintExtractor

    files = ((onnx, save_onnx), (int8, save_int8), (torch_file, save_torch))
    wanted = [(path, save) for path, save in files if path is not None]
    require(bool(wanted), "no output given: add --onnx FILE, --int8 FILE or --torch FILE")
    require(len({path.resolve() for path, _ in wanted}) == len(wanted), "two outputs have the same name")
    for path, _ in wanted:
        check_file(path, KIND)
        path.parent.mkdir(parents=True, exist_ok=True)  # an error now, not after minutes
    extractor = FingerprintExtractor.from_pretrained(model)
    program = traced(extractor)
    for path, save in wanted:
        print(f"{path}: {save(extractor, program, path)}")


def convert_flx(checkpoint: Annotated[Positional[Path], arg("CHECKPOINT")], out: OutFolder) -> None:
    """Convert a checkpoint of flx to a model folder.

    flx is another implementation of DeepPrint. All six variants of flx and any number of training subjects are
    supported. Code in the checkpoint is not executed.

    Examples:
      fingerprint-accel convert-flx best_model.pyt --out models/flx

    Args:
        checkpoint: Checkpoint file of flx, usually best_model.pyt.
        out: Model folder to write.
    """
    from fingerprint_accel.compat.flx_weights import convert

    config = convert(checkpoint, out).model.config
    print(f"{out}: DeepPrint {config.variant}, {config.embedding_dim} numbers")
