"""Configurations from nested dictionaries, as YAML and JSON give them, and back."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from fingerprint_accel.errors import UserError

T = typing.TypeVar("T")


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
            raise UserError(f"{where}: no knob named {key!r}; there are {', '.join(hints)}")
        here = f"{where}: {key}" if ":" not in where else f"{where}.{key}"
        if dataclasses.is_dataclass(hints[key]):
            changes[key] = from_dict(typing.cast(type, hints[key]), value, getattr(base, key), here)
        else:
            changes[key] = _checked(value, hints[key], here)
    return dataclasses.replace(base, **changes)  # type: ignore[type-var]


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
