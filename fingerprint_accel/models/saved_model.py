"""Read and write trained networks on disk: bundled models, exported models and checkpoints."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from fingerprint_accel.config import ModelConfig, PreprocessConfig, load_yaml
from fingerprint_accel.config_dict import from_dict, renamed
from fingerprint_accel.data.print_info import PrintInfo
from fingerprint_accel.durable import file_sha256, fsync_path, write_file
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.outputs import FolderKind, check_folder, json_with, put_in_place

T = TypeVar("T")
BUNDLED = Path(__file__).parent.parent / "pretrained"
MODEL = FolderKind(
    "a model folder",
    json_with("config.json", "model", "preprocess", "ppi"),
    r"model\.safetensors|config\.json|README\.md",
)
EMA_FILE = "ema.safetensors"
RENAMED = {  # parts of tensor names in files from before version 0.1.0, and their current names
    "localization.localization.": "alignment.features.",
    "localization.fc_loc.": "alignment.head.",
}
FILES = ("state.json", "model.safetensors", "training_state.safetensors")
_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class SavedModel:
    """A trained network on disk, with the format of the prints that it expects.

    Attributes:
        folder: folder of the exported model or checkpoint.
        model: configuration of the network.
        preprocess: configuration of the preprocessing.
        ppi: resolution of the canvases (the square images on which prints are placed), pixels per inch.
        canvas: side of the canvases, pixels.
        enhanced: whether the network expects prints that were stored with enhanced ridges.
        notes: additional metadata of the model, such as the calibration.
    """

    folder: Path
    model: ModelConfig
    preprocess: PreprocessConfig
    ppi: int
    canvas: int
    enhanced: bool = False
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def half(self) -> bool:
        """Whether weights are stored as float16."""
        with safe_open(self.folder / "model.safetensors", "pt") as file:
            return any(file.get_slice(name).get_dtype() == "F16" for name in file.keys())  # noqa: SIM118

    def load_into(self, network: torch.nn.Module, other_head: bool = False) -> None:
        """Load the stored weights into a network. If a moving average of the weights was stored, load this average.

        Args:
            network: network to load into.
            other_head: whether the network may have a variant other than the stored variant, see `starts`. If true,
                only tensors with equal names and shapes are loaded.

        Raises:
            UserError: if the file is missing or damaged, or its weights do not fit the network.
        """
        file = self.folder / EMA_FILE
        if not file.is_file():
            file = self.folder / "model.safetensors"
        try:
            weights = todays_names(load_file(file))
            if other_head:
                wanted = {name: value.shape for name, value in network.state_dict().items()}
                weights = {name: value for name, value in weights.items() if wanted.get(name) == value.shape}
            network.load_state_dict(weights, strict=not other_head)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: missing or damaged ({str(error)[:80]})") from error
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"{file}: does not fit its configuration ({reason})") from error

    @property
    def prints(self) -> PrintInfo:
        """Format of the prints that the network was trained on."""
        return PrintInfo(self.ppi, self.canvas, self.enhanced)

    def starts(self, model: ModelConfig) -> bool:
        """Return whether a part of the stored weights can initialise a network of a different variant.

        The result is true if the variants of `model` and of the stored network differ only in the alignment network.
        The result is also true if `model` is a dense variant and the stored network is a texture variant: a dense
        network can use the trunk of a texture network.
        """
        ours, theirs = (variant.removeprefix("Loc") for variant in (self.model.variant, model.variant))
        return (ours, theirs) == ("Tex", "Dense") or (ours == theirs and self.model.variant != model.variant)

    def check_fits(self, model: ModelConfig) -> None:
        """Check that a network of the given configuration can load these weights.

        Raises:
            UserError: if the configurations differ. The message names the options to change.
        """
        ours, theirs = asdict(self.model), asdict(model)
        shape: tuple[str, ...] = ("variant", "trunk", "embedding_dim", "width", "norm", "grid")
        if self.starts(model):
            shape = ("trunk", "width", "norm")
        differing = [f"--model.{name.replace('_', '-')} {ours[name]}" for name in shape if ours[name] != theirs[name]]
        start = f"to start from it give {' '.join(differing)}"
        require(not differing, f"{self.folder}: the network differs from the configured one; {start}")


def todays_names(tensors: dict[str, T]) -> dict[str, T]:
    """Return all tensors keyed by current names, replacing names that earlier versions of the package used."""
    for old, new in RENAMED.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    return tensors


def shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of all tensors of a safetensors file from its header, without reading the tensors."""
    with safe_open(file, framework="pt") as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118


def checkpoint_names(run: Path) -> list[str]:
    """Return the names of the complete checkpoints of a run folder, oldest first."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if _NAME.fullmatch(entry.name))


def read_pointer(path: Path) -> str | None:
    """Read the name of a checkpoint from `path`, which is `best.json` or `latest.json` of a run.

    If the file does not exist, the result is None.
    """
    if not path.is_file():
        return None
    try:
        return str(json.loads(path.read_text())["checkpoint"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged; delete it to fall back on the newest checkpoint") from error


def find_checkpoint(run: Path) -> Path | None:
    """Return the newest intact checkpoint of a run folder, or None.

    The names of the folders determine the newest checkpoint, not `latest.json`. A checkpoint folder gets its final name
    when it is complete, and `latest.json` is written later.
    """
    folders = (run / "checkpoints" / name for name in reversed(checkpoint_names(run)))
    return next((folder for folder in folders if damage(folder) is None), None)


def damage(folder: Path) -> str | None:
    """Return a description of what is wrong with the files of a checkpoint, or None if they are intact.

    The function checks that the files exist, and reads their headers. It does not detect changed values inside a
    tensor.
    """
    name = next((name for name in FILES if not (folder / name).is_file()), None)
    if name is not None:
        return f"no {name}"
    try:
        step = json.loads((folder / "state.json").read_text())["step"]
        shapes = shapes_in(folder / "model.safetensors")
        shapes_in(folder / "training_state.safetensors")
        if (folder / EMA_FILE).is_file():
            shapes_in(folder / EMA_FILE)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        return f"damaged: {str(error)[:80] or type(error).__name__}"
    if not shapes:
        return "model.safetensors holds no tensor"
    return None if folder.name == f"step-{step:08d}" else f"state.json is of step {step}"


def bundled_models() -> list[str]:
    """Return the names of the models that are part of the package."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/config.json"))


def find_model(place: Path | str) -> SavedModel:
    """Find a model by the name of a bundled model or by the path of a folder.

    Args:
        place: name of a bundled model, or path of an exported model, a checkpoint or a run. In a run folder, the
            function uses the best checkpoint, or the newest if none is marked as best. A folder takes precedence over a
            bundled model of the same name.

    Raises:
        UserError: if there is no model, or the model is damaged.
    """
    path = Path(place)
    if not path.exists() and str(place) in bundled_models():
        return _export(BUNDLED / str(place))
    if (path / "config.json").is_file():
        return _export(path)
    if (path / "config.yaml").is_file():
        return _checkpoint(_best_checkpoint(path), path / "config.yaml")
    if (path / "state.json").is_file() and (path / "model.safetensors").is_file():
        return _checkpoint(path, path.parent.parent / "config.yaml")
    raise UserError(
        f"{path}: no model here; give a run folder, a checkpoint folder, an exported model/ folder, or a bundled "
        f"model ({', '.join(bundled_models())})"
    )


def _best_checkpoint(run: Path) -> Path:
    """Return the best checkpoint of a run folder, or the newest if there is no intact best checkpoint.

    If the best checkpoint is damaged, the function prints a message.
    """
    best = read_pointer(run / "best.json")
    if best is not None:
        wrong = damage(run / "checkpoints" / best)
        if wrong is None:
            return run / "checkpoints" / best
    newest = find_checkpoint(run)
    if newest is None:
        raise UserError(f"{run}: the run has no intact checkpoint; train it first")
    if best is not None:
        print(f"{run}: the best checkpoint, {best}, cannot be used ({wrong}); using {newest.name}", file=sys.stderr)
    return newest


def _export(path: Path) -> SavedModel:
    file = path / "config.json"
    try:
        values = json.loads(file.read_text())
        ppi, canvas = int(values["ppi"]), int(values["canvas"])
        enhanced, notes = bool(values.get("enhanced", False)), dict(values.get("notes", {}))
        model, preprocess = values["model"], values["preprocess"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: damaged; export the model again") from error
    where = f"{file}:"
    return SavedModel(
        path,
        from_dict(ModelConfig, renamed(model), where=where),
        from_dict(PreprocessConfig, renamed(preprocess), where=where),
        ppi,
        canvas,
        enhanced,
        notes,
    )


def _checkpoint(path: Path, config_file: Path) -> SavedModel:
    config = load_yaml(config_file, stored=True)
    try:
        state = json.loads((path / "state.json").read_text())
        ppi, canvas = int(state["ppi"]), int(state["canvas"])
        enhanced = bool(state.get("enhanced", False))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path / 'state.json'}: missing or damaged; use another checkpoint") from error
    notes = _exported_notes(config_file.parent / "model", path.name)
    return SavedModel(path, config.model, config.preprocess, ppi, canvas, enhanced, notes)


def _exported_notes(export: Path, checkpoint: str) -> dict[str, Any]:
    """Return the notes of the exported model in `export`.

    If the model was not made from the checkpoint with the given name, the result is an empty dictionary.
    """
    try:
        notes = dict(json.loads((export / "config.json").read_text())["notes"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return notes if notes.get("checkpoint") == checkpoint else {}


def write_model(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any], card: str) -> None:
    """Write an exported model folder: the weights, `config.json`, and the model card `README.md`.

    An existing model folder is replaced atomically.

    Raises:
        UserError: if `folder` exists and is not a model folder.
    """
    check_folder(folder, MODEL)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
    config = {**config, "sha256": {"model.safetensors": file_sha256(temporary / "model.safetensors")}}
    (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (temporary / "README.md").write_text(card)
    for file in temporary.iterdir():
        file.chmod(0o644)  # safetensors creates files that only their owner can read
        fsync_path(file)
    put_in_place(temporary, folder, MODEL)


def write_notes(folder: Path, config: dict[str, Any], card: str) -> None:
    """Replace `config.json` by `config` and `README.md` by `card` in an exported model folder.

    The weights do not change. Each of the two files is replaced atomically.
    """
    with contextlib.suppress(OSError, ValueError, KeyError):  # models of earlier versions have no checksum
        config = {**config, "sha256": json.loads((folder / "config.json").read_text())["sha256"]}
    for name, text in (("README.md", card), ("config.json", json.dumps(config, indent=2) + "\n")):
        mode = (folder / name).stat().st_mode if (folder / name).exists() else 0o644
        write_file(folder / name, text)
        (folder / name).chmod(mode)
