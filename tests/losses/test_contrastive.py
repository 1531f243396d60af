import math

import pytest
import torch
import torch.nn.functional as F
from networks import network

from fingerprint_accel.config import LossConfig
from fingerprint_accel.errors import UserError
from fingerprint_accel.losses.attraction import contrastive_loss
from fingerprint_accel.losses.deepprint import DeepPrintLoss
from fingerprint_accel.models.deepprint import Output


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def by_hand(embedding, finger, temperature):
    """Equation 2 of Khosla et al., print by print, in float64."""
    rows = embedding.double().tolist()
    count, total = len(rows), 0.0

    def alike(a, b):
        return sum(x * y for x, y in zip(rows[a], rows[b], strict=True)) / temperature

    for anchor in range(count):
        others = [other for other in range(count) if other != anchor]
        mates = [other for other in others if finger[other] == finger[anchor]]
        below = math.log(sum(math.exp(alike(anchor, other)) for other in others))
        for mate in mates:
            total += (below - alike(anchor, mate)) / len(mates)
    return total / count


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("finger", [[0, 0, 1, 1, 2, 2], [0, 1, 0, 0, 2, 3], [0, 0, 0, 0, 0, 0], [5, 4, 3, 2, 1, 0]])
def test_equals_the_sum_by_hand(finger, temperature):
    embedding, labels = unit(6, 8), torch.tensor(finger)
    found = contrastive_loss(embedding, labels, temperature)
    assert found.item() == pytest.approx(by_hand(embedding, finger, temperature), abs=1e-5)


def test_gradients_are_those_of_the_sum():
    """Against finite differences of the float64 sum by hand."""
    embedding, finger = unit(5, 3), [0, 0, 1, 1, 2]
    leaf = embedding.clone().requires_grad_()
    contrastive_loss(leaf, torch.tensor(finger), 0.5).backward()
    for row in range(5):
        for column in range(3):
            shifted = [embedding.double().clone() for _ in range(2)]
            for sign, copy in zip((1, -1), shifted, strict=True):
                copy[row, column] += sign * 1e-5
            slope = (by_hand(shifted[0], finger, 0.5) - by_hand(shifted[1], finger, 0.5)) / 2e-5
            assert leaf.grad[row, column].item() == pytest.approx(slope, abs=1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_without_mated_prints_it_is_zero_and_pulls_nowhere(count):
    embedding = unit(count, 4).requires_grad_()
    loss = contrastive_loss(embedding, torch.arange(count), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert (embedding.grad == 0).all()


def test_it_is_added_on_each_branch():
    config = LossConfig(contrastive_weight=0.7, contrastive_temperature=0.2, minutia_map_weight=0.0)
    torch.manual_seed(0)
    loss = DeepPrintLoss(config, network("TexMinu", 16), 3)
    output, finger = Output(unit(6, 8), unit(6, 8, seed=1)), torch.arange(6) % 3
    with torch.autocast("cpu", torch.bfloat16):
        result = loss(output, finger)
    expected = 0.0
    for name, embedding in output.branches.items():
        term = result.parts[f"contrastive_{name}"]
        assert term.item() == pytest.approx(by_hand(embedding, finger.tolist(), 0.2), abs=1e-5), "float32"
        expected += result.parts[f"identity_{name}"] + 0.125 * result.parts[f"center_{name}"] + 0.7 * term
    torch.testing.assert_close(result.total, expected)


def test_it_is_off_by_default():
    parts = DeepPrintLoss(LossConfig(), network(dropout=0.2), 3)(Output(unit(6, 8)), torch.arange(6) % 3).parts
    assert set(parts) == {"identity_texture", "center_texture"}


def test_temperature_must_be_positive():
    with pytest.raises(UserError, match=r"loss\.contrastive_temperature must be above 0"):
        LossConfig(contrastive_temperature=0.0)
