"""Trains DeepPrint from random weights on up to 10,000 prints, on one GPU.

accelerate launch --quiet --config_file recipes/hardware/gpu.yaml recipes/train_10k.py --data DATASET --out RUN

The network has a texture and a minutia branch on an Inception v4 trunk (Engelsma et al. 2019, arXiv 1909.09901). Its
67 million parameters are too many for a CPU. On a CPU, fine-tune a bundled model with recipes/finetune.py, or add
--model.trunk compact --preprocess.crop 256 --preprocess.size 160. Add --resume auto to continue an interrupted run.
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
