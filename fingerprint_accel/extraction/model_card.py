"""The page that goes with an exported model: what it is, how to use it, what it was made of."""

from __future__ import annotations

from typing import Any

import yaml

from fingerprint_accel import __version__
from fingerprint_accel.config import ModelConfig

CARD = """---
{front_matter}---

# {title}

Fixed-length fingerprint embedding, {dims} numbers of unit length; compare two by their dot product.
Canvases: {canvas} x {canvas} pixels at {ppi} ppi{enhanced}. Trained with fingerprint_accel {version}.

```python
from fingerprint_accel import FingerprintExtractor

extractor = FingerprintExtractor.from_pretrained("{name}")
embeddings = extractor.extract(["a.png", "b.png"], ppi=500)  # (2, {dims}) float32
print(extractor.compare("a.png", "b.png", ppi=500))
```
"""


TAGS = ["fingerprint", "biometrics", "embedding", "deepprint", "pytorch"]


def front_matter(notes: dict[str, Any]) -> str:
    """What model hubs read at the top of a card, as YAML; the licence is the first word of the note of that name."""
    licence = str(notes.get("licence", "unknown")).split(",")[0].lower()
    facts = {
        "license": licence,
        "library_name": "fingerprint_accel",
        "pipeline_tag": "image-feature-extraction",
        "tags": TAGS,
    }
    return yaml.safe_dump(facts, sort_keys=False)


def model_card(name: str, model: ModelConfig, ppi: int, canvas: int, enhanced: bool, notes: dict[str, Any]) -> str:
    """Markdown for a model exported to a folder called `name`; `notes` become a list of facts."""
    text = CARD.format(
        front_matter=front_matter(notes),
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
