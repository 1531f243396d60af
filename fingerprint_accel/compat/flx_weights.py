"""Load checkpoints of flx into the networks of this package, without executing code from the file.

flx (fixed-length-fingerprint-extractors) is an implementation of DeepPrint. It writes checkpoints with
`torch.save({"model_state_dict": ..., "loss_state_dict": ..., "optimizer_state_dict": ...})`. The layers in its
Inception modules have the same names as in timm. The modules around them have other names than in this package, and
three parts have no activations (`ModelConfig.trunk = "flx"`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import nn

from fingerprint_accel.compat.torch_file import read_torch_file
from fingerprint_accel.config import ModelConfig, PreprocessConfig, Variant
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.models.deepprint import DeepPrint
from fingerprint_accel.models.saved_model import MODEL
from fingerprint_accel.outputs import check_folder
from fingerprint_accel.tensor_files import not_finite
from fingerprint_accel.untrusted import DAMAGED

PPI, CANVAS, SIZE = 300, 320, 299
HEADS = ("texture_logits.", "minutia_logits.")
TEXTURE_BLOCKS = {"_0_block": 0, "_1_block": 5, "_2_block": 13}  # index of the first block of each container
RENAMED = {
    "texture_branch._6_linear.": "texture_branch.19.",
    "minutia_embedding._0_block.": "minutia_branch.",
    "minutia_embedding._4_linear.": "minutia_branch.7.",
    "stem.features.": "stem.",
    "minutia_stem.features.": "minutia_stem.",
    "localization.localization.": "alignment.features.",
    "localization.fc_loc.": "alignment.head.",
}


@dataclass(frozen=True)
class DeepPrintOutput:
    """Embeddings of a batch of B prints from each branch, (B, D) float32 of unit length.

    The attributes have the same names as in flx. An attribute is None if the model does not have the branch.
    """

    minutia_embeddings: torch.Tensor | None
    texture_embeddings: torch.Tensor | None


class FlxModel(nn.Module):
    """Network with the call interface of flx: maps images (B, 1, 299, 299) float32 to a `DeepPrintOutput`."""

    def __init__(self, network: DeepPrint) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> DeepPrintOutput:
        output = self.network(images)
        return DeepPrintOutput(output.minutia, output.texture)


def load(path: Path | str) -> FlxModel:
    """Load a checkpoint of flx (`best_model.pyt`) as a network in evaluation mode. All six variants are supported.

    Raises:
        UserError: if the file does not exist, contains objects other than tensors, or is not a checkpoint of flx.
    """
    return FlxModel(read_network(Path(path))).eval()


def convert(path: Path, out: Path) -> FingerprintExtractor:
    """Convert a checkpoint of flx to an exported model folder with safetensors weights, and return the model.

    The model uses the preprocessing of this package: 299 x 299 pixels at 300 ppi with enhanced ridges.

    Args:
        path: checkpoint of flx.
        out: model folder to create.

    Raises:
        UserError: if the checkpoint cannot be loaded, see `load`, or `out` exists.
    """
    require(not out.exists(), f"{out}: exists already; choose another folder")
    check_folder(out, MODEL, inputs=[path])
    network = read_network(path)
    preprocess = PreprocessConfig(crop=SIZE, size=SIZE, normalize="none", enhance=True)
    extractor = FingerprintExtractor(network.config, preprocess, PPI, CANVAS)
    extractor.model.load_state_dict(network.state_dict())
    extractor.save_pretrained(out, {"converted_from": f"flx checkpoint {path.name}"})
    return extractor


def read_network(path: Path) -> DeepPrint:
    """Return a `DeepPrint` network with the weights of a checkpoint of flx.

    Raises:
        UserError: if the checkpoint cannot be loaded, see `load`.
    """
    weights = {_renamed(name): tensor for name, tensor in _read(path).items() if not name.startswith(HEADS)}
    heads = {"Tex": weights.get("texture_branch.19.weight"), "Minu": weights.get("minutia_branch.7.weight")}
    lengths = {name: len(weight) for name, weight in heads.items() if weight is not None and weight.ndim}
    variant = "".join(["Loc" * any(name.startswith("alignment.") for name in weights), *lengths])
    require(variant in get_args(Variant), f"{path}: not a DeepPrint of flx; give its best_model.pyt")
    found = sorted(set(lengths.values()))
    require(len(found) == 1, f"{path}: branches of {' and '.join(map(str, found))} numbers; they must be equal")
    try:
        config = ModelConfig(variant=variant, trunk="flx", embedding_dim=sum(lengths.values()))  # type: ignore[arg-type]
    except UserError as error:
        raise UserError(f"{path}: not a DeepPrint of flx ({error})") from error
    network = DeepPrint(config)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{path}: not a DeepPrint of flx ({str(error).splitlines()[-1].strip()[:100]})") from error
    bad = not_finite(network.state_dict())
    require(bad is None, f"{path}: {bad} contains NaN or infinity; give another checkpoint of flx")
    return network


def _read(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint of flx by name, without executing code from the file.

    Raises:
        UserError: if the file cannot be read, contains objects other than tensors, or is not a checkpoint of flx.
    """
    try:
        content = read_torch_file(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a checkpoint of flx") from error
    except DAMAGED as error:
        raise UserError(f"{path}: damaged, or holds more than tensors; refused") from error
    state = content.get("model_state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(map(_is_weight, state.items())):
        raise UserError(f"{path}: not a checkpoint of flx; give its best_model.pyt")
    return {name.removeprefix("embeddings."): tensor for name, tensor in state.items()}  # prefix in `Loc` variants


def _is_weight(entry: tuple[object, object]) -> bool:
    """Return whether a name and a tensor can be a weight. A tensor that repeats its numbers could have any size."""
    name, tensor = entry
    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
        return False
    return tensor.nbytes <= tensor.untyped_storage().nbytes()


def _renamed(name: str) -> str:
    """Convert the name of a tensor in flx to its name in this package."""
    block = re.match(r"texture_branch\.(_\d_block)\.(\d+)\.", name)
    if block and block[1] in TEXTURE_BLOCKS:
        return f"texture_branch.{TEXTURE_BLOCKS[block[1]] + int(block[2])}.{name[block.end() :]}"
    for theirs, ours in RENAMED.items():
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    return name
