"""Open training of fixed-length fingerprint embeddings on Hugging Face Accelerate."""

__version__ = "0.1.0"
