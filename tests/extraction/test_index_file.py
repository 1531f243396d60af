"""The structure of a FAISS index is checked before FAISS reads it."""

import struct

import numpy as np
import pytest

from fingerprint_accel.extraction.index_file import check_index_file
from fingerprint_accel.untrusted import UnreadableError

faiss = pytest.importorskip("faiss")
DIMS, COUNT = 16, 300


def written(path, cells, apart=True):
    vectors = np.random.default_rng(0).standard_normal((COUNT, DIMS)).astype(np.float32)
    index = faiss.index_factory(DIMS, f"IVF{cells},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors if apart else np.repeat(vectors[:1], COUNT, axis=0))
    faiss.write_index(index, str(path))
    return path


@pytest.mark.parametrize(("cells", "apart", "layout"), [(1, True, b"full"), (7, True, b"full"), (7, False, b"sprs")])
def test_what_faiss_writes_is_accepted(tmp_path, cells, apart, layout):
    path = written(tmp_path / "index", cells, apart)
    assert path.read_bytes().count(layout) == 1
    check_index_file(path, DIMS, COUNT)
    for dims, most in ((DIMS + 1, COUNT), (DIMS, COUNT - 1)):
        with pytest.raises(UnreadableError, match="is no index of this gallery"):
            check_index_file(path, dims, most)


NUMBERS = (0, 1, 2, 8, 299, 301, 2**20, 2**31, 2**62, -1)
FLOATS = 4 * 7 * DIMS


@pytest.mark.parametrize("apart", [True, False])
def test_no_size_can_be_changed(tmp_path, apart):
    """With a checksum that fits, one of a thousand mutated files made FAISS allocate 1.5 GB."""
    whole = written(tmp_path / "index", 7, apart).read_bytes()
    lists = whole.index(b"ilar")
    inner = whole.index(b"IxFI")
    places = {
        "references": 8,
        "dimension": 4,
        "cells": 37,
        "dimension of the centres": inner + 4,
        "centres": inner + 8,
        "numbers of the centres": inner + 37,
        "map": inner + 46 + FLOATS,
        "lists": lists + 4,
        "bytes of a code": lists + 12,
        "sizes of lists": lists + 24,
        "size of the first list": lists + 32 + (0 if apart else 8),
    }
    for name, place in places.items():
        for number in NUMBERS:
            data = whole[:place] + struct.pack("<q", number) + whole[place + 8 :]
            if data == whole:
                continue
            (tmp_path / "changed").write_bytes(data)
            with pytest.raises(UnreadableError):
                check_index_file(tmp_path / "changed", DIMS, COUNT)
                pytest.fail(f"{name}: {number}")


def test_a_file_that_was_cut_off_is_refused(tmp_path):
    whole = written(tmp_path / "index", 7).read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "changed").write_bytes(whole[:length])
        with pytest.raises(UnreadableError):
            check_index_file(tmp_path / "changed", DIMS, COUNT)
