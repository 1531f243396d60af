"""Trains the bundled model `base`, a wider network than `small`, with prints at a higher resolution.

accelerate launch --quiet --config_file recipes/hardware/gpu.yaml recipes/pretrain_base.py --out runs/base

The three stages are described in the help of recipes/pretrain_small.py. docs/released_model.md has the measured error
rates of the bundled model.
"""

import dataclasses

from pretrain_small import CONFIG as SMALL
from pretrain_small import pretrain

from fingerprint_accel.errors import one_line_errors
from fingerprint_accel.recipe import INTERRUPTED

CONFIG = dataclasses.replace(
    SMALL,
    preprocess=dataclasses.replace(SMALL.preprocess, size=224),
    model=dataclasses.replace(SMALL.model, width=40),
    training=dataclasses.replace(SMALL.training, steps=6_400),
)

if __name__ == "__main__":
    with one_line_errors(INTERRUPTED):
        pretrain(CONFIG, __doc__ or "")
