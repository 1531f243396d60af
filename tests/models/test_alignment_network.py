"""The alignment network: bins, hypotheses, and the loss that teaches them."""

import math

import pytest
import torch

from fingerprint_accel.models import alignment
from fingerprint_accel.models.alignment import (
    ANGLES,
    PLACES,
    AlignmentNetwork,
    FlxAlignmentNetwork,
    PoseLogits,
    aligned,
    best_or_mean,
    expected,
    hypotheses,
    pose_loss,
)

BIN = 2 * alignment.REACH / PLACES  # half sides
TURN_BIN = 2 * alignment.TURN / ANGLES  # radians


def logits_of(poses, strengths):
    """(1, ...) logits as of a trained network, a bell of probability around each pose (angle, x, y); the angle of the
    first."""
    x = alignment.bin_centres(PLACES, alignment.REACH, torch.device("cpu"))
    angle = alignment.bin_centres(ANGLES, alignment.TURN, torch.device("cpu"))
    place = torch.zeros(PLACES, PLACES)
    for (_, across, down), strength in zip(poses, strengths, strict=True):
        off = ((x[None] - across) ** 2 + (x[:, None] - down) ** 2) / BIN**2
        place = torch.maximum(place, strength - off / (2 * alignment.SPREAD**2))
    turn = (12 - (angle - poses[0][0]) ** 2 / (2 * (alignment.SPREAD * TURN_BIN) ** 2)).clamp(min=0)
    return PoseLogits(place[None], turn[None])


def test_untrained_network_is_the_identity():
    torch.manual_seed(0)
    network = AlignmentNetwork().eval()
    image = torch.rand(2, 1, 150, 150)
    torch.testing.assert_close(network(image), image, atol=1e-4, rtol=0)
    poses, confidence = hypotheses(network.logits(image), 2)
    torch.testing.assert_close(poses, torch.zeros(2, 2, 3), atol=1e-6, rtol=0)
    assert float(confidence.detach().max()) < 0.1


@pytest.mark.parametrize("network", [AlignmentNetwork, FlxAlignmentNetwork])
def test_prints_larger_than_the_network_sees_are_aligned_in_bf16_too(network):
    """Training with bf16 on a CPU hands over bf16 prints, which torch cannot scale with antialiasing."""
    torch.manual_seed(0)
    network = network().eval()
    image = torch.rand(2, 1, 224, 224)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        upright = network(image.bfloat16())
    torch.testing.assert_close(upright.float(), image, atol=0.02, rtol=0)


def test_two_hypotheses_in_the_order_of_their_probability():
    found = logits_of([(0.2, 0.5, -0.9), (0.2, -0.4, 0.3)], [12.0, 11.0])
    poses, confidence = hypotheses(found, 2)
    wanted = torch.tensor([[[0.2, 0.5, -0.9], [0.2, -0.4, 0.3]]])
    assert (poses - wanted)[..., 0].abs().max() < 0.02
    assert (poses - wanted)[..., 1:].abs().max() < 0.1 * BIN + 0.02
    assert confidence[0, 0] > 1.5 * confidence[0, 1] > 0.1
    assert confidence.sum() > 0.9


def test_a_pose_is_found_between_the_bins_and_beyond_half_a_side():
    """Ten millimetres on a square of 21.7."""
    for x in (-0.95, -0.5, 0.02, 0.77, 0.9):
        network = logits_of([(0.0, x, -x)], [14.0])
        found = hypotheses(network, 1)[0][0, 0]
        assert float(found[1]) == pytest.approx(x, abs=0.2 * BIN)
        assert float(found[2]) == pytest.approx(-x, abs=0.2 * BIN)


def test_training_takes_the_best_pose_and_the_gradient_of_the_mean():
    found = logits_of([(0.1, 0.3, 0.2), (0.1, -0.6, -0.5)], [10.0, 9.0])
    place = found.place.clone().requires_grad_()
    both = PoseLogits(place, found.angle)
    torch.testing.assert_close(best_or_mean(both, True), hypotheses(both, 1)[0][:, 0])
    (given,) = torch.autograd.grad(best_or_mean(both, True)[0, 1], place)
    (wanted,) = torch.autograd.grad(expected(both)[0, 1], place)
    torch.testing.assert_close(given, wanted)
    assert given.abs().sum() > 0


def test_loss_is_least_at_the_truth_and_leaves_out_unknown_poses():
    truth = torch.tensor([[0.3, 0.4, -0.7]])
    at = {shift: float(pose_loss(logits_of([(0.3, 0.4 + shift, -0.7)], [9.0]), truth)) for shift in (-0.3, 0.0, 0.3)}
    assert at[0.0] + 1 < min(at[-0.3], at[0.3])
    flat = PoseLogits(torch.zeros(2, PLACES, PLACES), torch.zeros(2, ANGLES))
    half = pose_loss(flat, torch.tensor([[0.3, 0.4, -0.7], [math.nan] * 3]))
    assert float(half) == pytest.approx((math.log(PLACES**2) + math.log(ANGLES)) / 2, rel=1e-5)


def test_network_learns_to_undo_a_shift():
    torch.manual_seed(0)
    network = AlignmentNetwork("group")
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    blob = torch.exp(-((torch.linspace(-1, 1, 64)[:, None] ** 2 + torch.linspace(-1, 1, 64)[None] ** 2) / 0.02))

    def batch():
        truth = torch.cat([torch.zeros(16, 1), torch.rand(16, 2) - 0.5], dim=1)
        return aligned(blob.expand(16, 1, 64, 64), -truth, "bilinear"), truth

    for _ in range(60):
        image, truth = batch()
        loss = pose_loss(network.logits(image), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    image, truth = batch()
    off = (network.eval().transform(image) - truth)[:, 1:].norm(dim=1)
    assert float(off.detach().median()) < 0.1, "in half sides, of shifts up to 0.5"
