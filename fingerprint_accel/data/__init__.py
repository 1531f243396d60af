"""Read fingerprint images, records and minutiae, and store prints as Arrow shards that training streams."""
