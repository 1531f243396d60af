"""Trains the bundled model `small`: a compact dense network, from random weights on synthetic fingers alone.

accelerate launch --quiet --config_file recipes/hardware/gpu.yaml recipes/pretrain_small.py --out runs/small

There are three stages. Each starts from the weights of the previous stage:
- Stage 1: the alignment network learns the position and rotation of fingers.
- Stage 2: the whole network learns from clean impressions of siblings. Siblings are fingers that differ in their
  minutiae only.
- Stage 3: the whole network learns from impressions of all qualities.
The fingers stay in GPU memory, and each step renders new impressions of them. --training.steps is the number of steps
of all stages together. Add --resume auto to continue an interrupted run.

With --data DATASET or --model.init-from MODEL, only the last stage runs. This example continues to train the bundled
model on two CPU cores, with the first layers frozen:

fingerprint-accel synth --out prints --fingers 5000 --impressions 5 --siblings 8 --seed 20261202 --quality mixed
accelerate launch --quiet recipes/pretrain_small.py --out runs/more --data prints --model.init-from small
    --model.alignment-frozen --model.stem-frozen --training.precision bf16 --training.batch-size 64
    --training.steps 1400 --training.learning-rate 8e-4 --training.ema-decay 0.9995

In this example, the exported weights are a moving average, to which the weights of the bundled model contribute half.
docs/released_model.md has the measured error rates of the bundled model.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fingerprint_accel import __version__
from fingerprint_accel.config import (
    AugmentConfig,
    Config,
    LossConfig,
    ModelConfig,
    PreprocessConfig,
    ReadingConfig,
    TrainingConfig,
    parse,
)
from fingerprint_accel.errors import one_line_errors
from fingerprint_accel.recipe import INTERRUPTED, run_training, synthetic_prints
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.synthesis.source import is_source
from fingerprint_accel.training.run_folder import check_run_folder

if TYPE_CHECKING:
    from fingerprint_accel.training.setup import Run

FINGERS, SIBLINGS, SEED = 80_000, 8, 20261201
MILD = AugmentConfig(
    rotation_degrees=4, translation=4, elastic=0.7, contrast=0.2, ridge_thickness=0.15, noise=0.02, occlusion=0.0,
    start=0.2, ramp=0.6,
)  # fmt: skip
TURNED = AugmentConfig(
    rotation_degrees=30, translation=24, scale=0.08, elastic=2.0, contrast=0.3, ridge_thickness=0.3, noise=0.05,
    occlusion=0.2,
)  # fmt: skip
CONFIG = Config(
    data=f"synth:fingers={FINGERS},siblings={SIBLINGS},quality=mixed,seed={SEED}",
    reading=ReadingConfig(validation_fraction=0.01, samples_per_class=2, siblings=SIBLINGS),
    preprocess=PreprocessConfig(
        crop=256,
        size=160,
        augment=AugmentConfig(
            rotation_degrees=10, translation=8, elastic=2.0, contrast=0.4, ridge_thickness=0.5, noise=0.06,
            occlusion=0.15, start=0.1, ramp=0.6,
        ),
    ),
    model=ModelConfig(variant="LocDense", trunk="compact", embedding_dim=512, dropout=0.0),
    loss=LossConfig(
        head="cosface",
        scale=32.0,
        margin=0.25,
        margin_start=0.6,
        margin_ramp=0.15,
        center_weight=0.0,
        identity_weight=0.15,  # with 80,000 fingers, each class vector is updated too rarely to follow the network
        contrastive_weight=1.0,
        contrastive_temperature=0.07,
    ),
    training=TrainingConfig(
        steps=14_000,
        batch_size=512,
        learning_rate=3e-3,
        warmup_steps=100,
        validate_every=500,
        save_every=500,
        precision="auto",
    ),
)  # fmt: skip
ONLY_POSES = dataclasses.replace(
    CONFIG.loss, identity_weight=0.0, contrastive_weight=0.0, minutia_map_weight=0.0, mask_weight=0.0
)
ALIGNMENT_SHARE, CLEAN_SHARE = 0.2, 0.15  # shares of the steps; the last stage has the rest
TEST_FINGERS, TEST_IMPRESSIONS, TEST_SEED = 1500, 3, 20261126  # these give ten million non-mated comparisons
# Real fingers vary less in ridge flow than independent synthetic ones. With families of 30 siblings, 2 % of the
# non-mated comparisons are between fingers with the same ridge flow.
TEST_SIBLINGS = 30
TEST_STYLE = Style(quality="mixed", siblings=TEST_SIBLINGS)
TEST_PRINTS = (
    f"synth --fingers {TEST_FINGERS} --impressions {TEST_IMPRESSIONS} --siblings {TEST_SIBLINGS} --seed {TEST_SEED} "
    "--quality mixed"
)
FACTS = {
    "licence": "Apache-2.0, weights and code",
    "no_real_fingers": "The training data contains no real image, no crop of one, and no statistic of a single real "
    "print. Every print comes from `fingerprint_accel.synthesis`, a function of integers; training reads nothing else. "
    "Ranges of the generator were set from medians and means over whole real datasets (docs/synthesis.md)",
    "limits": "not suitable for latent marks, children, worn or diseased skin; not for decisions about people",
}


def commit() -> str:
    """Return the git commit of the checkout that contains this recipe, or the version of the installed package."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return f"commit {subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()}"
    except (OSError, subprocess.CalledProcessError):
        return f"release {__version__}"


def export(run: Run, unseen: str) -> None:
    """Export the best checkpoint with 16-bit weights, notes on its origin, and a calibration.

    The calibration consists of similarity thresholds, which are measured on synthetic fingers.

    Args:
        run: The finished training run.
        unseen: Dataset folder of synthetic fingers that are not in the training data.
    """
    from fingerprint_accel import FingerprintExtractor
    from fingerprint_accel.data.loader import subset_of_fingers
    from fingerprint_accel.data.shards import open_dataset
    from fingerprint_accel.evaluation.calibration import calibrate, summary
    from fingerprint_accel.extraction.minutiae_readout import UNTRAINED

    extractor = FingerprintExtractor.from_pretrained(run.folder).to(run.accelerator.device)
    command = f"accelerate launch --quiet recipes/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}"
    made = {
        "made_by": f"`{command}`, {commit()}, torch {torch.__version__}",
        "trained_on": f"synthetic fingers alone: {run.config.data}",
    }
    shards = open_dataset(unseen)
    untrained = {UNTRAINED: True} if UNTRAINED in extractor.notes else {}  # set by `run_training`
    extractor.notes = {**made, **FACTS, **untrained, "checkpoint": Path(extractor.origin).name}
    extractor.notes["usual_norm"] = extractor.usual_norm(extractor.batches(shards))
    print("\n".join(f"{name}: {value}" for name, value in extractor.notes.items()))
    every = subset_of_fingers(shards, np.ones(len(shards.key_of_finger), bool))
    print(f"\n{summary(calibrate(extractor, every, TEST_PRINTS))}")
    extractor.save_pretrained(run.folder / "model", half=True)


def stages(config: Config) -> list[Config]:
    """Return the configuration of each of the three training stages.

    The run folder of the last stage is that of `config`; the others are inside it. If `config` has a dataset folder or
    a trained network to start from, the only stage is `config` itself.
    """
    out, steps = Path(config.out), config.training.steps
    if config.model.init_from or not is_source(config.data):
        return [config]

    def stage(out: Path, share: float, init_from: Path | None) -> Config:
        training = dataclasses.replace(config.training, steps=max(1, round(share * steps)))
        model = dataclasses.replace(config.model, init_from=str(init_from or ""))
        return dataclasses.replace(config, out=str(out), model=model, training=training)

    alignment = dataclasses.replace(
        stage(out / "1-alignment", ALIGNMENT_SHARE, None),
        data=config.data.replace("quality=mixed", "quality=mixed,partial=0.5"),
        reading=dataclasses.replace(config.reading, siblings=1),
        preprocess=dataclasses.replace(config.preprocess, augment=TURNED),
        loss=ONLY_POSES,
        resume="auto",
    )
    clean = dataclasses.replace(
        stage(out / "2-clean", CLEAN_SHARE, out / "1-alignment"),
        data=config.data.replace("quality=mixed", "quality=clean"),
        preprocess=dataclasses.replace(config.preprocess, augment=MILD),
        resume="auto",
    )
    return [alignment, clean, stage(out, 1 - ALIGNMENT_SHARE - CLEAN_SHARE, out / "2-clean")]


def pretrain(defaults: Config, description: str) -> None:
    """Train all stages that are not finished, then calibrate and export the model.

    Args:
        defaults: Configuration of the recipe. Options of the command line replace its values.
        description: Text at the top of `--help`.
    """
    config = parse(defaults, description)
    check_run_folder(config)
    *earlier, last = stages(config)
    for stage in earlier:
        if not (Path(stage.out) / "model").exists():
            run_training(stage)
    run = run_training(last)
    unseen = synthetic_prints(Path(config.out) / "unseen-prints", TEST_FINGERS, TEST_IMPRESSIONS, TEST_SEED, TEST_STYLE)
    if run.accelerator.is_main_process:
        export(run, unseen)
    run.accelerator.state.destroy_process_group()


if __name__ == "__main__":
    with one_line_errors(INTERRUPTED):
        pretrain(CONFIG, __doc__ or "")
