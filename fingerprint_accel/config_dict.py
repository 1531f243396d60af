"""Configurations from nested dictionaries, as YAML and JSON give them, and back; and knobs that were renamed."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any

from fingerprint_accel.errors import UserError

T = typing.TypeVar("T")
RENAMED = {  # by group: names of knobs before 0.1.0
    "reading": {"impressions_per_finger": "samples_per_class"},
    "model": {
        "start_from": "init_from",
        "recompute": "gradient_checkpointing",
        "localization_frozen": "alignment_frozen",
    },
    "loss": {
        "nested": "matryoshka_dims",
        "negative_sampling": "class_sample_rate",
        "filter_above": "interclass_filter_threshold",
    },
    "training": {
        "accumulation": "gradient_accumulation_steps",
        "fit_memory": "auto_micro_batch_size",
        "keep": "save_total_limit",
        "head_rate": "head_lr_mult",
        "final_lr_share": "min_lr_ratio",
    },
}
REMOVED = {  # the value that every run has had since
    "preprocess": {"map_size": 128, "map_sigma": 1.5},
    "loss": {"center_rate": 0.01},
}


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration (or one group of it) as nested plain dictionaries."""
    return dataclasses.asdict(config)


def from_dict(cls: type[T], values: dict[str, Any], base: T | None = None, where: str = "configuration") -> T:
    """Builds `cls` from nested dictionaries over the values of `base` (default: the class's defaults).

    Raises:
        UserError: a key that is not a knob, a value of another type, or knobs that do not go together.
    """
    base = cls() if base is None else base  # every configuration class has defaults
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a mapping of knobs, found {values!r}")
    hints = typing.get_type_hints(cls)
    changes: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            new = next((names[key] for names in RENAMED.values() if names.get(key) in hints), None)
            hint = f"it is called {new} now" if new else f"there are {', '.join(hints)}"
            raise UserError(f"{where}: no knob named {key!r}; {hint}")
        here = f"{where}: {key}" if ":" not in where else f"{where}.{key}"
        if dataclasses.is_dataclass(hints[key]):
            changes[key] = from_dict(typing.cast(type, hints[key]), value, getattr(base, key), here)
        else:
            changes[key] = _checked(value, hints[key], here)
    return dataclasses.replace(base, **changes)  # type: ignore[type-var]


def renamed(values: Any) -> Any:
    """Nested dictionaries of a configuration that an earlier version may have stored -> the same by today's names."""
    if not isinstance(values, dict):
        return values
    return {group: renamed_group(group, knobs) for group, knobs in values.items()}


def renamed_group(group: str, knobs: Any) -> Any:
    """Knobs of one group, as of `renamed`."""
    if not isinstance(knobs, dict):
        return knobs
    names, removed = RENAMED.get(group, {}), REMOVED.get(group, {})
    return {
        names.get(name, name): value for name, value in knobs.items() if name not in removed or removed[name] != value
    }


def check_words(words: Sequence[str]) -> None:
    """Refuses words of a command line that were right before 0.1.0.

    Raises:
        UserError: an old name of a knob, or a switch with a value.
    """
    old = {f"--{group}.{name}": f"--{group}.{new}" for group, names in RENAMED.items() for name, new in names.items()}
    old = {name.replace("_", "-"): new.replace("_", "-") for name, new in old.items()}
    for position, word in enumerate(words):
        name, _, value = word.partition("=")
        if name.replace("_", "-") in old:
            raise UserError(f"{name}: is called {old[name.replace('_', '-')]} now")
        value = value or "".join(words[position + 1 : position + 2])
        if name.startswith("--") and value in ("True", "False"):
            group, _, knob = name.removeprefix("--").rpartition(".")
            off = f"--{group}.no-{knob}" if group else f"--no-{knob}"
            raise UserError(f"{name} {value}: is a switch; give {name if value == 'True' else off}")


def _checked(value: Any, hint: Any, where: str) -> Any:
    choices = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where} must be a list, not {value!r}")
        return tuple(_checked(item, choices[0], where) for item in value)
    if choices:
        if isinstance(value, bool):  # YAML reads a bare `no` as False; `compile` was a switch once
            value = next((word for word in choices if word == ("default" if value else "no")), value)
        if value not in choices:
            raise UserError(f"{where} must be one of {', '.join(choices)}, not {value!r}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            pass
    if type(value) is not hint:
        raise UserError(f"{where} must be {hint.__name__}, not {value!r}")
    return value
