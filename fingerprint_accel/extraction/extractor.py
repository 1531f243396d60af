"""A trained network with its preparation: canvases in, embeddings out."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from fingerprint_accel import __version__
from fingerprint_accel.config import ModelConfig, PreprocessConfig, load_yaml
from fingerprint_accel.config_dict import from_dict, to_dict
from fingerprint_accel.data.shards import Shards
from fingerprint_accel.errors import UserError
from fingerprint_accel.models.deepprint import DeepPrint
from fingerprint_accel.preprocess.pipeline import Preprocessor
from fingerprint_accel.training.checkpoint import find_checkpoint, read_pointer

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
    def from_pretrained(cls, path: Path | str) -> Extractor:
        """Opens an exported folder, a run folder (its best checkpoint, else the newest), or a checkpoint folder.

        Raises:
            UserError: none of these, or a damaged one.
        """
        path = Path(path)
        if (path / "config.json").is_file():
            return cls._from_export(path)
        if (path / "config.yaml").is_file():
            best = read_pointer(path / "best.json")
            checkpoint = path / "checkpoints" / best if best else find_checkpoint(path)
            if checkpoint is None:
                raise UserError(f"{path}: a run without a checkpoint yet; train it first")
            return cls._from_checkpoint(checkpoint, path / "config.yaml")
        if (path / "state.json").is_file() and (path / "model.safetensors").is_file():
            return cls._from_checkpoint(path, path.parent.parent / "config.yaml")
        raise UserError(f"{path}: no model here; give a run folder, a checkpoint folder, or an exported model/ folder")

    @classmethod
    def _from_export(cls, path: Path) -> Extractor:
        try:
            values = json.loads((path / "config.json").read_text())
            ppi, canvas = int(values["ppi"]), int(values["canvas"])
            enhanced = bool(values.get("enhanced", False))
            groups = values["model"], values["preprocess"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path / 'config.json'}: damaged; export the model again") from error
        where = f"{path / 'config.json'}:"
        model = from_dict(ModelConfig, groups[0], where=where)
        preprocess = from_dict(PreprocessConfig, groups[1], where=where)
        return cls(model, preprocess, ppi, canvas, enhanced)._load(path)

    @classmethod
    def _from_checkpoint(cls, path: Path, config_file: Path) -> Extractor:
        config = load_yaml(config_file)
        try:
            state = json.loads((path / "state.json").read_text())
            ppi, canvas = int(state["ppi"]), int(state["canvas"])
            enhanced = bool(state.get("enhanced", False))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path / 'state.json'}: missing or damaged; use another checkpoint") from error
        return cls(config.model, config.preprocess, ppi, canvas, enhanced)._load(path)

    def _load(self, path: Path) -> Extractor:
        file = path / "model.safetensors"
        try:
            self.model.load_state_dict(load_file(file))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: missing or damaged ({str(error)[:80]})") from error
        except RuntimeError as error:
            raise UserError(
                f"{file}: does not fit its configuration ({str(error).splitlines()[-1].strip()})"
            ) from error
        self.origin = str(path)
        return self.eval()
