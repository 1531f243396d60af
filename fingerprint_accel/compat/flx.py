"""Provide the Python interface of flx for the datasets of this package.

The interface consists of functions such as `get_DeepPrint_TexMinu`, and of the methods `fit` and `extract`. flx
(fixed-length-fingerprint-extractors) is an implementation of DeepPrint. In place of the dataset classes of flx, the
methods take the path of a dataset folder, which `fingerprint-accel import ... --layout flx` creates. Embedding
dimensions are per branch, as in flx.
"""

# ruff: noqa: N802  (names of flx)

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from fingerprint_accel.compat.flx_weights import load as load  # re-exported next to the other names of flx
from fingerprint_accel.config import Config, ReadingConfig, TrainingConfig, Variant
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.models.checkpoint_folder import checkpoint_names
from fingerprint_accel.ranks import launched_rank_and_size
from fingerprint_accel.recipe import run_training
from fingerprint_accel.training.setup import fast_precision

_DEFAULT = Config()


class DeepPrintExtractor:
    """Trains a DeepPrint model and extracts embeddings, with the method names of flx.

    Args:
        num_training_subjects: number of fingers in the training data; flx calls them subjects.
        config: all options that are not arguments of `fit`. `config.model` contains the variant.
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
        """Train a model. Afterwards, the best model is in `out_dir/model` and in this object.

        If `out_dir` contains a run, `fit` resumes it and prints the step. Dataset folders contain minutiae and labels,
        so minutiae and labels are not separate arguments as in flx.

        Args:
            fingerprints: dataset folder to train on.
            validation_fingerprints: dataset folder to validate on. With None there is no validation, and the last model
                is kept.
            num_epochs: number of passes over the data.
            out_dir: run folder.
            patience: stop after this number of epochs without a lower validation EER; 0 disables early stopping. The
                run validates once per epoch, rounded to whole steps.
            use_amp: use mixed precision where it is fast: bf16 on GPUs and CPUs with hardware support, and fp16 on
                other GPUs. Other CPUs use float32.
            batch_size: number of prints per process and step.
            learning_rate: peak learning rate of AdamW. It is not scaled with the number of processes.

        Raises:
            UserError: if the data cannot be used, or its number of fingers differs from `num_training_subjects`.
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
        names = checkpoint_names(Path(out_dir))
        if names and rank == 0:
            step, steps = int(names[-1].removeprefix("step-")), max(1, round(num_epochs * epoch))
            print(f"{out_dir}: holds a run already; fit resumes it from step {step} of {steps}", flush=True)
        run_training(config)
        return self.load_best_model(out_dir)

    def load_best_model(self, out_dir: str | Path) -> DeepPrintExtractor:
        """Load the best model of a run folder into this object.

        Raises:
            UserError: if there is no model.
        """
        self.extractor = FingerprintExtractor.from_pretrained(out_dir)
        return self

    def extract(self, dataset: str | Path, batch_size: int = 64) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Extract the embeddings of all prints of a dataset folder, in the order of its rows.

        Returns:
            Texture and minutia embeddings, each (N, num_dims) float32 of unit length. If the variant does not have a
            branch, the value is None.

        Raises:
            UserError: if no model is trained or loaded, or the dataset does not fit the model.
        """
        if self.extractor is None:
            raise UserError("no model yet: call fit(...) or load_best_model(run_folder) first")
        embeddings = self.extractor.extract(open_dataset(dataset), batch_size=batch_size)
        branches = self.extractor.model.branch_dims
        parts = np.split(embeddings * len(branches) ** 0.5, len(branches), axis=1)  # rescale each branch to unit length
        found = dict(zip(branches, parts, strict=True))
        return found.get("texture"), found.get("minutia")


def _make(variant: Variant, fingers: int, embedding_dim: int) -> DeepPrintExtractor:
    model = replace(_DEFAULT.model, variant=variant, embedding_dim=embedding_dim)
    return DeepPrintExtractor(fingers, replace(_DEFAULT, model=model))


def get_DeepPrint_Tex(num_training_subjects: int, num_texture_dims: int) -> DeepPrintExtractor:
    """Make an untrained model with a texture branch, whose embeddings have the dimension `num_texture_dims`."""
    return _make("Tex", num_training_subjects, num_texture_dims)


def get_DeepPrint_Minu(num_training_subjects: int, num_minutia_dims: int) -> DeepPrintExtractor:
    """Make an untrained model with a minutia branch, whose embeddings have the dimension `num_minutia_dims`."""
    return _make("Minu", num_training_subjects, num_minutia_dims)


def get_DeepPrint_TexMinu(num_training_subjects: int, num_dims: int) -> DeepPrintExtractor:
    """Make an untrained model with a texture and a minutia branch, each with embeddings of dimension `num_dims`."""
    return _make("TexMinu", num_training_subjects, 2 * num_dims)


def get_DeepPrint_LocTex(num_training_subjects: int, num_texture_dims: int) -> DeepPrintExtractor:
    """Make an untrained model with an alignment network and a texture branch.

    The embeddings have the dimension `num_texture_dims`.
    """
    return _make("LocTex", num_training_subjects, num_texture_dims)


def get_DeepPrint_LocMinu(num_training_subjects: int, num_minutia_dims: int) -> DeepPrintExtractor:
    """Make an untrained model with an alignment network and a minutia branch.

    The embeddings have the dimension `num_minutia_dims`.
    """
    return _make("LocMinu", num_training_subjects, num_minutia_dims)


def get_DeepPrint_LocTexMinu(num_training_subjects: int, num_dims: int) -> DeepPrintExtractor:
    """Make an untrained model with an alignment network, a texture branch and a minutia branch.

    The embeddings of each branch have the dimension `num_dims`.
    """
    return _make("LocTexMinu", num_training_subjects, 2 * num_dims)
