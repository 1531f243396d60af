"""Dense variants: cells, masks, and similarity over what both prints show."""

import pytest
import torch

from fingerprint_accel.config import Config, LossConfig, ModelConfig
from fingerprint_accel.errors import UserError
from fingerprint_accel.losses.deepprint import DeepPrintLoss, mask_loss
from fingerprint_accel.models.deepprint import DeepPrint, masked_embedding
from fingerprint_accel.models.trunks import DenseHead
from fingerprint_accel.similarity import masked_similarity

SMALL = ModelConfig(variant="LocDense", trunk="compact", embedding_dim=128, grid=4, width=8, dropout=0.0)


def test_head_keeps_the_place():
    torch.manual_seed(0)
    head = DenseHead(16, 4, 8, 0.0)
    features = torch.zeros(1, 16, 8, 8)
    features[:, :, 2:4, 6:8] = torch.randn(16)[:, None, None]
    before, _ = head(torch.zeros_like(features))
    after, _ = head(features)
    changed = (after - before).abs().sum(dim=3)[0]
    assert changed.nonzero().tolist() == [[1, 3]]


def test_cells_that_are_not_shown_are_zero_and_none_is_empty():
    vectors, contact = torch.randn(2, 4, 4, 3), torch.full((2, 4, 4), -1.0)
    contact[0, :2] = 1.0
    contact[1, 3, 2] = -0.5
    embedding, norm = masked_embedding(vectors, contact)
    cells = embedding.unflatten(1, (4, 4, 3))
    assert (cells[0, 2:] == 0).all() and (cells[0, :2].abs().sum(dim=2) > 0).all()
    assert (cells[1].abs().sum(dim=2) > 0).nonzero().tolist() == [[3, 2]]
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))
    assert float(norm[0]) == pytest.approx(float(vectors[0, :2].norm()), rel=1e-5)


def test_half_a_print_is_as_similar_as_a_whole_one():
    vectors, contact = torch.randn(1, 4, 4, 3), torch.ones(1, 4, 4)
    whole, _ = masked_embedding(vectors, contact)
    contact[:, 2:] = -1
    half, _ = masked_embedding(vectors, contact)
    assert float(masked_similarity(whole, half, 16)) == pytest.approx(1, abs=1e-5)
    assert float(whole @ half.T) < 0.9


@pytest.mark.parametrize("trunk, size", [("compact", 64), ("inception_v4", 299), ("vit_small", 64)])
def test_variants_on_every_trunk(trunk, size):
    torch.manual_seed(0)
    model = DeepPrint(ModelConfig(variant="LocDense", trunk=trunk, width=8, dropout=0.0), map_size=32)
    image = torch.rand(2, 1, size, size)
    output = model(image)
    assert output.embedding.shape == (2, 512) and output.contact.shape == (2, 8, 8)
    assert output.minutia_map.shape == (2, 6, 32, 32) and output.pose.place.shape == (2, 24, 24)
    model.eval()
    assert model.draw_minutiae(image).shape == (2, 6, 32, 32)
    torch.testing.assert_close(model(image).embedding, model.describe(model.align(image)).embedding)


def test_every_weight_learns_from_prints_that_know_how_they_lie():
    torch.manual_seed(0)
    model = DeepPrint(SMALL, map_size=32)
    for parameter in model.parameters():
        if not parameter.any():  # layers that start at zero hold back the gradients of those before them
            torch.nn.init.normal_(parameter, std=0.1)
    loss = DeepPrintLoss(LossConfig(contrastive_weight=1.0), model, 3)
    finger, known = torch.tensor([0, 0, 1, 2]), torch.ones(4, dtype=torch.bool)
    pose, contact = 0.1 * torch.randn(4, 3), (torch.rand(4, 32, 32) > 0.3).float()
    result = loss(model(torch.rand(4, 1, 64, 64)), finger, torch.rand(4, 6, 32, 32), known, None, pose, contact)
    wanted = {"identity_dense", "center_dense", "contrastive_dense", "minutia_map", "pose", "mask"}
    assert set(result.parts) == wanted
    result.total.backward()
    silent = [name for name, each in model.named_parameters() if each.grad is None or not each.grad.any()]
    assert not silent


def test_mask_is_learned_where_the_network_sees_the_print():
    contact = torch.zeros(1, 32, 32)
    contact[:, :16] = 1  # the upper half
    right = torch.full((1, 4, 4), -9.0)
    right[:, :2] = 9
    assert float(mask_loss(right, contact)) < 1e-3
    down = torch.tensor([[0.0, 0.0, 1.0]])  # the network looks half a side further down: nothing is left to see
    assert float(mask_loss(right, contact, down)) > 4
    assert float(mask_loss(torch.full((1, 4, 4), -9.0), contact, down)) < 1e-3
    assert float(mask_loss(right, None)) == 0


def test_knobs_that_do_not_go_together():
    with pytest.raises(UserError, match="multiple of the 64 cells"):
        ModelConfig(variant="Dense", embedding_dim=500)
    with pytest.raises(UserError, match="trunk flx"):
        ModelConfig(variant="LocDense", trunk="flx")
    with pytest.raises(UserError, match="not a shorter embedding"):
        Config(model=ModelConfig(variant="Dense"), loss=LossConfig(matryoshka_dims=(64,)))
