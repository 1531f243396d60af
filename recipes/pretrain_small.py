"""The bundled model `small`: a compact network for 512 numbers, trained on synthetic fingers alone.

accelerate launch recipes/pretrain_small.py --out runs/small

Clean prints first: on prints as hard as real ones a network from nothing goes on taking all for alike. On two CPU
cores: 25 minutes for the prints (10,600 fingers, 7 GB), 10 of training on clean ones, 80 on the others; a kill costs
little (`--resume auto`). docs/released_model.md says what was tried and measured. On a GPU, with endless impressions:

accelerate launch --config_file recipes/hardware/gpu.yaml recipes/pretrain_small.py --out runs/small
    --data synth:fingers=100000 --training.batch-size 512 --training.steps 20000 --training.save-every 500 --resume auto
"""

import dataclasses
import subprocess
from pathlib import Path

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
from fingerprint_accel.recipe import INTERRUPTED, check_out, run_training, synthetic_prints
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.synthesis.source import is_source

CONFIG = Config(
    reading=ReadingConfig(validation_fraction=0.01, impressions_per_finger=2),
    preprocess=PreprocessConfig(
        crop=256,
        size=160,
        augment=AugmentConfig(
            rotation_degrees=15,
            translation=16,
            elastic=2.0,
            contrast=0.3,
            ridge_thickness=0.3,
            noise=0.05,
            occlusion=0.15,
            start=0.15,
            ramp=0.5,
        ),
    ),
    model=ModelConfig(variant="Tex", trunk="compact", embedding_dim=512, dropout=0.0),
    loss=LossConfig(
        head="cosface",
        scale=32.0,
        margin=0.25,
        margin_start=0.6,
        margin_ramp=0.15,
        center_weight=0.0,
        contrastive_weight=1.0,
        nested=(64, 128, 256),
    ),
    training=TrainingConfig(
        epochs=6,
        batch_size=96,
        learning_rate=3e-3,
        warmup_steps=200,
        validate_every=400,
        save_every=200,
        precision="bf16",
    ),
)
FINGERS, IMPRESSIONS, SEED = 10_000, 6, 20261125
CLEAN_FINGERS, CLEAN_IMPRESSIONS, CLEAN_SEED = 600, 8, 1
CLEAN = Config(
    reading=ReadingConfig(validation_fraction=0.08, impressions_per_finger=2),
    preprocess=dataclasses.replace(
        CONFIG.preprocess,
        augment=AugmentConfig(
            rotation_degrees=10,
            translation=6,
            elastic=1.5,
            contrast=0.2,
            ridge_thickness=0.2,
            occlusion=0.05,
            start=0.2,
            ramp=0.5,
        ),
    ),
    model=CONFIG.model,
    loss=dataclasses.replace(CONFIG.loss, scale=24.0, margin=0.2, margin_start=0.5, margin_ramp=0.2),
    training=dataclasses.replace(
        CONFIG.training, epochs=6, batch_size=64, warmup_steps=50, validate_every=138, save_every=138
    ),
)
TEST_FINGERS, TEST_IMPRESSIONS = 200, 4


FACTS = {
    "trained_on": f"{FINGERS} synthetic fingers with {IMPRESSIONS} impressions each, default quality, seed {SEED}; "
    f"before that {CLEAN_FINGERS} with {CLEAN_IMPRESSIONS} clean ones, seed {CLEAN_SEED}",
    "measured_on": f"{TEST_FINGERS} other synthetic fingers, {TEST_IMPRESSIONS} impressions each, seed {SEED + 1}",
    "sizes": "64, 128, 256 and 512 numbers: cut the embedding and scale it to unit length",
    "licence": "Apache-2.0, weights and code",
    "no_real_fingers": "no real image, crop of one, or statistic of an individual real print is in the training data. "
    "Every print comes from `fingerprint_accel.synthesis`, a function of integers; training reads no file but the "
    "datasets it has made itself. Ranges of the generator were set by medians over whole real sets (docs/synthesis.md)",
    "limits": "on real fingers it errs more than classical matchers (table in docs/released_model.md); not made "
    "for latent marks, children, worn or diseased skin; not to decide about people",
}


def commit() -> str:
    """Of the checkout that this recipe lies in."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return f"commit {subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()}"
    except (OSError, subprocess.CalledProcessError):
        return f"release {__version__}"


def export(out: Path, unseen: Path, bf16: bool) -> None:
    """Measures the best model on fingers it never saw; keeps rates, thresholds and origin with it, in 16 bits."""
    from fingerprint_accel import FingerprintExtractor
    from fingerprint_accel.data.shards import open_dataset
    from fingerprint_accel.evaluation.calibration import rates_and_thresholds

    extractor = FingerprintExtractor.from_pretrained(out)
    extractor.bf16 = bf16
    command = f"accelerate launch recipes/pretrain_small.py --out {out.name}"
    made = {"made_by": f"`{command}`, {commit()}, torch {torch.__version__}"}
    notes = {**made, **FACTS, **rates_and_thresholds(extractor, open_dataset(unseen))}
    extractor.save_pretrained(out / "model", notes, half=True)
    print("\n".join(f"{name}: {value}" for name, value in notes.items()))


def first_steps(out: Path) -> str:
    """Trains on clean prints; returns the run folder."""
    folder = out / "first-steps"
    if not (folder / "model").exists():
        data = synthetic_prints(folder / "prints", CLEAN_FINGERS, CLEAN_IMPRESSIONS, CLEAN_SEED, Style(quality="clean"))
        run_training(dataclasses.replace(CLEAN, data=data, out=str(folder), resume="auto"))
    return str(folder)


def main() -> None:
    """Makes the prints once, trains, measures, exports."""
    config = parse(CONFIG, __doc__ or "")
    check_out(config)
    out = Path(config.out)
    if not config.model.start_from and (not config.data or is_source(config.data)):
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, start_from=first_steps(out)))
    if not config.data:
        data = synthetic_prints(out / "prints", FINGERS, IMPRESSIONS, SEED, Style())
        config = dataclasses.replace(config, data=data)
    run = run_training(config)
    unseen = synthetic_prints(out / "unseen-prints", TEST_FINGERS, TEST_IMPRESSIONS, SEED + 1, Style())
    if run.accelerator.is_main_process:
        export(out, Path(unseen), config.training.precision == "bf16")
    run.accelerator.state.destroy_process_group()


if __name__ == "__main__":
    with one_line_errors(INTERRUPTED):
        main()
