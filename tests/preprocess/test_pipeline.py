import dataclasses
import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fingerprint_accel.config import AugmentConfig, PreprocessConfig
from fingerprint_accel.data.batch import Batch
from fingerprint_accel.errors import UserError
from fingerprint_accel.preprocess import coarse, geometric
from fingerprint_accel.preprocess.geometric import move_minutiae, random_pose, resample, upright
from fingerprint_accel.preprocess.minutia_map import minutia_maps
from fingerprint_accel.preprocess.pipeline import Preprocessor, local_normalize
from fingerprint_accel.random import sample_keys
from fingerprint_accel.synthesis.impressions import impression_keys, render
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.synthesis.skin import make_masters

CANVAS = 320


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    fingers = torch.arange(6)
    masters = make_masters(0, fingers)
    image = render(masters, fingers, impression_keys(0, fingers, fingers), Style(canvas=CANVAS)).image
    minutiae = torch.rand(6, 9, 4, generator=generator) * torch.tensor([200.0, 200.0, 6.28, 1.0])
    minutiae[..., :2] += 60
    count = torch.tensor([9, 3, 0, 9, 5, 1])
    return Batch(image, torch.arange(6), minutiae, count, torch.arange(6) * 7, torch.tensor([0, 0, 0, 1, 1, 2]))


def part(batch, rows):
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return Batch(**{name: value[rows] for name, value in fields.items() if value is not None})


@pytest.mark.parametrize(("crop", "size", "enhance"), [(299, 299, False), (256, 128, True), (277, 131, False)])
def test_a_print_is_augmented_the_same_in_any_batch(batch, crop, size, enhance):
    """To the bit, and however many prints are worked on at a time."""
    preprocessor = Preprocessor(PreprocessConfig(crop=crop, size=size, enhance=enhance), CANVAS, seed=3)
    image, maps = preprocessor(batch, augment=True, maps=True)
    for rows in ([0], [5, 1], [3, 2, 4]):
        alone, alone_maps = preprocessor(part(batch, rows), augment=True, maps=True)
        assert torch.equal(alone, image[rows])
        assert torch.equal(alone_maps, maps[rows])


def test_epochs_indices_and_seeds_differ(batch):
    one = part(batch, [0])
    config = PreprocessConfig(crop=256, size=128)
    changed = [
        Preprocessor(config, CANVAS, seed=0)(one, augment=True)[0],
        Preprocessor(config, CANVAS, seed=1)(one, augment=True)[0],
        Preprocessor(config, CANVAS)(dataclasses.replace(one, epoch=one.epoch + 1), augment=True)[0],
        Preprocessor(config, CANVAS)(dataclasses.replace(one, index=one.index + 1), augment=True)[0],
    ]
    for n, first in enumerate(changed):
        for second in changed[n + 1 :]:
            assert (first - second).abs().mean() > 0.05


def test_inference_equals_no_augmentation(batch):
    preprocessor = Preprocessor(PreprocessConfig(crop=256, size=128), CANVAS)
    torch.testing.assert_close(preprocessor.images(batch.image), preprocessor(batch, augment=False)[0], rtol=0, atol=0)
    off = PreprocessConfig(crop=256, size=128, augment=AugmentConfig(enabled=False))
    torch.testing.assert_close(preprocessor.images(batch.image), Preprocessor(off, CANVAS)(batch, augment=True)[0])


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_strength_multiplies_every_amplitude(batch, strength):
    """Written out knob by knob, so that an amplitude which is added later cannot be forgotten."""
    full = AugmentConfig(start=0.1, ramp=0.5)
    scaled = AugmentConfig(
        rotation_degrees=20.0 * strength,
        translation=20.0 * strength,
        scale=0.05 * strength,
        elastic=3.0 * strength,
        contrast=0.4 * strength,
        gain=0.2 * strength,
        ridge_thickness=0.5 * strength,
        noise=0.06 * strength,
        occlusion=0.15 * strength,
        start=0.1,
        ramp=0.5,
    )
    assert full.scaled(strength) == scaled
    found = Preprocessor(PreprocessConfig(crop=256, size=128, augment=full), CANVAS)(batch, True, True, strength)
    wanted = Preprocessor(PreprocessConfig(crop=256, size=128, augment=scaled), CANVAS)(batch, True, True)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)
    plain = Preprocessor(PreprocessConfig(crop=256, size=128), CANVAS)(batch, augment=False)[0]
    assert torch.allclose(found[0], plain, rtol=0, atol=1e-3) == (strength == 0)


def test_upright_pose_only_crops():
    image = torch.rand(1, 1, CANVAS, CANVAS)
    cropped = resample(image, upright(1, 300, image.device), 300)
    torch.testing.assert_close(cropped, image[:, :, 10:310, 10:310], atol=1e-4, rtol=0)
    half = resample(image, upright(1, 320, image.device), 160)
    torch.testing.assert_close(half, torch.nn.functional.avg_pool2d(image, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("crop", "size"), [(299, 299), (256, 128), (320, 200)])
def test_minutiae_move_with_the_pixels(crop, size):
    """A blob is drawn at each minutia, a second one a step further along its direction; both are found again."""
    count, step = 40, 9.0
    generator = torch.Generator().manual_seed(1)
    minutiae = torch.rand(count, 1, 4, generator=generator) * torch.tensor([120.0, 120.0, 2 * math.pi, 1.0])
    minutiae[..., :2] += 100
    axis = torch.arange(CANVAS) + 0.5

    def blob(x, y):
        spread = torch.exp(-((axis - x) ** 2) / 18)[:, None, :] * torch.exp(-((axis - y) ** 2) / 18)[:, :, None]
        return spread[:, None]

    x, y, angle = minutiae[:, :, 0], minutiae[:, :, 1], minutiae[:, :, 2]
    first = blob(x, y)
    second = blob(x + step * angle.cos(), y - step * angle.sin())
    keys = sample_keys(0, torch.zeros(count, dtype=torch.long), torch.arange(count))
    pose = random_pose(keys, AugmentConfig(rotation_degrees=40, translation=15, scale=0.1, elastic=5), crop)
    moved = move_minutiae(minutiae, pose, CANVAS, size)[:, 0]
    pixel = torch.arange(size) + 0.5

    def centre(image):
        weight = resample(image, pose, size)[:, 0]
        total = weight.sum(dim=(1, 2))
        return torch.stack([(weight.sum(1) * pixel).sum(1) / total, (weight.sum(2) * pixel).sum(1) / total], dim=1)

    start, end = centre(first), centre(second)
    assert (start - moved[:, :2]).norm(dim=1).max() < 0.5
    direction = torch.atan2(start[:, 1] - end[:, 1], end[:, 0] - start[:, 0])
    turn = torch.remainder(direction - moved[:, 2] + math.pi, 2 * math.pi) - math.pi
    assert turn.abs().max() < math.radians(6)


def test_minutia_maps_equal_a_plain_loop():
    generator = torch.Generator().manual_seed(2)
    minutiae = torch.rand(3, 5, 4, generator=generator) * torch.tensor([299.0, 299.0, 2 * math.pi, 1.0])
    count = torch.tensor([5, 2, 0])
    maps = minutia_maps(minutiae, count, size=299, map_size=64, sigma=1.5)
    expected = torch.zeros(3, 6, 64, 64)
    for b in range(3):
        for m in range(int(count[b])):
            x, y, angle, _ = minutiae[b, m].tolist()
            for c in range(6):
                turn = abs(math.remainder(angle - c * math.pi / 3, 2 * math.pi))
                weight = math.exp(-turn / (2 * (math.pi / 6) ** 2))
                grid = torch.arange(64) + 0.5
                near = (grid[None, :] - x * 64 / 299) ** 2 + (grid[:, None] - y * 64 / 299) ** 2
                expected[b, c] += weight * torch.exp(-near / (2 * 1.5**2))
    torch.testing.assert_close(maps, expected.clamp(0, 1), atol=1e-5, rtol=0)
    assert maps[2].abs().sum() == 0


def test_local_normalisation_ignores_brightness_and_contrast(batch):
    ink = 1 - batch.image[:, None].float() / 255
    ink = 0.9 * ink + 0.1 * torch.rand(ink.shape, generator=torch.Generator().manual_seed(1))  # contrast everywhere
    plain = local_normalize(ink, 33, floor=0)
    torch.testing.assert_close(local_normalize(0.3 + 0.5 * ink, 33, floor=0), plain, atol=2e-2, rtol=0)
    empty = local_normalize(torch.full((1, 1, 128, 128), 0.1), 33)
    assert empty.abs().max() < 1e-3


def test_crop_must_fit_the_canvas():
    with pytest.raises(UserError, match=r"preprocess\.crop 299 is larger than the canvas 256"):
        Preprocessor(PreprocessConfig(), 256)


def test_inputs_and_maps_in_the_training_dtype(batch):
    preprocessor = Preprocessor(PreprocessConfig(crop=256, size=128), CANVAS)
    image, maps = preprocessor(batch, augment=True, maps=True)
    for dtype, step in ((torch.bfloat16, 2**-8), (torch.float16, 2**-11)):
        low_image, low_maps = preprocessor(batch, augment=True, maps=True, dtype=dtype)
        assert low_image.dtype == low_maps.dtype == dtype
        assert torch.equal(low_image, image.to(dtype))
        torch.testing.assert_close(low_maps.float(), maps, rtol=4 * step, atol=step)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_compiled_pixels_are_those_of_the_eager_chain(batch):
    """As one graph; `Preprocessor.compile` leaves the chain alone on a CPU, so this compiles it by hand."""
    preprocessor = Preprocessor(PreprocessConfig(crop=256, size=128), CANVAS)
    eager = preprocessor(batch, augment=True)[0]
    preprocessor.compile()
    assert torch.equal(preprocessor(batch, augment=True)[0], eager)
    preprocessor.pixels = torch.compile(preprocessor.pixels, backend="aot_eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(preprocessor(batch, augment=True)[0], eager, rtol=0, atol=1e-4)


def test_a_batch_may_be_empty(batch):
    preprocessor = Preprocessor(PreprocessConfig(crop=256, size=128), CANVAS)
    image, maps = preprocessor(part(batch, slice(0, 0)), augment=True, maps=True)
    assert image.shape == (0, 1, 128, 128)
    assert maps.shape == (0, 6, 128, 128)


def test_nothing_waits_for_the_gpu():
    """On tensors without content, which say no to every read by the host and to every mix of devices."""
    preprocessor = Preprocessor(PreprocessConfig(enhance=True), CANVAS)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            for module in preprocessor.modules():
                for name, buffer in list(module.named_buffers(recurse=False)):
                    setattr(module, name, torch.empty(buffer.shape, device="cuda"))
            number = torch.empty(3, dtype=torch.int64, device="cuda")
            canvases = torch.empty(3, CANVAS, CANVAS, dtype=torch.uint8, device="cuda")
            batch = Batch(canvases, number, torch.empty(3, 9, 4, device="cuda"), number, number, number)
            image, maps = preprocessor(batch, augment=True, maps=True)
            assert image.device.type == maps.device.type == "cuda"
            assert image.shape == (3, 1, 299, 299)
            assert maps.shape == (3, 6, 128, 128)
    finally:  # what was cached has no content either
        for cached in (geometric._bicubic, coarse._counts, coarse._window):
            cached.cache_clear()
