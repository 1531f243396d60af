"""Sharded heads in training on one process; tests/integration/test_sharded.py has several."""

import dataclasses

import numpy as np
import torch

from fingerprint_accel.training.heads import draw_classes
from fingerprint_accel.training.setup import set_up


def with_loss(config, **knobs):
    return dataclasses.replace(config, loss=dataclasses.replace(config.loss, **knobs))


def test_an_update_draws_the_fingers_of_its_prints(tiny):
    """Those of all micro-batches, from the place in the stream alone."""
    config = with_loss(tiny, sharded=True, class_sample_rate=0.1)
    config = dataclasses.replace(
        config, training=dataclasses.replace(tiny.training, batch_size=2, gradient_accumulation_steps=2)
    )
    run = set_up(config)
    draw_classes(run, position=9)
    samples, _ = run.order.take(9, 4)
    wanted = set(run.train.labels[samples].tolist())
    for head in run.bare.loss.sharded_heads.values():
        rows = head._drawn_rows.tolist()
        assert len(rows) == 4
        assert wanted <= set(rows)
        assert torch.equal(head.drawn["weight"], head.weight[rows])
    with run.train.loader(run.order, 2, position=9) as loader:
        batches = iter(loader)
        read = np.concatenate([next(batches).finger.numpy() for _ in range(2)])
    assert set(read.tolist()) == wanted
