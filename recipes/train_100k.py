"""Trains DeepPrint from random weights on about 100,000 prints of 10,000 fingers, on one GPU.

accelerate launch --quiet --config_file recipes/hardware/gpu.yaml recipes/train_100k.py --data DATASET --out RUN

Differences from train_10k.py:
- A contrastive loss compares two impressions of each finger in a batch. It needs many fingers.
- Margin and augmentation increase during training. At full strength, each of them would keep the loss of random
  initial weights from falling.
- The batch is larger. The learning rate is 5e-4 at 32 prints and grows with the square root of the batch size, as
  derived for Adam by Malladi et al. 2022, arXiv 2205.10287.
- The first 64 or 128 numbers of an embedding can be used alone (Kusupati et al. 2022, arXiv 2205.13147).
"""

from fingerprint_accel.config import (
    AugmentConfig,
    Config,
    LossConfig,
    ModelConfig,
    PreprocessConfig,
    ReadingConfig,
    TrainingConfig,
)
from fingerprint_accel.recipe import run_recipe

CONFIG = Config(
    reading=ReadingConfig(validation_fraction=0.02, samples_per_class=2),
    preprocess=PreprocessConfig(augment=AugmentConfig(start=0.2, ramp=0.3)),
    model=ModelConfig(variant="TexMinu", trunk="inception_v4", embedding_dim=512),
    loss=LossConfig(
        head="cosface",
        scale=48.0,
        margin=0.3,
        margin_start=0.2,
        margin_ramp=0.2,
        contrastive_weight=0.5,
        matryoshka_dims=(64, 128),
    ),
    training=TrainingConfig(
        epochs=40,
        batch_size=128,
        learning_rate=1e-3,
        warmup_steps=500,
        validate_every=1000,
        save_every=1000,
        patience=10,
    ),
)

if __name__ == "__main__":
    run_recipe(CONFIG, __doc__ or "")
