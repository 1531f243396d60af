"""Generate synthetic fingers and their impressions as batched tensor operations."""
