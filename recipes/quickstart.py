"""Fine-tunes the bundled model `small` on prints unlike those it was trained on, and measures what that changed.

accelerate launch --quiet recipes/quickstart.py --out runs/quickstart

The prints are synthetic lifted marks: faint, smeared, dirty, and some with bright ridges. Their quality is `default`.
One in ten shows only a part of the finger. `small` was trained on synthetic optical, capacitive, thermal and ink
prints, so lifted marks are new to it, and training has something to gain. The recipe makes a training set and a test
set, which have no finger in common.

At the end a table shows the error rates before and after training. If the package `nbis-py` is installed, it also shows
those of NIST's matcher. OUT/evaluation contains the report (report.html), a plot (before_after.png), and a mated pair
that only the trained model accepts (recovered_pair.png).

--data trains on a dataset folder or a synthetic source (synth:fingers=20000) instead of the marks.
--model.init-from "" starts from random weights. Then add more --training.steps, a higher --training.learning-rate and
a late margin, as in recipes/pretrain_small.py.
"""

import dataclasses
from functools import partial
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
from fingerprint_accel.privacy import private_files
from fingerprint_accel.ranks import launched_rank_and_size
from fingerprint_accel.recipe import INTERRUPTED, run_training, synthetic_prints
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.training.run_folder import check_run_folder
from fingerprint_accel.training.setup import fast_precision

CONFIG = Config(
    reading=ReadingConfig(validation_fraction=0.12, samples_per_class=2),
    # two passes over the prints are too few to need augmentation
    preprocess=PreprocessConfig(crop=256, size=160, augment=AugmentConfig(enabled=False)),
    # the architecture of the bundled model
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
        steps=96,
        batch_size=64,
        learning_rate=2e-3,
        warmup_steps=10,
        validate_every=16,
        save_every=48,
        precision=fast_precision(),
    ),
)
STYLE = Style(sensors=("latent",), partial=0.1)
FINGERS, IMPRESSIONS = 420, 8
TEST_FINGERS, TEST_IMPRESSIONS = 150, 4
STAGES = 4


def announce(stage: int, text: str) -> None:
    """Print a line about the next stage, on one process of the launch."""
    if launched_rank_and_size()[0] == 0:
        print(f"\n[{stage}/{STAGES}] {text}", flush=True)


def main() -> None:
    """Make the prints, train, and compare the model before and after."""
    config = parse(CONFIG, __doc__ or "")
    check_run_folder(config)
    out, training = Path(config.out), config.training
    if launched_rank_and_size()[0] == 0:
        print(f"about {5 if training.precision == 'no' else 3} minutes on two cores, precision {training.precision}")
    if not config.data:
        announce(1, f"making {FINGERS * IMPRESSIONS:,} prints of {FINGERS} fingers to train on")
        config = dataclasses.replace(config, data=synthetic_prints(out / "prints", FINGERS, IMPRESSIONS, 1, STYLE))
    announce(2, f"making {TEST_FINGERS * TEST_IMPRESSIONS:,} prints of {TEST_FINGERS} other fingers to test on")
    unseen = synthetic_prints(out / "unseen-prints", TEST_FINGERS, TEST_IMPRESSIONS, 3, STYLE)
    start = config.model.init_from
    announce(3, f"training from {start or 'random weights'}, with a validation every {training.validate_every} steps")
    run = run_training(config)
    announce(4, "comparing the test prints before and after training")
    if run.accelerator.is_main_process:
        from fingerprint_accel.evaluation.before_after import before_after
        from fingerprint_accel.evaluation.run import Extras, evaluate_command

        model, extras = out / "model", Extras(against=Path(start) if start else None)
        place, add = out / "evaluation", partial(before_after, model)
        evaluate_command(model, Path(unseen), "all-pairs", place, 64, extras, overwrite=True, add=add)
    run.accelerator.state.destroy_process_group()


if __name__ == "__main__":
    with one_line_errors(INTERRUPTED), private_files():
        main()
