"""flx's call names over our datasets: `get_DeepPrint_TexMinu(...)`, `.fit(...)`, `.extract(...)`.

Where flx takes datasets of its own, these take the path of a dataset folder (`fingerprint-accel import ... --layout
flx`). Dimensions are per branch, as in flx.
"""

# ruff: noqa: N802  (the names are flx's)

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from fingerprint_accel.compat.flx_weights import load as load  # flx's checkpoints, beside flx's getters
from fingerprint_accel.config import Config, ReadingConfig, TrainingConfig, Variant
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.ranks import launched_rank_and_size
from fingerprint_accel.recipe import run_training
from fingerprint_accel.training.resume import checkpoint_to_resume
from fingerprint_accel.training.setup import fast_precision

_DEFAULT = Config()


class DeepPrintExtractor:
    """A DeepPrint to train and to extract with, under flx's names.

    Args:
        num_training_subjects: number of fingers in the training data (flx's subjects).
        config: everything that `fit` does not take; `model` holds the variant.
    """

    def __init__(self, num_training_subjects: int, config: Config) -> None:
        self.num_training_subjects, self.config = num_training_subjects, config
        self.extractor: FingerprintExtractor | None = None

    def fit(
        self,
        fingerprints: str | Path,
        validation_fingerprints: str | Path | None = None,
        num_epochs: float = 100,
        out_dir: str | Path = "deepprint",
        patience: int = 0,
        use_amp: bool = True,
        batch_size: int = TrainingConfig.batch_size,
        learning_rate: float = TrainingConfig.learning_rate,
    ) -> DeepPrintExtractor:
        """Trains; afterwards the best model is in `out_dir/model` and in this object.

        If `out_dir` holds a run, `fit` resumes it and prints from which step. Minutia maps and labels, which flx passes
        separately, are part of our datasets.

        Args:
            fingerprints: dataset folder to train on.
            validation_fingerprints: dataset folder to validate on; None validates on nothing and keeps the last model.
            num_epochs: passes over the data.
            out_dir: run folder.
            patience: epochs without a lower validation EER after which training stops; 0 never stops early. The run
                validates once an epoch, rounded to whole steps, on any number of processes.
            use_amp: train in mixed precision where that is fast: bf16 on GPUs and processors that have it in hardware,
                fp16 on other GPUs, float32 on other processors.
            batch_size: prints per process and step; several processes take as many times more per step.
            learning_rate: peak learning rate of AdamW. It is not scaled with the batch.

        Raises:
            UserError: data that cannot be used, or whose number of fingers is not `num_training_subjects`.
        """
        shards = open_dataset(fingerprints)
        fingers, wanted = shards.info.fingers, self.num_training_subjects
        require(fingers == wanted, f"{fingerprints}: holds {fingers} fingers, not num_training_subjects={wanted}")
        training = replace(
            self.config.training,
            epochs=float(num_epochs),
            batch_size=batch_size,
            learning_rate=learning_rate,
            patience=patience,
            precision=fast_precision() if use_amp else "no",
        )
        rank, processes = launched_rank_and_size()
        epoch = len(shards) / (batch_size * training.gradient_accumulation_steps * processes)  # in steps
        every = max(1, round(epoch))
        config = replace(
            self.config,
            data=str(fingerprints),
            out=str(out_dir),
            resume="auto",
            reading=ReadingConfig(validation_data=str(validation_fingerprints or ""), validation_fraction=0.0),
            training=replace(training, validate_every=every, save_every=every),
        )
        checkpoint = checkpoint_to_resume(config)
        if checkpoint is not None and rank == 0:
            step, steps = int(checkpoint.name.removeprefix("step-")), max(1, round(num_epochs * epoch))
            print(f"{out_dir}: holds a run already; fit resumes it from step {step} of {steps}", flush=True)
        run_training(config)
        return self.load_best_model(out_dir)

    def load_best_model(self, out_dir: str | Path) -> DeepPrintExtractor:
        """Takes the best model of a run folder; UserError where there is none."""
        self.extractor = FingerprintExtractor.from_pretrained(out_dir)
        return self

    def extract(self, dataset: str | Path, batch_size: int = 64) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Embeds every print of a dataset folder, in row order.

        Returns:
            Texture and minutia embeddings, (N, num_dims) float32 each of unit length; None for a branch that the
            variant lacks.

        Raises:
            UserError: not trained or loaded yet, or a dataset that does not fit.
        """
        if self.extractor is None:
            raise UserError("no model yet: call fit(...) or load_best_model(run_folder) first")
        embeddings = self.extractor.extract(open_dataset(dataset), batch_size=batch_size)
        branches = self.extractor.model.branch_dims
        parts = np.split(embeddings * len(branches) ** 0.5, len(branches), axis=1)  # each of unit length again
        found = dict(zip(branches, parts, strict=True))
        return found.get("texture"), found.get("minutia")


def _make(variant: Variant, fingers: int, embedding_dim: int) -> DeepPrintExtractor:
    model = replace(_DEFAULT.model, variant=variant, embedding_dim=embedding_dim)
    return DeepPrintExtractor(fingers, replace(_DEFAULT, model=model))


def get_DeepPrint_Tex(num_training_subjects: int, num_texture_dims: int) -> DeepPrintExtractor:
    """Texture branch."""
    return _make("Tex", num_training_subjects, num_texture_dims)


def get_DeepPrint_Minu(num_training_subjects: int, num_minutia_dims: int) -> DeepPrintExtractor:
    """Minutia branch."""
    return _make("Minu", num_training_subjects, num_minutia_dims)


def get_DeepPrint_TexMinu(num_training_subjects: int, num_dims: int) -> DeepPrintExtractor:
    """Both branches, `num_dims` each."""
    return _make("TexMinu", num_training_subjects, 2 * num_dims)


def get_DeepPrint_LocTex(num_training_subjects: int, num_texture_dims: int) -> DeepPrintExtractor:
    """Alignment network and texture branch."""
    return _make("LocTex", num_training_subjects, num_texture_dims)


def get_DeepPrint_LocMinu(num_training_subjects: int, num_minutia_dims: int) -> DeepPrintExtractor:
    """Alignment network and minutia branch."""
    return _make("LocMinu", num_training_subjects, num_minutia_dims)


def get_DeepPrint_LocTexMinu(num_training_subjects: int, num_dims: int) -> DeepPrintExtractor:
    """Alignment network and both branches, `num_dims` each."""
    return _make("LocTexMinu", num_training_subjects, 2 * num_dims)
