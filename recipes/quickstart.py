"""From nothing to an error rate on two CPU cores: makes ridge-like prints, trains a compact DeepPrint, evaluates it.

accelerate launch recipes/quickstart.py --out runs/quickstart

Prints are made under OUT unless --data names a dataset; the report lies in OUT/evaluation/report.html.
"""

import dataclasses
from pathlib import Path

import torch
from accelerate import PartialState

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
from fingerprint_accel.recipe import INTERRUPTED, check_out, run_training
from fingerprint_accel.synthesis.simple import write_simple_dataset

CONFIG = Config(
    reading=ReadingConfig(validation_fraction=0.1),
    preprocess=PreprocessConfig(
        crop=256,
        size=128,
        augment=AugmentConfig(
            rotation_degrees=8, translation=6, elastic=1.5, contrast=0.2, ridge_thickness=0.2, occlusion=0.05
        ),
    ),
    model=ModelConfig(variant="Tex", trunk="compact", embedding_dim=192, dropout=0.0),
    loss=LossConfig(head="cosface", scale=24.0, margin=0.1, center_weight=0.0),
    training=TrainingConfig(
        epochs=10, batch_size=64, learning_rate=3e-3, warmup_steps=50, validate_every=135, save_every=135
    ),
)
FINGERS, IMPRESSIONS = 400, 8
TEST_FINGERS, TEST_IMPRESSIONS = 60, 4


def make_data(folder: Path, fingers: int, impressions: int, seed: int) -> str:
    """Makes a dataset on one process, once; returns its path."""
    with PartialState().main_process_first():
        if not folder.exists():
            write_simple_dataset(folder, fingers, impressions, seed, progress=PartialState().is_main_process)
    return str(folder)


def fast_on_this_machine(config: Config) -> Config:
    """bf16 and all epochs where a GPU or the processor multiplies bf16 in hardware; else float32 and half of them."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    training = config.training
    if torch.cuda.is_available() or "amx_bf16" in flags or "avx512_bf16" in flags:
        return dataclasses.replace(config, training=dataclasses.replace(training, precision="bf16"))
    return dataclasses.replace(config, training=dataclasses.replace(training, epochs=training.epochs / 2))


def main() -> None:
    """Makes, trains, evaluates."""
    config = parse(fast_on_this_machine(CONFIG), __doc__ or "")
    check_out(config)
    out = Path(config.out)
    if not config.data:
        config = dataclasses.replace(config, data=make_data(out / "prints", FINGERS, IMPRESSIONS, seed=1))
    unseen = make_data(out / "unseen-prints", TEST_FINGERS, TEST_IMPRESSIONS, seed=2)
    run = run_training(config)
    if run.accelerator.is_main_process:
        from fingerprint_accel.evaluation.run import evaluate_command

        evaluate_command(out / "model", Path(unseen), "all-pairs", out / "evaluation", batch_size=64)
    run.accelerator.state.destroy_process_group()


if __name__ == "__main__":
    with one_line_errors(INTERRUPTED):
        main()
