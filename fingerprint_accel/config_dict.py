"""Build configurations from the nested dictionaries of YAML and JSON files; handle renamed and removed options."""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from collections.abc import Sequence
from typing import Any

from fingerprint_accel.errors import UserError

T = typing.TypeVar("T")
RENAMED = {  # option names before version 0.1.0, and their present names
    "impressions_per_finger": "samples_per_class",
    "start_from": "init_from",
    "recompute": "gradient_checkpointing",
    "localization_frozen": "alignment_frozen",
    "nested": "matryoshka_dims",
    "negative_sampling": "class_sample_rate",
    "filter_above": "interclass_filter_threshold",
    "accumulation": "gradient_accumulation_steps",
    "fit_memory": "auto_micro_batch_size",
    "keep": "save_total_limit",
    "head_rate": "head_lr_mult",
    "final_lr_share": "min_lr_ratio",
    "clip_norm": "max_grad_norm",
    "bucket_mb": "bucket_cap_mb",
}
REMOVED = {  # removed options, and the fixed behaviour in their place
    "block_size": "blocks have 16,384 prints",
    "prefetch": "three batches are read ahead",
    "map_size": "minutia maps have 128 x 128 cells",
    "map_sigma": "minutiae spread over 1.5 cells of a map",
    "center_rate": "class centres move 0.01 of the way",
    "max_bad_steps": "training stops after 20 skipped updates in a row",
    "tf32": "GPUs multiply float32 numbers in TF32",
}
# Built-in values of removed options. A run that was started with another value cannot continue, so `renamed` keeps such
# an option, and `from_dict` raises an error for it.
BUILT_IN = {"map_size": 128, "map_sigma": 1.5, "center_rate": 0.01}
LARGEST = 1e9  # largest number of an option without another limit
DEEPEST = 4  # levels of nested groups of options


def check_numbers(options: Any, group: str, **largest: float) -> None:
    """Check that all numbers of a group of options are finite and not too large.

    Args:
        options: Instance of a configuration dataclass.
        group: Name of the group for error messages.
        `**largest`: Largest absolute value of an option, by its name. The default is `LARGEST`.

    Raises:
        UserError: If a number is NaN, infinite or too large.
    """
    for option in dataclasses.fields(options):
        value, limit = getattr(options, option.name), largest.get(option.name, LARGEST)
        for number in value if isinstance(value, tuple) else (value,):
            good = not isinstance(number, (int, float)) or -limit <= number <= limit
            if not good:
                raise UserError(f"{group}.{option.name} must be a number of at most {limit:.10g}, not {_shown(number)}")


def from_dict(cls: type[T], values: dict[str, Any], base: T | None = None, where: str = "configuration") -> T:
    """Build a configuration dataclass from nested dictionaries.

    Args:
        cls: The dataclass.
        values: Dictionary keyed by option name. The value of a group of options is a dictionary too.
        base: Values of the options that are missing in `values`. Defaults to `cls()`.
        where: Name of the file or object that contained `values`, for error messages.

    Raises:
        UserError: If an option is unknown, a value has another type, or options contradict each other.
    """
    try:
        return _built(cls, values, cls() if base is None else base, where)  # every configuration class has defaults
    except UserError as error:  # options that contradict each other do not name the file
        line = str(error)
        raise UserError(line if line.startswith(where) else f"{where.removesuffix(':')}: {line}") from None


def _built(cls: type[T], values: dict[str, Any], base: T, where: str) -> T:
    if not isinstance(values, dict):
        raise UserError(f"{where.removesuffix(':')}: expected a mapping of options, found {_shown(values)}")
    hints = typing.get_type_hints(cls)
    changes: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            hint = f"choose from {', '.join(hints)}"
            if RENAMED.get(key) in hints:
                hint = f"it is called {RENAMED[key]}"
            elif key in REMOVED:
                hint = f"leave it out: {REMOVED[key]}"
            raise UserError(f"{where.removesuffix(':')}: no option named {_shown(key)}; {hint}")
        here = f"{where} {key}" if where.endswith(":") else f"{where}.{key}" if ":" in where else f"{where}: {key}"
        if dataclasses.is_dataclass(hints[key]):
            changes[key] = _built(typing.cast(type, hints[key]), value, getattr(base, key), here)
        else:
            changes[key] = _checked(value, hints[key], here)
    return dataclasses.replace(base, **changes)  # type: ignore[type-var]


def renamed(values: Any, depth: int = DEEPEST) -> Any:
    """Return the nested options of a stored configuration with old option names replaced by the present ones.

    Removed options are dropped. A removed option whose value differs from `BUILT_IN` is kept, so that `from_dict`
    raises an error for it. Options are nested in at most `depth` levels.
    """
    if not isinstance(values, dict) or depth == 0:
        return values
    return {
        RENAMED.get(name, name): renamed(value, depth - 1)
        for name, value in values.items()
        if name not in REMOVED or value != BUILT_IN.get(name, value)
    }


def check_words(words: Sequence[str]) -> None:
    """Check that a command line has no option names from before version 0.1.0, and no switches with a value.

    For an old option, the error message names the option that replaces it.

    Raises:
        UserError: If an option was renamed or removed, or a switch has a value.
    """
    for position, word in enumerate(words):
        if not word.startswith("--"):
            continue
        name, _, value = word.partition("=")
        group, dot, knob = name.rpartition(".")
        old = knob.replace("-", "_")
        if dot and old in RENAMED:
            raise UserError(f"{name}: use {group}.{RENAMED[old].replace('_', '-')}")
        if dot and (gone := REMOVED.get(old.removeprefix("no_"))):
            raise UserError(f"{name}: leave it out: {gone}")
        value = value or "".join(words[position + 1 : position + 2])
        if value in ("True", "False"):
            off = f"{group}.no-{knob}" if dot else f"--no-{knob.removeprefix('--')}"
            raise UserError(f"{name} {value}: a switch has no value; give {name if value == 'True' else off}")


def _checked(value: Any, hint: Any, where: str) -> Any:
    choices = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where} must be a list, not {_shown(value)}")
        return tuple(_checked(item, choices[0], where) for item in value)
    if choices:
        if isinstance(value, bool):  # YAML reads a bare `no` as False, and old files have `compile: true`
            value = next((word for word in choices if word == ("default" if value else "no")), value)
        if value not in choices:
            raise UserError(f"{where} must be one of {', '.join(choices)}, not {_shown(value)}")
        return value
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):  # YAML reads 1e-3 as a string
            return float(value)
    if type(value) is not hint or (hint is str and "\0" in value):
        raise UserError(f"{where} must be {hint.__name__}, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    """Return a short text that shows a value of a file, which may be large or nested deeply."""
    text = type(value).__name__ if isinstance(value, (dict, list, tuple)) else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
