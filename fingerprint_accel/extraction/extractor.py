"""A trained network with its preparation: canvases in, embeddings out."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from fingerprint_accel import __version__
from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.config_dict import to_dict
from fingerprint_accel.data.shards import Shards
from fingerprint_accel.errors import UserError
from fingerprint_accel.models.deepprint import DeepPrint
from fingerprint_accel.preprocess.pipeline import Preprocessor
from fingerprint_accel.training.saved_model import find_model

CARD = """# {title}

Fixed-length fingerprint embedding, {dims} numbers of unit length; compare two by their dot product.
Canvases: {canvas} x {canvas} pixels at {ppi} ppi{enhanced}. Trained with fingerprint_accel {version}.

```python
from fingerprint_accel.extraction.extractor import Extractor
extractor = Extractor.from_pretrained("{folder}")
embeddings = extractor(images)  # (B, {canvas}, {canvas}) uint8, ridges dark -> (B, {dims}) float32
```
"""


class Extractor(nn.Module):
    """Network and preparation, for inference only.

    Args:
        model: its configuration.
        preprocess: configuration of the preparation.
        ppi: resolution that the network was trained at, pixels per inch.
        canvas: side of the canvases, pixels.
        enhanced: whether the network was trained on prints that are stored enhanced, and wants such.
    """

    def __init__(
        self, model: ModelConfig, preprocess: PreprocessConfig, ppi: int, canvas: int, enhanced: bool = False
    ) -> None:
        super().__init__()
        self.preprocess_config, self.ppi, self.canvas, self.enhanced = preprocess, ppi, canvas, enhanced
        self.model = DeepPrint(model, preprocess.map_size)
        self.preprocessor = Preprocessor(preprocess, canvas, ppi=ppi)
        self.origin = ""
        self.eval()

    @torch.inference_mode()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, canvas, canvas) uint8, ridges dark -> (B, D) float32 of unit length."""
        return self.model(self.preprocessor.images(images)).embedding

    @torch.inference_mode()
    def extract(self, shards: Shards, batch_size: int = 64, progress: bool = True) -> dict[str, np.ndarray]:
        """Embeds every print of a dataset, in row order.

        Returns:
            (N, D) float32 by name: `embedding`, and each branch (`texture`, `minutia`) that the network has.

        Raises:
            UserError: the dataset has another ppi or canvas than the network was trained on, or only one is enhanced.
        """
        for what in ("ppi", "canvas"):
            ours, theirs = getattr(self, what), getattr(shards.info, what)
            if ours != theirs:
                option = "--dataset-ppi" if what == "ppi" else "--canvas"
                raise UserError(
                    f"{shards.folder}: {what} {theirs}, the model wants {ours}; "
                    f"import it with {option} {ours}, or `pack` it with --{what} {ours}"
                )
        if self.enhanced and not shards.info.enhanced:
            raise UserError(
                f"{shards.folder}: the model wants enhanced prints; `pack {shards.folder} OUT --enhance` makes them"
            )
        if shards.info.enhanced and not self.enhanced:
            raise UserError(
                f"{shards.folder}: enhanced, the model wants prints as they are; import them again without --enhance"
            )
        device = next(self.model.parameters()).device
        parts: dict[str, list[torch.Tensor]] = {}
        buffer = np.empty((batch_size, self.canvas, self.canvas), np.uint8)
        starts = range(0, len(shards), batch_size)
        for start in tqdm(starts, desc="extracting", unit="batch", disable=not progress):
            rows = np.arange(start, min(start + batch_size, len(shards)))
            shards.read(rows, buffer[: len(rows)])
            images = torch.from_numpy(buffer[: len(rows)]).to(device)
            output = self.model(self.preprocessor.images(images))
            for name, value in {"embedding": output.embedding, **output.branches}.items():
                parts.setdefault(name, []).append(value.cpu())
        return {name: torch.cat(values).numpy() for name, values in parts.items()}

    def save_pretrained(self, folder: Path | str, notes: dict[str, Any] | None = None) -> None:
        """Writes `model.safetensors`, `config.json` and `README.md`; the folder is replaced as a whole.

        Args:
            folder: to write.
            notes: facts to keep in `config.json`, such as the validation EER.
        """
        folder = Path(folder)
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        config = {
            "format_version": 1,
            "model": to_dict(self.model.config),
            "preprocess": to_dict(self.preprocess_config),
            "ppi": self.ppi,
            "canvas": self.canvas,
            "enhanced": self.enhanced,
            "notes": notes or {},
        }
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        card = CARD.format(
            title=f"DeepPrint {self.model.config.variant} ({self.model.config.trunk})",
            dims=self.model.config.embedding_dim,
            canvas=self.canvas,
            ppi=self.ppi,
            enhanced=", ridges enhanced as `import --enhance` does" if self.enhanced else "",
            version=__version__,
            folder=folder.name,
        )
        (temporary / "README.md").write_text(card)
        for file in temporary.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)

    @classmethod
    def from_pretrained(cls, place: Path | str) -> Extractor:
        """Opens a bundled model by its name, an exported folder, a run folder (its best checkpoint), or a checkpoint.

        Raises:
            UserError: none of these, or a damaged one.
        """
        saved = find_model(place)
        extractor = cls(saved.model, saved.preprocess, saved.ppi, saved.canvas, saved.enhanced)
        saved.load_into(extractor.model)
        extractor.origin = str(saved.folder)
        return extractor.eval()
