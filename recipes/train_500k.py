"""Trains DeepPrint from random weights on about 500,000 prints of 50,000 fingers, on four GPUs of 40 GB.

accelerate launch --quiet --config_file recipes/hardware/gpus4.yaml recipes/train_500k.py --data DATASET --out RUN

Differences from train_100k.py:
- The identity heads are sharded (--loss.sharded): each GPU holds 12,500 class vectors, and the GPUs exchange embeddings
  instead of gradients of class vectors (An et al. 2022, arXiv 2203.15565).
- Each update uses 512 prints on four GPUs together. The learning rate follows the square-root rule of train_100k.py.
- Validation uses only 0.4 % of the fingers. Measure the error rates of the final model on a test set with
  `fingerprint-accel evaluate`.
On eight GPUs, add --training.batch-size 64 to keep 512 prints per update.
"""

import dataclasses

from train_100k import CONFIG as TRAIN_100K

from fingerprint_accel.recipe import run_recipe

CONFIG = dataclasses.replace(
    TRAIN_100K,
    reading=dataclasses.replace(TRAIN_100K.reading, validation_fraction=0.004),
    loss=dataclasses.replace(TRAIN_100K.loss, sharded=True, scale=64.0),
    training=dataclasses.replace(
        TRAIN_100K.training,
        epochs=30,
        learning_rate=2e-3,
        warmup_steps=1000,
        validate_every=2000,
        save_every=1000,
        patience=0,
    ),
)

if __name__ == "__main__":
    run_recipe(CONFIG, __doc__ or "")
