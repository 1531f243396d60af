"""Runs the whole pipeline on two CPU cores: makes synthetic fingers, fine-tunes `small` on them, evaluates on others.

accelerate launch recipes/quickstart.py --out runs/quickstart

The report is OUT/evaluation/report.html: sample prints, training curves, DET curve and score histogram. The prints are
written below OUT, unless --data names a dataset folder or a synthetic source (synth:fingers=20000).

--model.init-from "" starts from random weights. Then add more --training.epochs, a higher --training.learning-rate and
a late margin, as in recipes/pretrain_small.py.
"""

import dataclasses
from pathlib import Path

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
from fingerprint_accel.training.run_folder import check_run_folder
from fingerprint_accel.training.setup import fast_precision

CONFIG = Config(
    reading=ReadingConfig(validation_fraction=0.08, samples_per_class=2),
    preprocess=PreprocessConfig(
        crop=256,
        size=160,
        augment=AugmentConfig(
            rotation_degrees=10, translation=6, elastic=1.5, contrast=0.2, ridge_thickness=0.2, occlusion=0.05
        ),
    ),
    # must be the architecture of the bundled model
    model=ModelConfig(
        init_from="small",
        variant="LocDense",
        trunk="compact",
        embedding_dim=512,
        dropout=0.0,
        alignment_frozen=True,
    ),
    loss=LossConfig(head="cosface", scale=32.0, margin=0.2, center_weight=0.0, contrastive_weight=1.0),
    training=TrainingConfig(
        epochs=3, batch_size=64, learning_rate=1e-3, warmup_steps=20, validate_every=69, save_every=69
    ),
)
STYLE = Style(quality="clean")
FINGERS, IMPRESSIONS = 600, 8
TEST_FINGERS, TEST_IMPRESSIONS = 60, 4


def fast_on_this_machine(config: Config) -> Config:
    """Return the configuration with the fastest precision of this machine.

    Hardware without 16-bit arithmetic trains in float32, for a quarter of the epochs, to keep the quickstart short.
    """
    training, precision = config.training, fast_precision()
    if precision == "no":
        return dataclasses.replace(config, training=dataclasses.replace(training, epochs=training.epochs / 4))
    return dataclasses.replace(config, training=dataclasses.replace(training, precision=precision))


def main() -> None:
    """Makes the prints, trains, and evaluates."""
    config = parse(fast_on_this_machine(CONFIG), __doc__ or "")
    check_run_folder(config)
    out = Path(config.out)
    if not config.data:
        config = dataclasses.replace(config, data=synthetic_prints(out / "prints", FINGERS, IMPRESSIONS, 1, STYLE))
    unseen = synthetic_prints(out / "unseen-prints", TEST_FINGERS, TEST_IMPRESSIONS, 2, STYLE)
    run = run_training(config)
    if run.accelerator.is_main_process:
        from fingerprint_accel.evaluation.run import evaluate_command

        evaluate_command(out / "model", Path(unseen), "all-pairs", out / "evaluation", batch_size=64)
    run.accelerator.state.destroy_process_group()


if __name__ == "__main__":
    with one_line_errors(INTERRUPTED):
        main()
