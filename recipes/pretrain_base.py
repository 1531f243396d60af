"""The bundled model `base`: a wider network than `small` that sees prints at a finer scale.

accelerate launch --config_file recipes/hardware/gpu.yaml recipes/pretrain_base.py --out runs/base

The stages are those of recipes/pretrain_small.py, whose --help says more. docs/released_model.md says what the bundled
model reaches.
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
