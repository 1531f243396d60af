"""1,000,000 prints of 100,000 fingers, on eight GPUs of 80 GB.

accelerate launch --config_file recipes/hardware/gpus8.yaml recipes/xlarge_1m.py --data DATASET --out RUN

What differs from large_500k.py: 2,048 prints per update, and with them, by the square root rule, a learning rate of
4e-3 after a longer warm-up; fewer epochs of more prints; gradients travel as bf16, in larger pieces. Prints that do not
fit into memory: --reading.order block --reading.samples-per-class 1 --loss.contrastive-weight 0.
"""

import dataclasses

from large_500k import CONFIG as LARGE

from fingerprint_accel.recipe import run_recipe

CONFIG = dataclasses.replace(
    LARGE,
    reading=dataclasses.replace(LARGE.reading, validation_fraction=0.002),
    training=dataclasses.replace(
        LARGE.training,
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
