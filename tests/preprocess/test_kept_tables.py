"""Tables that are kept between calls do not depend on who asked first."""

import torch

from fingerprint_accel.preprocess import coarse, geometric
from fingerprint_accel.preprocess.pipeline import local_normalize


def test_what_was_made_while_extracting_can_be_differentiated():
    for table in (coarse._counts, coarse._window, geometric._bicubic):
        table.cache_clear()
    with torch.inference_mode():
        wanted = local_normalize(torch.rand(1, 1, 40, 40), 12)
        assert wanted.is_inference()
        geometric._bicubic(40, torch.device("cpu"))
    assert not geometric._bicubic(40, torch.device("cpu")).is_inference()
    ink = torch.rand(1, 1, 40, 40, requires_grad=True)
    coarse.local_means(coarse.cell_means(ink, 2), 2, 3).square().sum().backward()
    local_normalize(ink, 12).sum().backward()
    assert ink.grad is not None
    assert ink.grad.abs().sum() > 0
