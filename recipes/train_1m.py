"""Trains DeepPrint from random weights on about 1,000,000 prints of 100,000 fingers, on eight GPUs of 80 GB.

accelerate launch --quiet --config_file recipes/hardware/gpus8.yaml recipes/train_1m.py --data DATASET --out RUN

Differences from train_500k.py:
- Each update uses 2,048 prints. The learning rate is 4e-3, by the square-root rule of train_100k.py.
- The warm-up is longer.
- There are fewer epochs, because each epoch has more prints.
- Processes exchange gradients in bf16 and in larger buckets.
If the prints do not fit into memory, add --reading.order block --reading.samples-per-class 1
--loss.contrastive-weight 0.
"""

import dataclasses

from train_500k import CONFIG as TRAIN_500K

from fingerprint_accel.recipe import run_recipe

CONFIG = dataclasses.replace(
    TRAIN_500K,
    reading=dataclasses.replace(TRAIN_500K.reading, validation_fraction=0.002),
    training=dataclasses.replace(
        TRAIN_500K.training,
        epochs=24,
        batch_size=256,
        learning_rate=4e-3,
        warmup_steps=2000,
        gradient_compression="bf16",
        bucket_cap_mb=100,
    ),
)

if __name__ == "__main__":
    run_recipe(CONFIG, __doc__ or "")
