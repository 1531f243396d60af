"""Open training of fixed-length fingerprint embeddings on Hugging Face Accelerate."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fingerprint_accel.extraction.extractor import FingerprintExtractor

__all__ = ["FingerprintExtractor"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Loads public names when they are asked for, so that a command line does not wait for torch."""
    if name == "FingerprintExtractor":
        from fingerprint_accel.extraction.extractor import FingerprintExtractor

        return FingerprintExtractor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
