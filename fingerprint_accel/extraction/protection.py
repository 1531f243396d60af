"""Template protection: a secret orthogonal transform of templates, which can be replaced by another one.

The transform is a rotation, so it does not change similarities, and templates under different keys do not match. If
templates leak, the prints are enrolled again under another key, and the leaked templates are useless for a search. This
is a cancelable biometric (Ratha et al. 2001, IBM Systems Journal 40(3); ISO/IEC 24745) with the random projection of
BioHashing (Teoh et al. 2004, Pattern Recognition 37(11)). It is not encryption: see docs/compare_and_search.md.

A dense template consists of one vector for each cell of a grid on the finger; see `similarity`. Its cells are permuted,
and the vector of each cell is rotated. The masked similarity therefore does not change, and missing cells remain zero.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from pathlib import Path

import numpy as np

from fingerprint_accel.errors import UserError
from fingerprint_accel.untrusted import UnreadableError, open_regular, reason_of

KEY = re.compile(rb"[0-9a-fA-F]{64}")
MAKE_KEY = "make one with `(umask 077; openssl rand -hex 32 > KEY_FILE)`"
LABEL = "fingerprint_accel template protection 1"
OTHERS = 0o077  # permissions of group and others


class Protection:
    """Secret orthogonal transform of templates.

    Args:
        key: 32 secret random bytes.

    Attributes:
        fingerprint: 16 hexadecimal digits that identify the key and do not reveal it.
    """

    def __init__(self, key: bytes) -> None:
        assert len(key) == 32, "a key has 32 bytes"
        self._key = key
        self.fingerprint = _derived(key, "fingerprint of the key", 8).hex()

    def apply(self, embeddings: np.ndarray, cells: int) -> np.ndarray:
        """Transform templates.

        Args:
            embeddings: (..., D) float32.
            cells: number of grid cells of a dense template; 0 for other templates.

        Returns:
            (..., D) float32. Dot products, or masked similarities of dense templates, change by rounding only.
        """
        order, rotations = _transform(self._key, embeddings.shape[-1], cells)
        grid = embeddings.reshape(*embeddings.shape[:-1], len(order), -1)[..., order, :]
        turned = np.matmul(np.moveaxis(grid, -2, 0).reshape(len(order), -1, grid.shape[-1]), rotations)  # (C, N, D / C)
        return np.moveaxis(turned, 0, 1).reshape(embeddings.shape).astype(np.float32)


def read_key(path: Path) -> Protection:
    """Read the file of a key: 64 hexadecimal digits. Only the owner may have access to the file.

    Raises:
        UserError: if the file is missing, other users can read or change it, or it does not contain a key.
    """
    try:
        with open_regular(path) as file:
            mode, text = os.fstat(file.fileno()).st_mode, file.read(100).strip()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; {MAKE_KEY}") from error
    except (OSError, UnreadableError) as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)}); {MAKE_KEY}") from error
    if mode & OTHERS:
        raise UserError(f"{path}: other users have access to this key; run `chmod 600 {path}`, or make another key")
    if not KEY.fullmatch(text):
        raise UserError(f"{path}: does not contain 64 hexadecimal digits; {MAKE_KEY}")
    return Protection(bytes.fromhex(text.decode()))


def with_key(identity: str, protection: Protection | None) -> str:
    """Return the identity of templates: that of their model, and the fingerprint of the key of protected templates."""
    return identity if protection is None else f"{identity}+{protection.fingerprint}"


def mismatch(stored: str, given: str) -> str:
    """Describe why templates with two different identities (see `with_key`) cannot be compared.

    Args:
        stored: identity of the templates in a folder.
        given: identity of the templates to compare with them.

    Returns:
        Reason and remedy, to follow the name of the folder in an error message.
    """
    (model, _, key), (other, _, other_key) = stored.partition("+"), given.partition("+")
    if model != other:
        remedy = "give the model that filled it (--model), or another gallery"
        return f"filled by another model ({model}, not {other}); {remedy}"
    if not key:
        return "its templates are not protected; leave out --protect, or give another gallery"
    if not other_key:
        return f"its templates are protected by the key {key}; give the file of this key to --protect"
    return f"its templates are protected by the key {key}, not {other_key}; give the file of the other key to --protect"


@functools.lru_cache(maxsize=4)
def _transform(key: bytes, dims: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Derive the transform of templates with `dims` numbers from a key. Templates that are not dense have one cell.

    Returns:
        Order of the cells (C,) int64, and orthogonal matrices (C, dims / C, dims / C) float64 to multiply from the
        right.
    """
    count, size = max(1, cells), dims // max(1, cells)
    words = np.frombuffer(_derived(key, f"order of {cells} cells", 8 * count), "<u8")
    uniform = np.frombuffer(_derived(key, f"rotations of {cells} cells, {dims} numbers", 16 * count * size**2), "<u8")
    first, second = ((uniform >> 11) + 0.5).reshape(2, count, size, size) / 2**53
    normal = np.sqrt(-2 * np.log(first)) * np.cos(2 * np.pi * second)  # Box and Muller 1958
    orthogonal, triangular = np.linalg.qr(normal)
    # With a positive diagonal the decomposition is unique, so it does not depend on the library.
    signs = np.sign(np.diagonal(triangular, axis1=1, axis2=2))
    return np.argsort(words, kind="stable"), orthogonal * signs[:, None, :]


def _derived(key: bytes, purpose: str, count: int) -> bytes:
    """Derive `count` bytes for one purpose from a key. They reveal neither the key nor the bytes of other purposes."""
    return hashlib.shake_256(f"{LABEL}: {purpose}\0".encode() + key).digest(count)
