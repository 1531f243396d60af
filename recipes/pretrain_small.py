"""The bundled model `small`: a compact network for 512 numbers, trained on synthetic fingers alone.

accelerate launch recipes/pretrain_small.py --out runs/small

Stages, each from where the one before ended: clean prints, prints as hard as real ones, an aligning network taught
where fingers lie, and behind it siblings, fingers that only minutiae tell apart, first clean and then hard. A kill
costs little (`--resume auto`). docs/experiments.md says what was tried and measured. With --data DATASET or
--model.start-from MODEL only the last stage runs. Its settings are those below; --data synth:... takes its prints from
the generator, so on a GPU:

accelerate launch --config_file recipes/hardware/gpu.yaml recipes/pretrain_small.py --out runs/small
    --data synth:fingers=100000,siblings=4 --reading.siblings 4 --training.batch-size 512 --training.steps 20000
    --training.save-every 500 --resume auto
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import dataclass
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

CONFIG = Config(
    reading=ReadingConfig(validation_fraction=0.01, impressions_per_finger=2),
    preprocess=PreprocessConfig(
        crop=256,
        size=160,
        augment=AugmentConfig(
            rotation_degrees=10,
            translation=8,
            elastic=1.5,
            contrast=0.3,
            ridge_thickness=0.3,
            noise=0.05,
            occlusion=0.1,
            start=0.1,
            ramp=0.9,
        ),
    ),
    model=ModelConfig(variant="LocTex", trunk="compact", embedding_dim=512, dropout=0.0, localization_frozen=True),
    loss=LossConfig(
        head="cosface",
        scale=32.0,
        margin=0.25,
        margin_start=0.6,
        margin_ramp=0.15,
        center_weight=0.0,
        identity_weight=0.15,  # class vectors of many fingers lag behind a network that changes fast
        contrastive_weight=1.0,
        contrastive_temperature=0.07,
        nested=(64, 128, 256),
    ),
    training=TrainingConfig(
        steps=840,
        batch_size=64,
        learning_rate=2e-3,
        warmup_steps=40,
        validate_every=250,
        save_every=100,
        precision="auto",
    ),
)


@dataclass(frozen=True)
class Stage:
    """Prints, and how to train on them: what differs from `CONFIG`."""

    name: str
    fingers: int
    impressions: int
    seed: int
    style: Style
    training: TrainingConfig
    augment: AugmentConfig
    loss: LossConfig
    siblings: int = 1
    variant: str = "Tex"

    def prints(self, out: Path) -> str:
        """Makes them unless they are there; returns their folder."""
        return synthetic_prints(out / self.name / "prints", self.fingers, self.impressions, self.seed, self.style)

    def config(self, start_from: str) -> Config:
        """All of its settings."""
        return dataclasses.replace(
            CONFIG,
            reading=dataclasses.replace(
                CONFIG.reading,
                siblings=self.siblings,
                validation_fraction=0.0 if self.siblings > 1 else 0.02,
            ),
            preprocess=dataclasses.replace(CONFIG.preprocess, augment=self.augment),
            model=dataclasses.replace(
                CONFIG.model,
                variant=self.variant,
                localization_frozen=self.variant == "LocTex",
                start_from=start_from,
            ),
            loss=self.loss,
            training=self.training,
            resume="auto",
        )


MILD = AugmentConfig(
    rotation_degrees=4,
    translation=4,
    elastic=0.7,
    contrast=0.2,
    ridge_thickness=0.15,
    noise=0.02,
    occlusion=0.0,
    start=0.2,
    ramp=0.6,
)
FULL = AugmentConfig(
    rotation_degrees=15,
    translation=16,
    elastic=2.0,
    contrast=0.3,
    ridge_thickness=0.3,
    noise=0.05,
    occlusion=0.15,
    start=0.15,
    ramp=0.5,
)
LONGER = dataclasses.replace(
    CONFIG.training, steps=3700, batch_size=96, learning_rate=3e-3, warmup_steps=200, validate_every=400
)
WHOLE = dataclasses.replace(CONFIG.loss, identity_weight=1.0, contrastive_temperature=0.1)
FIRST = dataclasses.replace(LONGER, steps=416, batch_size=64)
FLOW = (
    Stage("1-clean", 600, 8, 1, Style(quality="clean"), FIRST, MILD, WHOLE),
    Stage("2-default", 10_000, 6, 20261125, Style(), LONGER, FULL, WHOLE),
)
"""Learn how ridges flow, which tells most fingers apart."""
ALIGNMENT = "synth:fingers=1024,quality=mixed,seed=20261128"
"""Prints that teach where fingers lie."""
DETAILS = (
    Stage(
        "4-clean-siblings", 1280, 6, 20261129, Style(quality="clean", siblings=8),
        dataclasses.replace(CONFIG.training, steps=400), MILD, WHOLE, siblings=8, variant="LocTex",
    ),
    Stage(
        "5-siblings", 4096, 6, 20261127, Style(quality="mixed", siblings=8),
        CONFIG.training, CONFIG.preprocess.augment, CONFIG.loss, siblings=4, variant="LocTex",
    ),
)  # fmt: skip
"""Behind the aligning network, learn minutiae, which alone tell siblings apart."""
TEST_FINGERS, TEST_IMPRESSIONS, TEST_SEED = 200, 4, 20261126
TEST_PRINTS = f"synth --fingers {TEST_FINGERS} --impressions {TEST_IMPRESSIONS} --seed {TEST_SEED}"
FACTS = {
    "trained_on": "synthetic fingers: "
    + "; ".join(
        f"{stage.fingers} with {stage.impressions} impressions each, {stage.style.quality} quality, seed {stage.seed}"
        + (f", in families of {stage.style.siblings}" if stage.siblings > 1 else "")
        for stage in (*FLOW, *DETAILS)
    ),
    "sizes": "64, 128, 256 and 512 numbers: cut the embedding and scale it to unit length",
    "licence": "Apache-2.0, weights and code",
    "no_real_fingers": "no real image, crop of one, or statistic of an individual real print is in the training data. "
    "Every print comes from `fingerprint_accel.synthesis`, a function of integers; training reads no file but the "
    "datasets it has made itself. Ranges of the generator were set by medians over whole real sets (docs/synthesis.md)",
    "limits": "on some sets of real fingers classical matchers err less (table in docs/released_model.md), and the "
    "forty fingers of that table say little; not made for latent marks, children, worn or diseased skin; not to decide "
    "about people",
}


def commit() -> str:
    """Of the checkout that this recipe lies in."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return f"commit {subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()}"
    except (OSError, subprocess.CalledProcessError):
        return f"release {__version__}"


def export(run: Run, unseen: str, facts: dict[str, str]) -> None:
    """Calibrates the best model on synthetic fingers it never saw; keeps that and its origin with it, in 16 bits."""
    from fingerprint_accel import FingerprintExtractor
    from fingerprint_accel.data.loader import subset_of_fingers
    from fingerprint_accel.data.shards import open_dataset
    from fingerprint_accel.evaluation.calibration import calibrate, summary

    extractor = FingerprintExtractor.from_pretrained(run.folder).to(run.accelerator.device)
    command = f"accelerate launch recipes/{Path(sys.argv[0]).name} --out {run.folder.name}"
    made = {"made_by": f"`{command}`, {commit()}, torch {torch.__version__}"}
    shards = open_dataset(unseen)
    extractor.notes = {**made, **facts, "checkpoint": Path(extractor.origin).name}
    extractor.notes["usual_norm"] = extractor.usual_norm(extractor.batches(shards))
    print("\n".join(f"{name}: {value}" for name, value in extractor.notes.items()))
    every = subset_of_fingers(shards, np.ones(len(shards.key_of_finger), bool))
    print(f"\n{summary(calibrate(extractor, every, TEST_PRINTS))}")
    extractor.save_pretrained(run.folder / "model", half=True)


def run_stage(stage: Stage, out: Path, start_from: str, precision: str) -> str:
    """Trains one stage unless it is done; returns its run folder."""
    folder = out / stage.name
    if not (folder / "model").exists():
        config = dataclasses.replace(stage.config(start_from), data=stage.prints(out), out=str(folder))
        training = dataclasses.replace(config.training, precision=precision)
        run_training(dataclasses.replace(config, training=training))
    return str(folder)


def align(out: Path, trained: str) -> str:
    """Puts an aligning network in front, taught on prints that are rendered as needed; returns the model's folder."""
    from fingerprint_accel.training.alignment import teach_alignment
    from fingerprint_accel.training.setup import process_state

    folder = out / "3-alignment" / "model"
    state = process_state()
    with state.main_process_first():
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            print(teach_alignment(ALIGNMENT, trained, folder, device=state.device))
    return str(folder)


def earlier_stages(out: Path, precision: str) -> str:
    """All but the last stage; returns where the last one starts."""
    start = ""
    for stage in FLOW:
        start = run_stage(stage, out, start, precision)
    start = align(out, start)
    return run_stage(DETAILS[0], out, start, precision)


def main() -> None:
    """Makes the prints once, trains, measures, exports."""
    config = parse(CONFIG, __doc__ or "")
    check_run_folder(config)
    out, last = Path(config.out), DETAILS[-1]
    if not config.model.start_from and (not config.data or is_source(config.data)):
        start = earlier_stages(out, config.training.precision)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, start_from=start))
    if not config.data:
        reading = dataclasses.replace(config.reading, siblings=last.siblings, validation_fraction=0.0)
        config = dataclasses.replace(config, data=last.prints(out), reading=reading)
    run = run_training(config)
    unseen = synthetic_prints(out / "unseen-prints", TEST_FINGERS, TEST_IMPRESSIONS, TEST_SEED, Style())
    if run.accelerator.is_main_process:
        export(run, unseen, FACTS)
    run.accelerator.state.destroy_process_group()


if __name__ == "__main__":
    with one_line_errors(INTERRUPTED):
        main()
