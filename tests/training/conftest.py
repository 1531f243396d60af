import pytest

from fingerprint_accel.config import Config, LossConfig, ModelConfig, PreprocessConfig, ReadingConfig, TrainingConfig


@pytest.fixture(autouse=True)
def every_run_starts_afresh(fresh_accelerator):
    """For all tests of this folder."""


@pytest.fixture
def tiny(prints, tmp_path):
    """A configuration that trains in seconds, with normalisation that is independent of the batch."""
    return Config(
        data=str(prints),
        out=str(tmp_path / "run"),
        reading=ReadingConfig(validation_fraction=0.3),
        preprocess=PreprocessConfig(crop=256, size=64),
        model=ModelConfig(variant="TexMinu", trunk="compact", width=8, embedding_dim=32, norm="group", dropout=0.0),
        loss=LossConfig(head="cosface", scale=16.0, margin=0.1),
        training=TrainingConfig(
            steps=6, batch_size=8, log_every=1, warmup_steps=2, validate_every=0, save_every=0, tracker="none"
        ),
    )
