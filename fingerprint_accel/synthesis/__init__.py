"""Generate synthetic fingers and render impressions of them, with batched tensor operations."""
