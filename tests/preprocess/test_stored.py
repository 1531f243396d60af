import json

import numpy as np
import pytest
import torch
from PIL import Image

from fingerprint_accel.data.importing import import_dataset
from fingerprint_accel.data.merged_rows import MergeOptions
from fingerprint_accel.data.merging import merge
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.preprocess.enhance import PERIOD, Enhancer, enhance_canvas


def test_it_is_the_enhancer(prints):
    """Within half a grey level of what training with --preprocess.enhance would compute, ridges dark."""
    shards = open_dataset(prints)
    image = min((shards.image(row) for row in range(len(shards))), key=np.mean)  # the darkest; some are faint
    enhanced = enhance_canvas(image, 300)
    assert (enhanced.shape, enhanced.dtype) == (image.shape, np.uint8)
    ink = (255 - torch.from_numpy(image.copy()))[None, None].float() / 255
    expected = 255 * (1 - Enhancer(PERIOD * 300)(ink)[0, 0].numpy())
    np.testing.assert_allclose(enhanced, expected, atol=0.51)
    ridge = image < 90
    assert enhanced[ridge].mean() < 60 < 180 < enhanced[~ridge].mean()
    assert (enhanced[:4] > 250).all(), "paper stays white"


def test_it_does_not_depend_on_the_threads(prints):
    image = open_dataset(prints).image(3)
    before = torch.get_num_threads()
    one = enhance_canvas(image, 300)
    try:
        torch.set_num_threads(2)
        np.testing.assert_array_equal(one, enhance_canvas(image, 300))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("workers", [1, 2])
def test_import_enhanced_or_enhance_later(tmp_path, workers):
    """The same bytes per print, minutiae untouched, from any process."""
    folder = tmp_path / "scans"
    folder.mkdir()
    y, x = np.mgrid[:300, :300]
    inside = (x - 150) ** 2 + (y - 150) ** 2 < 126**2
    for finger in range(1, 13):
        for impression in (1, 2):
            waves = 128 + 100 * np.cos(x / 1.5 + finger + y / (8 + impression))
            Image.fromarray(np.where(inside, waves, 255).astype(np.uint8)).save(folder / f"{finger}_{impression}.png")
        (folder / f"{finger}_1.xyt").write_text("150 150 45 80\n100 150 200 20\n")
    quiet = {"workers": workers, "progress": False}
    import_dataset(folder, tmp_path / "plain", "fvc", 500, canvas=200, **quiet)
    import_dataset(folder, tmp_path / "at once", "fvc", 500, canvas=200, enhance=enhance_canvas, **quiet)
    merge([tmp_path / "plain"], tmp_path / "later", MergeOptions(enhance=enhance_canvas), **quiet)
    kinds = [open_dataset(tmp_path / name) for name in ("plain", "at once", "later")]
    assert [shards.info.enhanced for shards in kinds] == [False, True, True]
    assert json.loads((tmp_path / "later" / "fingerprint.json").read_text())["enhanced"] is True
    plain, once, later = ({shards.table["source"][row].as_py(): row for row in range(24)} for shards in kinds)
    for name, row in once.items():
        image = kinds[1].image(row)
        np.testing.assert_array_equal(image, kinds[2].image(later[name]))
        np.testing.assert_array_equal(image, enhance_canvas(kinds[0].image(plain[name]), 300))
        points = [s.minutiae(np.array([at]))[0] for s, at in zip(kinds, (plain[name], row, later[name]), strict=True)]
        np.testing.assert_array_equal(points[0], points[1])
        np.testing.assert_array_equal(points[0], points[2])
