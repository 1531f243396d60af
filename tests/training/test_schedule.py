import numpy as np
import pytest

from fingerprint_accel.config import TrainingConfig
from fingerprint_accel.training.schedule import learning_rate

CONFIG = TrainingConfig(learning_rate=2.0, warmup_steps=10, final_lr_share=0.1)


def test_warm_up_then_cosine():
    rates = np.array([learning_rate(step, 210, CONFIG) for step in range(210)])
    np.testing.assert_allclose(rates[:10], 2.0 * np.arange(1, 11) / 10)
    assert rates[10] == pytest.approx(2.0)
    assert (np.diff(rates[10:]) < 0).all()
    assert learning_rate(10 + 199 / 2, 210, CONFIG) == pytest.approx(2.0 * 0.55)
    assert rates[-1] == pytest.approx(0.2)


@pytest.mark.parametrize("steps", [1, 2, 15])
def test_short_runs_still_reach_the_peak(steps):
    rates = [learning_rate(step, steps, CONFIG) for step in range(steps)]
    assert max(rates) == pytest.approx(2.0)
    assert min(rates) > 0
