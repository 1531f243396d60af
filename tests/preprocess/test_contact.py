"""The contact on the network's input against brute force, and that of ink against the generator's."""

import math

import numpy as np
import pytest
import torch

from fingerprint_accel.data.truth import GRID
from fingerprint_accel.preprocess.geometric import Pose, turned_and_shifted, upright
from fingerprint_accel.preprocess.pipeline import contact_grid, ink_contact
from fingerprint_accel.synthesis.source import open_source

CANVAS = 320


def prints(spec, count):
    source, _ = open_source(f"synth:fingers={count},impressions=2,seed=77,{spec}", 0.0, torch.device("cpu"))
    return source.read(np.arange(count), np.zeros(count, np.int64), truth=True)


def share(contact, pose, cells, samples=60):
    """(cells, cells) by looking up `samples` x `samples` points of every cell, one by one in float64."""
    axis = ((np.arange(cells * samples) + 0.5) / (cells * samples) - 0.5) * pose.crop
    x, y = np.meshgrid(axis, axis)
    matrix, shift = pose.matrix[0].double().numpy(), pose.shift[0].double().numpy()
    where = np.stack([x, y], axis=-1) @ matrix.T + shift
    column, row = np.floor((where / CANVAS + 0.5) * GRID).astype(int).transpose(2, 0, 1)
    inside = (column >= 0) & (column < GRID) & (row >= 0) & (row < GRID)
    found = contact[row.clip(0, GRID - 1), column.clip(0, GRID - 1)] & inside
    return found.reshape(cells, samples, cells, samples).mean(axis=(1, 3))


@pytest.mark.parametrize("cells", [8, 14])
def test_the_share_of_each_cell_by_brute_force(cells):
    rows, columns = np.indices((GRID, GRID))
    contact = ((columns - 17.3) / 11) ** 2 + ((rows - 24.1) / 14) ** 2 < 1
    transform = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.2, -0.3], [-math.pi / 2, -0.6, 0.1]])
    pose = turned_and_shifted(transform, 288.0)
    grid = contact_grid(torch.from_numpy(contact).expand(3, -1, -1), pose, cells, CANVAS)
    assert (grid.shape, grid.dtype) == ((3, cells, cells), torch.float32)
    assert grid.min() >= 0
    assert grid.max() <= 1
    for one in range(3):
        expected = share(contact, pose[one : one + 1], cells)
        difference = np.abs(grid[one].numpy() - expected)
        assert difference.max() < 0.1
        assert difference.mean() < 0.01
        assert expected.max() == 1.0
        assert expected.min() == 0.0


def test_the_whole_canvas_cell_by_cell():
    contact = torch.rand(2, GRID, GRID, generator=torch.Generator().manual_seed(1)) < 0.5
    grid = contact_grid(contact, upright(2, CANVAS, torch.device("cpu")), GRID // 4, CANVAS)
    blocks = contact.float().view(2, 10, 4, 10, 4).mean(dim=(2, 4))
    assert (grid - blocks).abs()[:, 1:-1, 1:-1].max() < 0.11, "bilinear between neighbours"
    full = contact_grid(torch.ones(1, GRID, GRID), upright(1, 200.0, torch.device("cpu")), 8, CANVAS)
    torch.testing.assert_close(full, torch.ones(1, 8, 8))


def test_scale_and_elastic_part():
    contact = torch.zeros(1, GRID, GRID)
    contact[:, 10:30, 10:30] = 1  # 160 pixels to a side
    half = Pose(torch.eye(2)[None] / 2, torch.zeros(1, 2), torch.ones(1, 2, 6, 6), CANVAS)
    assert contact_grid(contact, half, 8, CANVAS).min() > 0.7, "the input shows what is in contact alone"
    whole = Pose(torch.eye(2)[None], torch.zeros(1, 2), None, CANVAS)
    assert contact_grid(contact, whole, 8, CANVAS).sum() == pytest.approx(16, abs=0.01)


@pytest.mark.parametrize("spec", ["quality=clean,sensors=optical", "quality=default,sensors=optical"])
def test_ink_tells_the_contact(spec):
    batch = prints(spec, 8)
    found = ink_contact(batch.image)
    assert (found.shape, found.dtype) == ((8, GRID, GRID), torch.bool)
    both, either = (found & batch.contact).sum(dim=(1, 2)), (found | batch.contact).sum(dim=(1, 2))
    assert (both / either).mean() > 0.9
    assert (both / either).min() > 0.85


def test_paper_is_no_contact_and_a_canvas_may_have_any_side():
    canvases = torch.full((2, 253, 253), 255, dtype=torch.uint8)
    canvases[1, :, 126:] = 128
    found = ink_contact(canvases)
    assert not found[0].any()
    assert found[1, :, 20:].all()
    assert not found[1, :, :18].any()
