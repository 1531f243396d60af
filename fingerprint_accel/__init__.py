"""Training and use of fixed-length fingerprint embeddings, on PyTorch and Hugging Face Accelerate.

The names below are loaded when they are first used, so that `import fingerprint_accel` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = [
    "Config",
    "DeepPrint",
    "DeepPrintLoss",
    "FingerprintExtractor",
    "Gallery",
    "Preprocessor",
    "compute_metrics",
    "decode_canvas",
    "open_dataset",
    "training_loader",
]

if TYPE_CHECKING:
    from fingerprint_accel.config import Config
    from fingerprint_accel.data.encoding import decode_canvas
    from fingerprint_accel.data.shards import open_dataset
    from fingerprint_accel.data.training_loader import training_loader
    from fingerprint_accel.extraction.extractor import FingerprintExtractor
    from fingerprint_accel.extraction.gallery import Gallery
    from fingerprint_accel.losses.deepprint import DeepPrintLoss
    from fingerprint_accel.metrics.verification import compute_metrics
    from fingerprint_accel.models.deepprint import DeepPrint
    from fingerprint_accel.preprocess.pipeline import Preprocessor
else:
    _MODULES = {
        "Config": "config",
        "DeepPrint": "models.deepprint",
        "DeepPrintLoss": "losses.deepprint",
        "FingerprintExtractor": "extraction.extractor",
        "Gallery": "extraction.gallery",
        "Preprocessor": "preprocess.pipeline",
        "compute_metrics": "metrics.verification",
        "decode_canvas": "data.encoding",
        "open_dataset": "data.shards",
        "training_loader": "data.training_loader",
    }

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return [*__all__, "__version__"]
