"""The bundled model `base`, on a GPU: a wider network than `small` that sees prints at a finer scale.

accelerate launch --config_file recipes/hardware/gpu.yaml recipes/pretrain_base.py --out runs/base

Made from nothing but the aligning network of the bundled `small`: behind it a fresh network learns from siblings,
fingers that only minutiae tell apart, first by clean impressions and then by all kinds. The fingers stay on the GPU and
every step renders new impressions of them. With --model.start-from MODEL only the second stage runs. A kill costs
little (`--resume auto`). docs/released_model.md says what was measured.
"""

import dataclasses
from pathlib import Path

import torch
from pretrain_small import CONFIG as SMALL
from pretrain_small import FACTS, MILD, TEST_FINGERS, TEST_IMPRESSIONS, TEST_SEED, export

from fingerprint_accel.config import Config, parse
from fingerprint_accel.errors import one_line_errors
from fingerprint_accel.recipe import INTERRUPTED, run_training, synthetic_prints
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.training.run_folder import check_run_folder

FINGERS, SIBLINGS, SEED = 24_000, 8, 20261130
CLEAN_SHARE = 2 / 11  # of the steps of the second stage
CONFIG = dataclasses.replace(
    SMALL,
    data=f"synth:fingers={FINGERS},siblings={SIBLINGS},quality=mixed,seed={SEED}",
    reading=dataclasses.replace(SMALL.reading, siblings=SIBLINGS, validation_fraction=0.01),
    preprocess=dataclasses.replace(
        SMALL.preprocess, size=224, augment=dataclasses.replace(SMALL.preprocess.augment, ramp=0.6)
    ),
    model=dataclasses.replace(SMALL.model, width=40),
    training=dataclasses.replace(
        SMALL.training,
        steps=2200,
        batch_size=512,
        learning_rate=3e-3,
        warmup_steps=100,
        validate_every=400,
        save_every=800,
    ),
)
BASE_FACTS = {
    **FACTS,
    "trained_on": f"{FINGERS} synthetic fingers in families of {SIBLINGS}, seed {SEED}: new impressions in every step, "
    "first clean and then of mixed quality; aligning network of `small`",
}


def fresh(config: Config, folder: Path) -> str:
    """Writes a network of random weights behind the aligning network of `small`; returns its folder."""
    from fingerprint_accel import FingerprintExtractor

    small = FingerprintExtractor.from_pretrained("small")
    assert small.aligning is not None
    torch.manual_seed(config.training.seed)
    made = FingerprintExtractor(config.model, config.preprocess, small.ppi, small.canvas)
    assert made.aligning is not None
    made.aligning.load_state_dict(small.aligning.state_dict())
    made.save_pretrained(folder, {})
    return str(folder)


def clean_stage(config: Config) -> str:
    """Trains on clean impressions unless that is done; returns the run folder."""
    from fingerprint_accel.training.setup import process_state

    out = Path(config.out)
    folder = out / "1-clean"
    if not (folder / "model").exists():
        with process_state().main_process_first():
            if not (out / "0-fresh").exists():
                fresh(config, out / "0-fresh")
        steps = max(1, round(CLEAN_SHARE * config.training.steps))
        run_training(
            dataclasses.replace(
                config,
                data=config.data.replace("quality=mixed", "quality=clean"),
                out=str(folder),
                preprocess=dataclasses.replace(config.preprocess, augment=MILD),
                model=dataclasses.replace(config.model, start_from=str(out / "0-fresh")),
                training=dataclasses.replace(config.training, steps=steps, validate_every=0),
                resume="auto",
            )
        )
    return str(folder)


def main() -> None:
    """Trains both stages, measures, exports."""
    config = parse(CONFIG, __doc__ or "")
    check_run_folder(config)
    if not config.model.start_from:
        start_from = clean_stage(config)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, start_from=start_from))
    run = run_training(config)
    unseen = synthetic_prints(Path(config.out) / "unseen-prints", TEST_FINGERS, TEST_IMPRESSIONS, TEST_SEED, Style())
    if run.accelerator.is_main_process:
        export(run, unseen, BASE_FACTS)
    run.accelerator.state.destroy_process_group()


if __name__ == "__main__":
    with one_line_errors(INTERRUPTED):
        main()
