"""NIST's programs at work in an import; skipped where nbis-py is not installed."""

import math

import numpy as np
import pytest
import torch
from minutia_matching import match_minutiae
from PIL import Image

from fingerprint_accel.data.importing import import_dataset
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.data.templates import write_template
from fingerprint_accel.synthesis.impressions import impression_keys, render
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.synthesis.skin import make_masters
from tests.data.small_datasets import files

pytest.importorskip("nbis")
from fingerprint_accel.data import nbis

RIDGE_MM = 0.5
FINGERS = 6
RESOLUTIONS = (250, 500, 1000)


@pytest.fixture(scope="module")
def masters():
    return make_masters(5, torch.arange(FINGERS))


@pytest.fixture(scope="module")
def rendered(masters):
    """The same touches at every resolution, as lists of (image, exact minutiae)."""

    def at(ppi):
        numbers = torch.arange(FINGERS)
        style = Style(quality="clean", ppi=ppi, canvas=round(1.1 * ppi))
        prints = render(masters, numbers, impression_keys(5, numbers, 0 * numbers), style)
        return [
            (prints.image[row].numpy(), prints.minutiae[row, : prints.count[row]].numpy()) for row in range(FINGERS)
        ]

    return {ppi: at(ppi) for ppi in RESOLUTIONS}


def shares(found, exact, pixels):
    """Of all prints: the share of what was found that is there, and of what is there that was found."""
    paired = sum(len(match_minutiae(a, b, pixels, math.radians(30))) for a, b in zip(found, exact, strict=True))
    return paired / sum(map(len, found)), paired / sum(map(len, exact))


@pytest.mark.parametrize("ppi", RESOLUTIONS)
def test_minutiae_lie_where_they_are(rendered, ppi):
    images, exact = zip(*rendered[ppi], strict=True)
    found = [nbis.find_minutiae(image, ppi) for image in images]
    precision, recall = shares(found, exact, RIDGE_MM * ppi / 25.4)
    assert precision > 0.85
    assert recall > 0.7
    for rows in found:
        assert rows.dtype == np.float32
        assert ((rows[:, 3] >= nbis.RELIABLE) & (rows[:, 3] <= 1)).all()


def test_what_mindtct_doubts_is_left_out(rendered):
    image, exact = rendered[500][0]
    everything, kept = nbis.Nbis().minutiae(image), nbis.find_minutiae(image, 500)
    np.testing.assert_array_equal(kept, everything[everything[:, 3] >= 0.3])
    pixels = RIDGE_MM * 500 / 25.4
    assert shares([kept], [exact], pixels)[0] > shares([everything], [exact], pixels)[0] + 0.1


def test_scores_of_one_touch_agree_at_all_resolutions(rendered):
    scores = {ppi: [nbis.nfiq2(image, ppi) for image, _ in rendered[ppi]] for ppi in RESOLUTIONS}
    assert all(20 <= score <= 100 for of_ppi in scores.values() for score in of_ppi)
    medians = [np.median(of_ppi) for of_ppi in scores.values()]
    assert max(medians) - min(medians) < 15


@pytest.mark.parametrize("shape", [(1, 1), (10, 10), (9, 300), (300, 12), (31, 31), (40, 40)])
def test_images_too_small_for_a_print_do_not_crash_nists_code(shape):
    grey = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert nbis.find_minutiae(grey, 500).shape[1] == 4
    assert nbis.nfiq2(grey, 500) >= -1
    if min(shape) < nbis.SMALLEST:
        assert (len(nbis.find_minutiae(grey, 500)), nbis.nfiq2(grey, 500)) == (0, -1)


@pytest.fixture(scope="module")
def scans(rendered, tmp_path_factory):
    """Lists of all images with their resolutions: `some.csv` names exact minutiae of finger 0, `all.csv` of all."""
    folder = tmp_path_factory.mktemp("scans")
    (folder / "exact").mkdir()
    lines = {"some.csv": ["path,finger,impression,ppi,minutiae"], "all.csv": ["path,finger,impression,ppi,minutiae"]}
    for impression, ppi in enumerate(RESOLUTIONS):
        for finger, (image, exact) in enumerate(rendered[ppi]):
            stem = f"{ppi}_{finger}"
            Image.fromarray(image).save(folder / f"{stem}.png")
            write_template(folder / "exact" / f"{stem}.iso", exact, *image.shape, ppi)
            for name, those in lines.items():
                stated = f"exact/{stem}.iso" if finger == 0 or name == "all.csv" else ""
                those.append(f"{stem}.png,{finger},{impression},{ppi},{stated}")
    for name, those in lines.items():
        (folder / name).write_text("\n".join(those) + "\n")
    return folder


def minutiae_by_source(shards):
    table, counts = shards.minutiae(np.arange(len(shards)))
    sources = shards.table["source"].to_pylist()
    return {source: table[row, : counts[row]] for row, source in enumerate(sources)}


def test_import_finds_minutiae_where_no_file_states_them(scans, tmp_path):
    """The bytes are the same with one worker and with two; minutiae that files state stay as they are."""
    found = {"find_minutiae": "mindtct", "nfiq2": True}
    for workers in (1, 2):
        import_dataset(scans / "some.csv", tmp_path / f"{workers}", "csv", **found, workers=workers, progress=False)
    assert files(tmp_path / "1") == files(tmp_path / "2")
    import_dataset(scans / "all.csv", tmp_path / "exact", "csv", workers=1, progress=False)
    shards = open_dataset(tmp_path / "1")
    assert shards.info.with_minutiae == len(shards) == FINGERS * len(RESOLUTIONS)
    assert (shards.nfiq2() >= 20).all()
    ours, exact = (minutiae_by_source(open_dataset(tmp_path / name)) for name in ("1", "exact"))
    pixels = RIDGE_MM * shards.info.ppi / 25.4
    for ppi in RESOLUTIONS:
        np.testing.assert_array_equal(ours[f"{ppi}_0.png"], exact[f"{ppi}_0.png"])
        others = [f"{ppi}_{finger}.png" for finger in range(1, FINGERS)]
        assert shares([ours[name] for name in others], [exact[name] for name in others], pixels)[1] > 0.7


def test_without_the_option_no_minutiae_are_found(scans, tmp_path):
    import_dataset(scans / "some.csv", tmp_path / "set", "csv", workers=1, progress=False)
    shards = open_dataset(tmp_path / "set")
    assert (shards.info.with_minutiae, shards.has_nfiq2) == (len(RESOLUTIONS), False)


def test_a_print_without_minutiae_matches_nothing(rendered):
    matcher = nbis.Nbis()
    image = rendered[500][0][0]
    template, empty = matcher.template(image), nbis.find_template(np.full_like(image, 255), 500)
    assert len(empty) == nbis.EMPTY_TEMPLATE
    assert matcher.compare(template, empty) == matcher.compare(empty, empty) == 0
    assert matcher.compare(template, template) > 40
