import math

import pytest
import torch
import torch.nn.functional as F
from networks import network

from fingerprint_accel.config import Config, LossConfig, ModelConfig
from fingerprint_accel.errors import UserError
from fingerprint_accel.losses.attraction import CenterLoss
from fingerprint_accel.losses.deepprint import DeepPrintLoss, minutia_map_loss
from fingerprint_accel.losses.margin import IdentityHead
from fingerprint_accel.models.deepprint import Output


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize(("kind", "margin"), [("arcface", 0.5), ("arcface", 1.2), ("cosface", 0.35)])
def test_margin_heads_equal_their_formula(kind, margin):
    head = IdentityHead(16, 50, kind, scale=30.0, margin=margin)
    embedding, finger = unit(200, 16), torch.arange(200) % 50
    cosine = (embedding.double() @ F.normalize(head.weight.detach().double(), dim=1).T).clamp(-1, 1)
    expected = cosine.clone()
    for row, own in enumerate(finger.tolist()):
        angle = math.acos(cosine[row, own])
        if kind == "cosface":
            expected[row, own] = cosine[row, own] - margin
        elif angle + margin <= math.pi:
            expected[row, own] = math.cos(angle + margin)
        else:
            expected[row, own] = cosine[row, own] - margin * math.sin(margin)
    torch.testing.assert_close(head.logits(embedding, finger), (30 * expected).float(), atol=2e-3, rtol=0)


@pytest.mark.parametrize("kind", ["arcface", "cosface", "softmax"])
def test_the_margin_of_a_step_replaces_the_heads_own(kind):
    """Loss and gradients are those of a head made with that margin; softmax has none."""
    embedding, finger = unit(20, 16), torch.arange(20) % 5

    def measure(own, *given):
        torch.manual_seed(0)
        loss = DeepPrintLoss(LossConfig(head=kind, margin=own), network("Tex", 16), 5)
        leaf = embedding.clone().requires_grad_()
        total = loss(Output(leaf), finger, None, None, *given).total
        total.backward()
        return total.item(), leaf.grad

    for margin in (0.0, 0.2):
        (found, slope), (wanted, wanted_slope) = measure(0.5, margin), measure(margin)
        assert found == wanted
        assert torch.equal(slope, wanted_slope)
        assert (found == measure(0.5)[0]) == (kind == "softmax")


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_arcface_has_finite_gradients_at_the_ends(sign):
    head = IdentityHead(8, 3, "arcface", scale=64.0, margin=0.5)
    embedding = (sign * F.normalize(head.weight.detach()[:1], dim=1)).requires_grad_()
    head([embedding], torch.tensor([0])).backward()
    assert torch.isfinite(embedding.grad).all()


def test_centres_move_by_the_formula_in_any_order():
    embedding, finger = unit(40, 8), torch.arange(40) % 7
    center = CenterLoss(8, 9, rate=0.1)
    center.centers.copy_(unit(9, 8, seed=1))
    before = center.centers.clone()
    center.update(embedding, finger)
    for own in range(9):
        rows = embedding[finger == own]
        expected = before[own] if len(rows) == 0 else before[own] + 0.1 * (rows.mean(0) - before[own])
        torch.testing.assert_close(center.centers[own], expected, atol=1e-6, rtol=0)
    shuffled = CenterLoss(8, 9, rate=0.1)
    shuffled.centers.copy_(before)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    shuffled.update(embedding[order], finger[order])
    assert torch.equal(shuffled.centers, center.centers), "bit for bit"
    after = center.centers.clone()
    center.update(torch.full_like(embedding, float("nan")), finger, skip=torch.tensor(True))
    assert torch.equal(center.centers, after)


def test_center_loss_is_the_mean_squared_distance():
    center = CenterLoss(4, 3, rate=0.1)
    center.centers.copy_(torch.eye(3, 4))
    embedding = torch.tensor([[0.0, 1, 0, 0], [0, 1, 0, 0]])
    assert center(embedding, torch.tensor([0, 1])).item() == pytest.approx(1.0)


@pytest.mark.parametrize("head", ["softmax", "arcface", "cosface"])
def test_micro_batches_average_to_the_whole_batch(head):
    torch.manual_seed(0)
    loss = DeepPrintLoss(LossConfig(head=head), network("TexMinu", 16), 5)
    texture, minutia, maps = unit(12, 8), unit(12, 8, seed=1), torch.rand(12, 6, 16, 16)
    predicted, has = torch.rand(12, 6, 16, 16), torch.arange(12) % 3 > 0
    finger = torch.arange(12) % 5

    def part(rows):
        return loss(Output(texture[rows], minutia[rows], predicted[rows]), finger[rows], maps[rows], has[rows]).total

    whole = part(slice(None))
    torch.testing.assert_close(sum(part(slice(n, n + 3)) for n in range(0, 12, 3)) / 4, whole, atol=1e-5, rtol=1e-6)


def test_default_weights_are_those_of_deepprint():
    loss = DeepPrintLoss(LossConfig(), network("Minu"), 5)
    output = Output(None, unit(6, 8), torch.rand(6, 6, 16, 16))
    result = loss(output, torch.arange(6) % 5, torch.rand(6, 6, 16, 16), torch.ones(6, dtype=torch.bool))
    parts = result.parts
    expected = parts["identity_minutia"] + 0.125 * parts["center_minutia"] + 0.3 * parts["minutia_map"]
    torch.testing.assert_close(result.total, expected)


TARGETS = {
    "maps": torch.rand(4, 6, 16, 16),
    "has_minutiae": torch.tensor([True, True, False, True]),
    "pose": torch.zeros(4, 3),
    "contact": torch.ones(4, 32, 32),
}


@pytest.mark.parametrize(
    ("missing", "weight", "named"),
    [
        ("maps", "minutia_map_weight", "maps and has_minutiae"),
        ("has_minutiae", "minutia_map_weight", "maps and has_minutiae"),
        ("pose", "pose_weight", "pose"),
        ("contact", "mask_weight", "contact"),
    ],
)
def test_a_target_that_is_weighed_must_be_given(missing, weight, named):
    """No term is dropped silently; weight 0 drops it, and then the target is not needed."""
    torch.manual_seed(0)
    model = network("LocDense", 64)
    output, finger = model(torch.rand(4, 1, 64, 64)), torch.tensor([0, 0, 1, 2])
    targets = {name: value for name, value in TARGETS.items() if name != missing}
    with pytest.raises(UserError, match=f"loss.{weight} is 0.5: give {named} to the loss, or set the weight to 0"):
        DeepPrintLoss(LossConfig(**{weight: 0.5}), model, 3)(output, finger, **targets)
    torch.manual_seed(1)
    without = DeepPrintLoss(LossConfig(**{weight: 0.0}), model, 3)
    found = without(output, finger, **targets).total
    torch.testing.assert_close(found, without(output, finger, **TARGETS).total)
    torch.manual_seed(1)
    assert DeepPrintLoss(LossConfig(**{weight: 0.5}), model, 3)(output, finger, **TARGETS).total > found + 1e-3


def test_maps_need_a_network_in_training_mode():
    model = network("TexMinu", 16).eval()
    output = model(torch.rand(2, 1, 64, 64))
    with pytest.raises(
        UserError, match=r"drew no minutia maps, which loss\.minutia_map_weight needs: call model\.train"
    ):
        DeepPrintLoss(LossConfig(), model, 3)(output, torch.tensor([0, 1]), torch.rand(2, 6, 16, 16), torch.ones(2) > 0)


def test_the_loss_has_the_shape_of_its_network():
    """Heads, centres and dropout follow from the network; it is not a part of the loss."""
    loss = DeepPrintLoss(LossConfig(), network("TexMinu", 24, dropout=0.4), 7)
    shapes = {name: tuple(value.shape) for name, value in loss.state_dict().items()}
    head = {"weight": (7, 12), "bias": (7,)}
    both = ("texture", "minutia")
    heads = {f"heads.{branch}.{name}": shape for branch in both for name, shape in head.items()}
    assert shapes == {**heads, **{f"centers.{branch}.centers": (7, 12) for branch in both}}
    assert [part.p for part in loss.modules() if isinstance(part, torch.nn.Dropout)] == [0.4, 0.4]


def test_centres_move_by_embeddings_that_have_gradients():
    """As a loop of one's own calls it: with the output of the network, and whether or not there are centres."""
    for weight in (0.0, 0.125):
        loss = DeepPrintLoss(LossConfig(center_weight=weight), network(), 3)
        output = Output(unit(4, 8).requires_grad_())
        loss.update_centers(output.branches, torch.tensor([0, 0, 1, 1]))
        assert len(loss.centers) == (weight > 0)
    centers = loss.centers["texture"].centers
    torch.testing.assert_close(centers[0], 0.01 * output.texture[:2].detach().mean(dim=0))
    assert not centers[2].any() and not centers.requires_grad


def test_prints_without_minutiae_teach_no_map():
    predicted = torch.rand(4, 6, 8, 8, requires_grad=True)
    minutia_map_loss(predicted, torch.rand(4, 6, 8, 8), torch.tensor([True, False, True, False])).backward()
    assert (predicted.grad[1] == 0).all()
    assert (predicted.grad[0] != 0).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_under_autocast(dtype):
    loss = DeepPrintLoss(LossConfig(head="arcface"), network(), 5)
    with torch.autocast("cpu", dtype):
        result = loss(Output(unit(6, 8).to(dtype)), torch.arange(6) % 5)
    assert result.total.dtype == torch.float32


@pytest.mark.parametrize("head", ["cosface", "softmax"])
def test_beginnings_learn_as_embeddings_of_their_own(head):
    """Identity and contrastive terms are means over the whole and its beginnings, each as if it were all there is."""
    embedding, finger, lengths = unit(12, 16), torch.arange(12) // 2, (4, 8)
    config = LossConfig(head=head, margin=0.2, contrastive_weight=1.0, matryoshka_dims=lengths)
    loss = DeepPrintLoss(config, network("Tex", 16), 6)
    expected = {"identity": [], "contrastive": []}
    for length in (*lengths, 16):
        alone = DeepPrintLoss(LossConfig(head=head, margin=0.2, contrastive_weight=1.0), network("Tex", length), 6)
        weights = loss.heads["texture"].state_dict()
        alone.heads["texture"].load_state_dict({**weights, "weight": weights["weight"][:, :length]})
        parts = alone(Output(F.normalize(embedding[:, :length], dim=1)), finger).parts
        for term, values in expected.items():
            values.append(parts[f"{term}_texture"])
    parts = loss(Output(embedding), finger).parts
    for term, values in expected.items():
        torch.testing.assert_close(parts[f"{term}_texture"], torch.stack(values).mean())


def test_lengths_of_beginnings_must_rise_and_fit():
    for lengths in ((8, 8), (8, 4), (0, 4)):
        with pytest.raises(UserError, match="in ascending order"):
            LossConfig(matryoshka_dims=lengths)
    with pytest.raises(UserError, match="a branch has 256 numbers"):
        Config(loss=LossConfig(matryoshka_dims=(64, 256)), model=ModelConfig(variant="TexMinu", embedding_dim=512))
