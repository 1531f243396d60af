"""500,000 prints of 50,000 fingers, on four GPUs of 40 GB.

accelerate launch --config_file recipes/hardware/gpus4.yaml recipes/large_500k.py --data DATASET --out RUN

What differs from medium.py: the identity head is shared out (--loss.sharded: every GPU keeps 12,500 of the fingers
and sends embeddings, not gradients of class vectors); 512 prints per update over four GPUs, learning rate by the square
root rule; validation on 0.4 % of the fingers, often. All of a test set is for the end: fingerprint-accel evaluate.
On eight GPUs --training.batch-size 64 keeps the update as it is.
"""

import dataclasses

from medium import CONFIG as MEDIUM

from fingerprint_accel.recipe import run_recipe

CONFIG = dataclasses.replace(
    MEDIUM,
    reading=dataclasses.replace(MEDIUM.reading, validation_fraction=0.004),
    loss=dataclasses.replace(MEDIUM.loss, sharded=True, scale=64.0),
    training=dataclasses.replace(
        MEDIUM.training,
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
