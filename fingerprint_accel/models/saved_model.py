"""Read and write trained networks on disk: bundled models, exported models and checkpoints."""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from fingerprint_accel.config import ModelConfig, PreprocessConfig, load_yaml
from fingerprint_accel.config_dict import from_dict, renamed
from fingerprint_accel.data.print_info import PrintInfo
from fingerprint_accel.durable import errors_naming, file_sha256, fsync_path, json_text, write_file, write_json
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.models.checkpoint_folder import (
    WEIGHTS,
    checkpoint_names,
    damage,
    find_checkpoint,
    name_of_step,
    read_pointer,
    read_state,
    todays_names,
    weights_file,
)
from fingerprint_accel.models.deepprint import DeepPrint
from fingerprint_accel.outputs import FolderKind, check_folder, json_with, put_in_place
from fingerprint_accel.privacy import private_files
from fingerprint_accel.tensor_files import not_finite, read_header, read_tensors, write_tensors
from fingerprint_accel.untrusted import DAMAGED, Fields, read_json, reason_of

BUNDLED = Path(__file__).parent.parent / "pretrained"
CONFIG, CARD = "config.json", "README.md"
MODEL = FolderKind(
    "a model folder",
    json_with(CONFIG, "model", "preprocess", "ppi"),
    r"model\.safetensors|config\.json|README\.md|\.(config\.json|README\.md)\.tmp",  # drafts of a killed calibration
)
FORMAT_VERSION = 1
_ANOTHER = "export the model again, or use another copy"


@dataclass(frozen=True)
class SavedModel:
    """A trained network on disk, with the format of the prints that it expects.

    Attributes:
        folder: folder of the exported model or checkpoint.
        weights: file of the weights, or of their moving average if it was stored. `find_model` has compared it with its
            checksum.
        model: configuration of the network.
        preprocess: configuration of the preprocessing.
        ppi: resolution of the canvases (the square images on which prints are placed), pixels per inch.
        canvas: side of the canvases, pixels.
        enhanced: whether the network expects prints that were stored with enhanced ridges.
        notes: additional metadata of the model, such as the calibration.
    """

    folder: Path
    weights: Path
    model: ModelConfig
    preprocess: PreprocessConfig
    ppi: int
    canvas: int
    enhanced: bool = False
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def half(self) -> bool:
        """Whether weights are stored as float16."""
        return any(info.dtype == "F16" for info in read_header(self.weights).values())

    def check_size(self) -> None:
        """Check that the file of the weights has exactly the tensors of the network, before the network is built.

        Otherwise a small file could state the configuration of a network that is larger than the memory.

        Raises:
            UserError: if the file is missing or damaged, or its tensors do not fit the network.
        """
        try:
            there = todays_names(read_header(self.weights))
        except (OSError, *DAMAGED) as error:
            raise UserError(f"{self.weights}: missing or damaged ({reason_of(error)}); {_ANOTHER}") from error
        try:
            with torch.device("meta"):  # allocates no memory
                wanted = {name: tuple(tensor.shape) for name, tensor in DeepPrint(self.model).state_dict().items()}
        except (RuntimeError, TypeError, ValueError) as error:  # sizes beyond 64 bits
            raise UserError(f"{self.folder}: no network has this configuration ({reason_of(error)})") from error
        for name in {**wanted, **there}:
            found = there[name].shape if name in there else "missing"
            expected = wanted.get(name, "not part of the network")
            if found != expected:
                raise UserError(
                    f"{self.weights}: does not fit its configuration ({name[:80]}: {found} in the file, {expected} in "
                    "the network)"
                )

    def load_into(self, network: torch.nn.Module, other_head: bool = False) -> None:
        """Load the stored weights into a network. If a moving average of the weights was stored, load this average.

        Args:
            network: network to load into.
            other_head: whether the network may have a variant other than the stored variant, see `starts`. If true,
                only tensors with equal names and shapes are loaded.

        Raises:
            UserError: if the file is missing or damaged, its weights do not fit the network, or are not finite.
        """
        try:
            weights = todays_names(read_tensors(self.weights))
            if other_head:
                wanted = {name: value.shape for name, value in network.state_dict().items()}
                weights = {name: value for name, value in weights.items() if wanted.get(name) == value.shape}
            network.load_state_dict(weights, strict=not other_head)
        except (OSError, *DAMAGED) as error:
            raise UserError(f"{self.weights}: missing or damaged ({reason_of(error)}); {_ANOTHER}") from error
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"{self.weights}: does not fit its configuration ({reason})") from error
        bad = not_finite(network.state_dict())
        require(bad is None, f"{self.weights}: {bad} contains NaN or infinity; {_ANOTHER}")

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


def bundled_models() -> list[str]:
    """Return the names of the models that are part of the package."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/config.json"))


def find_model(place: Path | str) -> SavedModel:
    """Find a model by the name of a bundled model or by the path of a folder, and check the sha256 of its weights.

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
    if (path / CONFIG).is_file():
        return _export(path)
    if (path / "config.yaml").is_file():
        return _checkpoint(_best_checkpoint(path), path / "config.yaml")
    if (path / "state.json").is_file() and (path / WEIGHTS).is_file():
        wrong = damage(path, weights_only=True)
        require(wrong is None, f"{path}: {wrong}; use another checkpoint, or the run folder")
        return _checkpoint(path, path.parent.parent / "config.yaml")
    raise UserError(
        f"{path}: no model here; give a run folder, a checkpoint folder, an exported model/ folder, or a bundled "
        f"model ({', '.join(bundled_models())})"
    )


def _best_checkpoint(run: Path) -> Path:
    """Return the best checkpoint of a run folder, or the newest if there is no intact best checkpoint.

    If the best checkpoint is damaged, the function prints a message. If `best.json` is damaged, the newest intact
    checkpoint states which one is the best.
    """
    wrong = ""
    try:
        best = read_pointer(run / "best.json")
        if best is not None:
            fault = damage(run / "checkpoints" / best, weights_only=True)
            if fault is None:
                return run / "checkpoints" / best
            wrong = f"the best checkpoint, {best}, cannot be used ({fault})"
    except UserError as error:
        wrong = str(error)
    newest = find_checkpoint(run, weights_only=True)
    if newest is None:
        names = checkpoint_names(run)
        fault = f" ({names[-1]}: {damage(run / 'checkpoints' / names[-1], weights_only=True)})" if names else ""
        raise UserError(f"{run}: the run has no intact checkpoint{fault}; train it first")
    found = newest
    if wrong:
        step = read_state(newest).values.get("best_step")
        stated = run / "checkpoints" / name_of_step(step if type(step) is int and step > 0 else 0)
        if stated.is_dir() and damage(stated, weights_only=True) is None:
            found = stated
        print(f"{run}: {wrong}; using {found.name}", file=sys.stderr)
    return found


def _export(path: Path) -> SavedModel:
    file = path / CONFIG
    fields = Fields(read_json(file, _ANOTHER), file, _ANOTHER)
    fields.integer("format_version", FORMAT_VERSION, FORMAT_VERSION, default=FORMAT_VERSION)
    digest = fields.digests("sha256").get(WEIGHTS)
    try:
        read_header(path / WEIGHTS)  # bounds the size before the file is read
        changed = digest is not None and file_sha256(path / WEIGHTS) != digest
    except (OSError, *DAMAGED) as error:
        raise UserError(f"{path / WEIGHTS}: missing or damaged ({reason_of(error)}); {_ANOTHER}") from error
    require(not changed, f"{path / WEIGHTS}: differs from its sha256 in {CONFIG}; {_ANOTHER}")
    for name in ("model", "preprocess"):
        require(name in fields.values, f"{file}: damaged ({name} is missing); {_ANOTHER}")
    prints = PrintInfo.read(fields)
    return SavedModel(
        folder=path,
        weights=path / WEIGHTS,
        model=from_dict(ModelConfig, renamed(fields.part("model").values), where=f"{file}:"),
        preprocess=from_dict(PreprocessConfig, renamed(fields.part("preprocess").values), where=f"{file}:"),
        ppi=prints.ppi,
        canvas=prints.canvas,
        enhanced=prints.enhanced,
        notes=fields.part("notes").values,
    )


def _checkpoint(path: Path, config_file: Path) -> SavedModel:
    config, state = load_yaml(config_file, stored=True), read_state(path)
    prints = PrintInfo.read(state)
    weights = path / weights_file(path, state.digests("sha256"))
    notes = _exported_notes(config_file.parent / "model", path.name)
    return SavedModel(path, weights, config.model, config.preprocess, prints.ppi, prints.canvas, prints.enhanced, notes)


def _exported_notes(export: Path, checkpoint: str) -> dict[str, Any]:
    """Return the notes of the exported model in `export`.

    If the model was not made from the checkpoint with the given name, the result is an empty dictionary.

    Raises:
        UserError: if `config.json` of the exported model is damaged. Without notes, a calibration would be lost.
    """
    remedy = f"delete {export}, and calibrate the model again"
    try:
        notes = Fields(read_json(export / CONFIG, remedy), export / CONFIG, remedy).part("notes").values
    except FileNotFoundError:
        return {}
    return notes if notes.get("checkpoint") == checkpoint else {}


@private_files()
def write_model(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any], card: str) -> None:
    """Write an exported model folder: the weights, `config.json`, and the model card `README.md`.

    An existing model folder is replaced atomically.

    Raises:
        OSError: if a file cannot be written. An existing model folder then stays as it is.
        UserError: if `folder` exists and is not a model folder.
    """
    check_folder(folder, MODEL)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write_tensors(temporary / WEIGHTS, tensors)
        fsync_path(temporary / WEIGHTS)
        write_file(temporary / CARD, card)
        digests = {name: file_sha256(temporary / name) for name in (WEIGHTS, CARD)}
        write_json(temporary / CONFIG, {**config, "sha256": digests})
        fsync_path(temporary)
        put_in_place(temporary, folder, MODEL)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@private_files()
def write_notes(folder: Path, config: dict[str, Any], card: str) -> None:
    """Replace `config.json` by `config` and `README.md` by `card` in an exported model folder.

    The weights do not change. Both files are written completely before the first one is renamed, so that a full disk
    changes neither of them. `config.json` is renamed last. It contains the checksum of `README.md`.

    Raises:
        OSError: if a file cannot be written.
    """
    digests = Fields(read_json(folder / CONFIG, _ANOTHER), folder / CONFIG, _ANOTHER).digests("sha256")
    drafts = {name: folder / f".{name}.tmp" for name in (CARD, CONFIG)}
    try:
        with errors_naming(folder / CARD):
            drafts[CARD].write_text(card)
        weights = digests.get(WEIGHTS) or file_sha256(folder / WEIGHTS)  # models of early versions have no checksums
        digests = {WEIGHTS: weights, CARD: file_sha256(drafts[CARD])}
        with errors_naming(folder / CONFIG):
            drafts[CONFIG].write_text(json_text({**config, "sha256": digests}))
        for name, draft in drafts.items():
            if (folder / name).exists():  # the owner may have shared the folder
                draft.chmod((folder / name).stat().st_mode)
            fsync_path(draft)
        for name, draft in drafts.items():
            draft.replace(folder / name)
        fsync_path(folder)
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)
