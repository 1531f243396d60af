"""Quantise templates to one byte for each number: symmetric linear quantisation with one scale for each template.

A template of D numbers takes D + 4 bytes instead of 4 D. The quantised numbers are from -127 to 127; 0 stays 0, so the
cells that a dense template lacks stay zero (see `similarity`). The scale preserves the norm: a template of unit length
has unit length after `dequantise`. The scale that minimises the squared error, used for the weights of networks (Jacob
et al. 2018, arXiv 1712.05877), would not.

`template_formats` has another int8 format, in which all templates have one scale, so that other programs can compare
the integers directly. Its errors of similarities are twice as large.

This module imports only numpy, so that commands which only check files start fast.
"""

from __future__ import annotations

import numpy as np

LARGEST = 127  # -128 is not used, so that the range is symmetric


def quantise(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantise templates to int8.

    Args:
        vectors: (N, D) float32, finite; a row may be zero.

    Returns:
        Quantised numbers (N, D) int8 from -127 to 127, and the scale of each template (N,) float32. A row of the
        quantised numbers multiplied by its scale is the template; the error of a number is at most about half of the
        scale. The scale of a template that is zero is 0.
    """
    largest = np.maximum(vectors.max(axis=1, initial=0), -vectors.min(axis=1, initial=0))
    shares = np.divide(vectors, largest[:, None], out=np.zeros_like(vectors), where=largest[:, None] > 0)
    values = np.rint(LARGEST * shares).astype(np.int8)
    norms, rounded = (np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64)) for rows in (vectors, values))
    scale = np.divide(norms, rounded, out=np.zeros_like(norms), where=rounded > 0)
    return values, scale.astype(np.float32)


def dequantise(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Compute the templates (N, D) float32 that `quantise` has quantised to (N, D) int8 and a scale (N,) float32."""
    vectors = values.astype(np.float32)  # faster than a product of int8 and float32
    with np.errstate(invalid="ignore"):  # scales of damaged files; the result is checked
        vectors *= scale[:, None]
    return vectors
