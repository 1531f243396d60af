import numpy as np
import pytest

from fingerprint_accel.config import AugmentConfig, Config, LossConfig, PreprocessConfig, TrainingConfig
from fingerprint_accel.errors import UserError
from fingerprint_accel.training.schedule import (
    augmentation_strength,
    learning_rate,
    schedule_at,
    schedule_record,
    scheduled_margin,
)

CONFIG = TrainingConfig(learning_rate=2.0, warmup_steps=10, min_lr_ratio=0.1)


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


def test_augmentation_rises_from_its_start():
    config = AugmentConfig(start=0.2, ramp=0.5)
    strengths = [augmentation_strength(step, 10, config) for step in range(10)]
    np.testing.assert_allclose(strengths, [0.2, 0.36, 0.52, 0.68, 0.84, 1, 1, 1, 1, 1])
    assert strengths[5:] == [1.0] * 5, "full strength is the configured amplitudes to the bit"
    assert [augmentation_strength(step, 10, AugmentConfig()) for step in range(10)] == [1.0] * 10
    assert augmentation_strength(0, 10, AugmentConfig(start=0.2)) == 1.0, "no ramp, no mild start"


def test_margin_comes_late():
    config = LossConfig(margin=0.4, margin_start=0.5, margin_ramp=0.2)
    margins = [scheduled_margin(step, 20, config) for step in range(20)]
    np.testing.assert_allclose(margins, [0] * 11 + [0.1, 0.2, 0.3] + [0.4] * 6, atol=1e-12)
    at_once = [scheduled_margin(step, 4, LossConfig(margin=0.4, margin_start=0.5)) for step in range(4)]
    assert at_once == [0, 0, 0.4, 0.4]
    assert [scheduled_margin(step, 4, LossConfig(margin=0.4)) for step in range(4)] == [0.4] * 4


def test_records_show_what_is_scheduled():
    ramped = PreprocessConfig(augment=AugmentConfig(start=0.5, ramp=1.0))
    late = LossConfig(head="arcface", margin=0.4, margin_start=0.5)
    config = Config(preprocess=ramped, loss=late, training=CONFIG)
    now = schedule_at(50, 100, config)
    assert now == (learning_rate(50, 100, CONFIG), 0.75, 0.4)
    assert schedule_record(now, config) == {"learning_rate": now.learning_rate, "augmentation": 0.75, "margin": 0.4}
    for plain in (Config(), Config(loss=LossConfig(margin_start=0.5)), Config(loss=LossConfig(head="cosface"))):
        assert list(schedule_record(schedule_at(50, 100, plain), plain)) == ["learning_rate"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AugmentConfig(start=1.5), r"preprocess\.augment\.start must be at most 1"),
        (lambda: AugmentConfig(ramp=-1), r"preprocess\.augment\.ramp must not be negative"),
        (lambda: LossConfig(margin_start=0.6, margin_ramp=0.5), r"margin_start \+ loss\.margin_ramp must be at most 1"),
    ],
)
def test_impossible_schedules(make, message):
    with pytest.raises(UserError, match=message):
        make()
