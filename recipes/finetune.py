"""Fine-tunes a bundled model on prints of your own sensor. A few hundred fingers are enough.

accelerate launch --quiet recipes/finetune.py --data DATASET --out RUN

DATASET is a folder that `fingerprint-accel import` has made with its defaults (300 ppi, canvas 320). Measure the model
before and after with `fingerprint-accel evaluate`. The identity heads start from the mean embeddings of your fingers.

With few fingers, add --folds 5 for cross-validation. It trains five models, each without a fifth of the fingers. Each
model is evaluated on the fingers that it was not trained on. The error rates of each fold and of all folds together are
printed. --resume auto continues with the interrupted fold. If the data contains several fingers of the same person,
also add --reading.split-by subject.
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
    # this must be the architecture of the bundled model
    model=ModelConfig(
        init_from="small",
        variant="LocDense",
        trunk="compact",
        embedding_dim=512,
        dropout=0.0,
        alignment_frozen=True,
    ),
    loss=LossConfig(head="cosface", scale=32.0, margin=0.2, center_weight=0.0, contrastive_weight=1.0),
    # a tenth of the learning rate of recipes/pretrain_small.py, so that the trained weights change little
    training=TrainingConfig(epochs=20, batch_size=64, learning_rate=3e-4, warmup_steps=50, validate_every=50),
)

if __name__ == "__main__":
    run_recipe(CONFIG, __doc__ or "")
