"""Identity, center, minutia-map and contrastive losses, also with classes sharded over processes."""
