"""Define identity, center, minutia-map and contrastive losses, and identity losses sharded over processes."""
