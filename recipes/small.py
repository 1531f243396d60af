"""Up to 10,000 prints: DeepPrint with texture and minutia branch, strong augmentation, modest learning rate.

accelerate launch recipes/small.py --data DATASET --out RUN
accelerate launch --config_file recipes/hardware/gpu.yaml recipes/small.py --data DATASET --out RUN --resume auto
"""

from fingerprint_accel.config import Config, LossConfig, ModelConfig, ReadingConfig, TrainingConfig
from fingerprint_accel.recipe import run_recipe

CONFIG = Config(
    reading=ReadingConfig(validation_fraction=0.1),
    model=ModelConfig(variant="TexMinu", trunk="inception_v4", embedding_dim=512),
    loss=LossConfig(head="cosface", scale=32.0, margin=0.2),
    training=TrainingConfig(epochs=60, batch_size=32, learning_rate=5e-4, validate_every=250, patience=12),
)

if __name__ == "__main__":
    run_recipe(CONFIG, __doc__ or "")
