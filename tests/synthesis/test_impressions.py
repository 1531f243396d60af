"""Impressions: the same in any batch, and minutiae lie exactly where the picture shows them."""

import dataclasses
import math
import statistics

import pytest
import torch

from fingerprint_accel.errors import UserError
from fingerprint_accel.synthesis.geometry import PIXELS_PER_MM, frame
from fingerprint_accel.synthesis.impressions import impression_keys, render
from fingerprint_accel.synthesis.sensors import QUALITIES, SENSORS, Style
from fingerprint_accel.synthesis.skin import make_masters

FINGERS = torch.arange(6)


@pytest.fixture(scope="module")
def masters():
    return make_masters(7, FINGERS)


def keys_of(which, first=0):
    return impression_keys(7, which, first + torch.arange(len(which)))


def test_same_finger_in_any_batch(masters):
    many = make_masters(7, torch.arange(12) % 6)
    for finger in range(6):
        assert torch.equal(many.ridges[finger + 6], masters.ridges[finger])
        assert torch.equal(make_masters(7, FINGERS[finger : finger + 1]).ridges[0], masters.ridges[finger])


@pytest.mark.parametrize("threads", [1, 2])
def test_same_impression_in_any_batch_and_on_any_number_of_threads(masters, threads):
    which = torch.arange(6).repeat(2)
    keys = keys_of(which)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        together = render(masters, which, keys, Style())
        ridges = make_masters(7, FINGERS[:2]).ridges
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(ridges, masters.ridges[:2])
    for row in (0, 5, 11):
        alone = render(masters, which[row : row + 1], keys[row : row + 1], Style())
        assert torch.equal(alone.image[0], together.image[row])
        finger = row % 6
        few = render(masters[finger : finger + 1], torch.tensor([0]), keys[row : row + 1], Style())
        count = int(alone.count[0])
        assert torch.equal(few.minutiae[0, :count], together.minutiae[row, :count]), "beside other fingers"
        assert torch.equal(alone.minutiae[0, :count], together.minutiae[row, :count])
        assert together.count[row] == count


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_agrees_with_cpu(masters):
    on_gpu = make_masters(7, FINGERS.cuda())
    difference = (on_gpu.ridges.cpu().int() - masters.ridges.int()).abs()
    assert (difference > 8).float().mean() < 0.002
    assert (on_gpu.minutiae.count.cpu() - masters.minutiae.count).abs().max() <= 2


def blobs(masters, number):
    """Every master with flat skin but for a bump on its minutia `number`."""
    x, y = frame(torch.device("cpu"))
    at = masters.minutiae.rows[:, number, :2, None, None]
    height = torch.exp(-((x - at[:, 0]).square() + (y - at[:, 1]).square()) / (2 * 0.25**2))
    ridges = (7 + 240 * height).round().to(torch.uint8)
    own = masters.minutiae
    one = dataclasses.replace(
        own,
        rows=own.rows[:, number : number + 1],
        count=torch.ones_like(own.count),
    )
    return dataclasses.replace(masters, ridges=ridges, minutiae=one)


@pytest.mark.parametrize(("ppi", "canvas"), [(300, 320), (500, 512)])
def test_minutiae_lie_where_the_picture_shows_them(masters, ppi, canvas):
    style = Style(sensors=("optical",), quality="default", ppi=ppi, canvas=canvas)
    errors = []
    for number in range(1, 50, 4):
        prints = render(blobs(masters, number), FINGERS, keys_of(FINGERS, number), style)
        axis = torch.arange(canvas) + 0.5
        for finger in range(6):
            if not prints.count[finger]:
                continue
            x, y = prints.minutiae[finger, 0, :2].tolist()
            ink = 255.0 - prints.image[finger]
            near = ((axis[None] - x).square() + (axis[:, None] - y).square()).sqrt() < 0.6 * ppi / 25.4
            dark = (ink - ink[near].median()).clamp_min(0) * near
            if min(x, y) < 20 or max(x, y) > canvas - 20 or ink[near].max() < 60 or not prints.skin[finger][near].all():
                continue
            found = (dark * axis[None]).sum() / dark.sum(), (dark * axis[:, None]).sum() / dark.sum()
            errors.append(math.hypot(float(found[0]) - x, float(found[1]) - y) * 25.4 / ppi)
    assert len(errors) > 15
    assert statistics.median(errors) < 0.05, "mm: half a pixel at 300 ppi"
    assert max(errors) < 0.2, "mm: dryness and texture pull at a bump"


def test_minutiae_are_kept_where_the_finger_touched_and_nowhere_else(masters):
    which = torch.arange(6).repeat(5)
    prints = render(masters, which, keys_of(which), Style())
    total = 0
    for row in range(30):
        count = int(prints.count[row])
        points = prints.minutiae[row, :count]
        column, line = points[:, 0].long(), points[:, 1].long()
        near = torch.nn.functional.max_pool2d(prints.skin[row][None, None].float(), 3, 1, 1)[0, 0] > 0
        assert near[line, column].all()
        area = float(prints.skin[row].sum()) * (2.54 / 300) ** 2
        assert 12 < count / area < 30, "minutiae per square centimetre of contact"
        assert (prints.minutiae[row, count:] == 0).all()
        total += count
        assert ((points[:, 3] > 0) & (points[:, 3] <= 1)).all()
    assert total > 600


def test_nothing_is_lost_inside_the_contact(masters):
    """Every minutia that is not kept lies off the contact: seen by giving all of the skin to the sensor."""
    style = Style(quality="clean")
    which = torch.arange(6)
    prints = render(masters, which, keys_of(which), style)
    for finger in range(6):
        missing = int(masters.minutiae.count[finger] - prints.count[finger])
        outside = 32 * 25.6 / 100 - float(prints.skin[finger].sum()) * (2.54 / 300) ** 2
        assert missing / outside == pytest.approx(float(masters.minutiae.count[finger]) / 8.19, rel=0.45)


def test_other_impressions_other_pictures(masters):
    which = torch.zeros(3, dtype=torch.int64)
    prints = render(masters, which, keys_of(which), Style())
    assert not torch.equal(prints.image[0], prints.image[1])
    again = render(masters, which, keys_of(which), Style())
    assert torch.equal(prints.image, again.image)


@pytest.mark.parametrize("sensor", SENSORS)
def test_every_sensor_makes_a_print(masters, sensor):
    prints = render(masters, FINGERS, keys_of(FINGERS), Style(sensors=(sensor,)))
    for image, skin in zip(prints.image, prints.skin, strict=True):
        assert image[skin].float().std() > 8, "ridges"
        corner = image[:4, :4].float()
        assert corner.mean() > 250, "white where there is no print"
        assert 0.3 < float(skin.sum()) * (2.54 / 300) ** 2 < 4.5, "square centimetres"


def test_severity_grows_with_quality(masters):
    which = torch.arange(6).repeat(4)
    counts = {}
    for quality in QUALITIES:
        prints = render(masters, which, keys_of(which), Style(quality=quality))
        counts[quality] = prints.minutiae[..., 3].sum() / prints.count.sum()
    assert counts["clean"] > counts["default"] > counts["poor"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"sensors": ("sonar",)}, "sensor 'sonar': unknown"),
        ({"sensors": ()}, "no sensor"),
        ({"quality": "superb"}, "quality 'superb': unknown"),
        ({"ppi": 20}, "ppi 20: must lie between 150 and 1000"),
        ({"canvas": 20}, "canvas 20: must lie between 64 and 2048"),
    ],
)
def test_mistakes(words, message):
    with pytest.raises(UserError, match=message):
        Style(**words)


def test_geometry_in_millimetres(masters):
    """The same touch at two resolutions: minutiae scale with the ppi."""
    which = torch.arange(6)
    coarse = render(masters, which, keys_of(which), Style(ppi=250, canvas=320))
    fine = render(masters, which, keys_of(which), Style(ppi=500, canvas=640))
    assert PIXELS_PER_MM == 10
    assert (coarse.count - fine.count).abs().max() <= 2
    row = int((coarse.count == fine.count).nonzero()[0])
    count = int(coarse.count[row])
    torch.testing.assert_close(fine.minutiae[row, :count, :2] / 2, coarse.minutiae[row, :count, :2], rtol=0, atol=0.25)
