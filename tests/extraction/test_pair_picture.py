"""The pose that compared best, and the picture of a pair in it."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from fingerprint_accel.cli.extraction import compare
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.comparison import compare_prints
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.pair_picture import in_words, pair_png
from fingerprint_accel.extraction.poses import UPRIGHT, Poses, best_agreement
from fingerprint_accel.preprocess.geometric import Pose, resample, upright
from fingerprint_accel.similarity import similarity


@pytest.fixture(scope="module")
def small():
    return FingerprintExtractor.from_pretrained("small")


@pytest.fixture(scope="module")
def plain():
    """The bundled network without the one that aligns."""
    extractor = FingerprintExtractor.from_pretrained("small")
    extractor.model.alignment = None
    return extractor


def moved(canvas: np.ndarray, degrees: float, right: int, down: int) -> np.ndarray:
    """A print turned to the left about the middle of its canvas, then moved; white comes in."""
    turned = Image.fromarray(canvas).rotate(degrees, Image.Resampling.BICUBIC, fillcolor=255)
    return np.asarray(turned.transform(turned.size, Image.Transform.AFFINE, (1, 0, -right, 0, 1, -down), fillcolor=255))


@pytest.fixture(scope="module")
def canvas(prints):
    return open_dataset(prints).image(0)


def test_best_agreement_is_where_similarity_was_reached():
    generator = np.random.default_rng(0)
    for _ in range(20):
        pair = generator.standard_normal((2, 5, 8)).astype(np.float32)
        pair /= np.linalg.norm(pair, axis=2, keepdims=True)
        best, i, j = best_agreement(*pair)
        assert best == pytest.approx(float(similarity(pair[:1], pair[1:])[0, 0]), abs=1e-6)
        assert best == pytest.approx(float(pair[0, i] @ pair[1, j]), abs=1e-6)
        assert 0 in (i, j)


def test_dollar_signs_in_a_name_are_text(small, canvas):
    """matplotlib reads what is between them as a formula, and fails if it is none."""
    found = compare_prints(small, canvas, canvas, 300, UPRIGHT)
    assert pair_png(found, ("a$\\b$.png", "b.png"), small).startswith(b"\x89PNG")


@pytest.mark.parametrize(("swapped", "degrees", "right", "down"), [(False, 20.0, 24, 0), (True, -20.0, 0, -24)])
def test_the_probe_lands_on_the_reference(plain, canvas, monkeypatch, swapped, degrees, right, down):
    """Whichever of the two is turned to meet the other: its ridges then lie on those of the reference."""
    monkeypatch.setattr(plain, "on_canvas", lambda image, ppi, **_: image)  # placing would undo a shift
    pair = (canvas, moved(canvas, degrees, right, down))
    found = compare_prints(plain, *(pair[::-1] if swapped else pair), ppi=300, tried=Poses((-20.0, 20.0), shift_mm=2.0))
    assert found.similarity > 0.9
    assert overlap(found) > 0.9


def test_so_it_does_where_the_model_aligns_both(small, plain, canvas, monkeypatch):
    """Both taken to where the alignment network says: the pose leads from the one over the finger to the other."""
    pair = (canvas, moved(canvas, 20.0, 24, 0))
    for extractor in (small, plain):
        monkeypatch.setattr(extractor, "on_canvas", lambda image, ppi, **_: image)
    motion = compare_prints(plain, *pair, ppi=300, tried=Poses((-20.0, 20.0), shift_mm=2.0)).pose
    cos, sin = math.cos(0.12), math.sin(0.12)
    first = Pose(torch.tensor([[[cos, -sin], [sin, cos]]]), torch.tensor([[5.0, -3.0]]), None, 256.0)
    second = first.within(motion)
    both = Pose(torch.cat([first.matrix, second.matrix]), torch.cat([first.shift, second.shift]), None, 256.0)
    probe = torch.from_numpy(pair[1].copy())

    def alignments(images, count):
        return [
            both[slice(None)] if len(images) == 2 else both[slice(1, 2) if torch.equal(images[0], probe) else slice(1)]
        ]

    monkeypatch.setattr(small, "alignments", alignments)
    found = compare_prints(small, *pair, ppi=300, tried=UPRIGHT)
    assert found.similarity > 0.9
    assert overlap(found) > 0.9


def overlap(found):
    """Correlation of the ink of both prints, the probe in its pose, in the middle of the canvas."""
    middle = slice(60, 260)
    inks = [
        resample(1 - torch.from_numpy(image.copy())[None, None] / 255, pose, 320)[0, 0, middle, middle].flatten()
        for image, pose in zip(found.canvases, (upright(1, 320.0, torch.device("cpu")), whole(found.pose)), strict=True)
    ]
    return float(torch.corrcoef(torch.stack(inks))[0, 1])


def whole(pose, side=320.0):
    return Pose(pose.matrix, pose.shift, None, side)


def test_words_say_what_happens_to_the_print():
    poses = Poses((90.0,), shift_mm=2.0).all(256.0, 300, torch.device("cpu"))
    words = {in_words(pose, 300): whole(pose, 101.0) for pose in poses}
    assert len(words) == 18
    assert "turned 90° left, moved 2.0 mm right and 2.0 mm up" in words
    image = torch.zeros(1, 1, 101, 101)
    image[..., 50, 20] = 1  # to the left of the middle
    places = {
        "as it is": (50, 20),
        "turned 90° left": (80, 50),
        "moved 2.0 mm right": (50, 44),  # 23.6 pixels
        "moved 2.0 mm up": (26, 20),
    }
    for word, place in places.items():
        assert divmod(int(resample(image, words[word], 101).argmax()), 101) == place, word


def test_the_picture_shows_both_prints_in_their_colours(small, canvas, tmp_path, capsys):
    """A print beside itself: blue, red, and where both are overlaid neither of the two."""
    Image.fromarray(canvas).save(tmp_path / "a.png")
    out = tmp_path / "pictures" / "pair.png"
    compare(tmp_path / "a.png", tmp_path / "a.png", "small", 300, poses=False, out=out)
    assert f"picture     {out}" in capsys.readouterr().out
    pixels = np.asarray(Image.open(out).convert("RGB")).astype(int)
    height, width, _ = pixels.shape
    assert width > 1000
    thirds = [pixels[height // 3 : -40, i * width // 3 + 8 : (i + 1) * width // 3 - 8] for i in range(3)]
    blue = [(part[..., 2] - part[..., 0] > 60).mean() for part in thirds]
    red = [(part[..., 0] - part[..., 2] > 60).mean() for part in thirds]
    assert blue[0] > 0.02 and red[1] > 0.02
    assert max(blue[1], blue[2], red[0], red[2]) < 0.001
    ridges = np.percentile(thirds[2].sum(axis=2), 3)
    assert ridges < 0.85 * min(np.percentile(part.sum(axis=2), 3) for part in thirds[:2])
    for wrong in (tmp_path, tmp_path / "pair.jpg"):
        with pytest.raises(UserError, match="give a file that ends in"):
            compare(tmp_path / "a.png", tmp_path / "a.png", "small", 300, poses=False, out=wrong)
