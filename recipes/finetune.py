"""From the bundled model to your own sensor: the network goes on from what it knows; a few hundred fingers are enough.

accelerate launch recipes/finetune.py --data DATASET --out RUN

DATASET is an import at 300 ppi on canvases of 320 x 320, the defaults of `fingerprint-accel import`. The identity head
starts afresh, because the fingers are others. Compare before and after with `fingerprint-accel evaluate`.
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
    reading=ReadingConfig(validation_fraction=0.1, samples_per_class=2),
    preprocess=PreprocessConfig(
        crop=256,
        size=160,
        augment=AugmentConfig(
            rotation_degrees=15, translation=16, elastic=2.0, contrast=0.3, ridge_thickness=0.3, noise=0.05
        ),
    ),
    # the bundled network's shape
    model=ModelConfig(
        init_from="small",
        variant="LocDense",
        trunk="compact",
        embedding_dim=512,
        dropout=0.0,
        alignment_frozen=True,
    ),
    loss=LossConfig(head="cosface", scale=32.0, margin=0.2, center_weight=0.0, contrastive_weight=1.0),
    # a tenth of the rate that a network from nothing starts with
    training=TrainingConfig(epochs=20, batch_size=64, learning_rate=3e-4, warmup_steps=50, validate_every=50),
)

if __name__ == "__main__":
    run_recipe(CONFIG, __doc__ or "")
