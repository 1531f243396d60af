"""SQL queries of a gallery in PostgreSQL: which prints a search is restricted to, and how they are ranked."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np

from fingerprint_accel.extraction.engine_rows import as_half, bit_text, cell_columns, vector_text
from fingerprint_accel.similarity import OVERLAP_FLOOR

BY_ID = """
    SELECT p.* FROM unnest(%(ids)s::bigint[]) AS wanted (id),
    LATERAL (SELECT {} FROM fingerprint_prints WHERE fingerprint_prints.id = wanted.id LIMIT 1) p"""
"""Query for rows of given ids. PostgreSQL looks each id up in its own partition, not all ids in all partitions."""


@dataclass(frozen=True)
class Among:
    """Prints of the engine that a search is restricted to.

    Attributes:
        position: finger position code; prints of this and of unknown position are searched. 0 for all.
        person: spellings of the person in different Unicode normalisation forms; empty for all.
        count: number of prints that are searched.
    """

    position: int = 0
    person: tuple[str, ...] = ()
    count: int = 0

    @property
    def condition(self) -> str:
        """SQL condition with the parameters of `values`."""
        parts = ["position IN (0, %(position)s)"] if self.position else []
        parts += ["person = ANY(%(person)s)"] if self.person else []
        return " AND ".join(parts) or "true"

    @property
    def values(self) -> dict[str, Any]:
        """Parameters of `condition`."""
        return {"position": self.position, "person": list(self.person)}


EVERYTHING = Among()


def distance_of(probe: np.ndarray, cells: int) -> tuple[str, dict[str, Any]]:
    """Return the SQL expression of the negative similarity with a probe (D,), and its parameters."""
    half = as_half(probe[None])
    values: dict[str, Any] = {"probe": vector_text(half[0].astype(np.float32))}
    product = "(template <#> %(probe)s::halfvec)"
    if not cells:
        return product, values
    energy, seen = cell_columns(half, cells)
    values |= {"energy": vector_text(energy[0].astype(np.float32)), "seen": vector_text(seen[0].astype(np.float32))}
    ours, theirs = "-(energy <#> %(seen)s::halfvec)", "-(shown <#> %(energy)s::halfvec)"
    return f"{product} / sqrt(greatest({ours}, {OVERLAP_FLOOR}) * greatest({theirs}, {OVERLAP_FLOOR}))", values


def signs_of(probe: np.ndarray, cells: int) -> tuple[str, dict[str, Any]]:
    """Return the SQL expression of the number of signs that differ from those of a probe (D,), and its parameters.

    Cells that the probe of a dense model does not show are not compared.
    """
    kind = f"bit({len(probe)})"
    values = {"signs": bit_text(probe > 0), "seen": bit_text(probe != 0)}
    bits = f"(bits & %(seen)s::{kind})" if cells else "bits"
    return f"{bits} <~> %(signs)s::{kind}", values


def spellings(text: str) -> tuple[str, ...]:
    """Return a text in the Unicode forms in which file systems and programs write it: as it is, NFC and NFD."""
    forms = [text, unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)]
    return tuple(dict.fromkeys(forms))
