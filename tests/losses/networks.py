"""Networks for tests of losses, which need their shapes only."""

from fingerprint_accel.config import ModelConfig
from fingerprint_accel.models.deepprint import DeepPrint


def network(variant="Tex", dim=8, dropout=0.0):
    """A small one with embeddings of `dim` numbers, and minutia maps of 16 x 16 pixels if the variant has them."""
    config = ModelConfig(variant=variant, trunk="compact", width=8, embedding_dim=dim, dropout=dropout)
    return DeepPrint(config, map_size=16)
