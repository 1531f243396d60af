"""The page that goes with an exported model: what it is, how to use it, what it was made of."""

from __future__ import annotations

from typing import Any

from fingerprint_accel import __version__
from fingerprint_accel.config import ModelConfig

CARD = """# {title}

Fixed-length fingerprint embedding, {dims} numbers of unit length; compare two by their dot product.
Canvases: {canvas} x {canvas} pixels at {ppi} ppi{enhanced}. Trained with fingerprint_accel {version}.

```python
from fingerprint_accel import FingerprintExtractor

extractor = FingerprintExtractor.from_pretrained("{name}")
embeddings = extractor.extract(["a.png", "b.png"], ppi=500)  # (2, {dims}) float32
print(extractor.compare("a.png", "b.png", ppi=500))
```
"""


def model_card(name: str, model: ModelConfig, ppi: int, canvas: int, enhanced: bool, notes: dict[str, Any]) -> str:
    """Markdown for a model exported to a folder called `name`; `notes` become a list of facts."""
    text = CARD.format(
        title=f"DeepPrint {model.variant} ({model.trunk})",
        dims=model.embedding_dim,
        canvas=canvas,
        ppi=ppi,
        enhanced=", ridges enhanced as `import --enhance` does" if enhanced else "",
        version=__version__,
        name=name,
    )
    facts = "".join(f"- {key.replace('_', ' ')}: {value}\n" for key, value in notes.items())
    return f"{text}\n{facts}" if facts else text
