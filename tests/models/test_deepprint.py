import itertools
import math
import typing
from pathlib import Path

import pytest
import torch
from timm.models.inception_v4 import InceptionV4
from timm.models.vision_transformer import VisionTransformer

from fingerprint_accel.config import LossConfig, ModelConfig, Trunk, Variant
from fingerprint_accel.errors import UserError
from fingerprint_accel.losses.deepprint import DeepPrintLoss
from fingerprint_accel.models import trunks
from fingerprint_accel.models.deepprint import DeepPrint
from fingerprint_accel.models.vit import Grid, Patches

VARIANTS = typing.get_args(Variant)
TRUNKS = ("compact", "inception_v4", "vit_small")


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_inception_variants_at_their_own_size(variant):
    torch.manual_seed(0)
    model = DeepPrint(ModelConfig(variant=variant, embedding_dim=512))
    shapes = {}
    for name in ("stem", "minutia_map"):
        part = getattr(model, name)
        if part is not None:
            part.register_forward_hook(lambda _, __, out, name=name: shapes.update({name: out.shape}))
            if name == "minutia_map":
                part.features.register_forward_hook(lambda _, __, out: shapes.update({"decoded": out.shape}))
    image = torch.randn(1, 1, 299, 299)
    output = model(image)
    assert shapes["stem"] == (1, 384, 35, 35)
    assert output.embedding.shape == (1, 512)
    torch.testing.assert_close(output.embedding.norm(dim=1), torch.ones(1))
    assert (output.texture is not None) == ("Tex" in variant)
    assert (output.minutia is not None) == ("Minu" in variant)
    assert (output.dense is not None) == ("Dense" in variant)
    if "Minu" in variant or "Dense" in variant:
        assert output.minutia_map.shape == (1, 6, 128, 128)
        assert shapes["decoded"] == (1, 6, 129, 129)
    assert model.eval()(image).minutia_map is None


def test_texture_branch_is_inception_v4():
    """Stem, body and classifier weigh what timm's network weighs, but for the first layer's two missing colours."""
    ours = DeepPrint(ModelConfig(variant="Tex", embedding_dim=512))
    theirs = InceptionV4(num_classes=512, in_chans=1)
    assert parameters(ours) == parameters(theirs)


@pytest.mark.parametrize(("variant", "trunk"), [*itertools.product(VARIANTS, TRUNKS[:2]), ("LocTexMinu", "vit_small")])
def test_every_parameter_gets_a_gradient(variant, trunk):
    torch.manual_seed(0)
    model = DeepPrint(ModelConfig(variant=variant, trunk=trunk, embedding_dim=32, width=8, grid=4))
    full = DeepPrintLoss(LossConfig(), model, 5)
    without = DeepPrintLoss(LossConfig(minutia_map_weight=0, mask_weight=0), model, 5)  # DDP needs all gradients too
    finger, has_minutiae = torch.tensor([0, 3]), torch.tensor([True, False])
    maps = torch.rand(2, 6, 128, 128) if model.config.needs_minutia_maps else None
    truth = {"pose": torch.full((2, 3), math.nan), "contact": torch.ones(2, 32, 32)}
    for loss, targets in ((full, {"maps": maps, **truth}), (without, {"pose": truth["pose"]})):
        output = model(torch.randn(2, 1, 128, 128))
        loss(output, finger, has_minutiae=has_minutiae, **targets).total.backward()
        for name, parameter in itertools.chain(model.named_parameters(), loss.named_parameters()):
            assert parameter.grad is not None, name
            parameter.grad = None


@pytest.mark.parametrize(("trunk", "width"), [("compact", 32), ("vit_small", 8)])
@pytest.mark.parametrize("size", [64, 96, 128, 299])
def test_takes_any_size(size, trunk, width):
    model = DeepPrint(ModelConfig(variant="LocTexMinu", trunk=trunk, width=width, embedding_dim=64))
    output = model(torch.randn(1, 1, size, size).repeat(2, 1, 1, 1))
    assert output.embedding.shape == (2, 64)
    assert output.minutia_map.shape == (2, 6, 128, 128)


@pytest.mark.parametrize("trunk", [*TRUNKS, "vit_base"])
def test_the_documented_numbers_of_parameters(trunk):
    page = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith(f"| `{trunk}`"))
    documented = [float(cell) for cell in row.strip("|").split("|")[1:]]
    with torch.device("meta"):  # no numbers are needed to count them
        counted = [parameters(DeepPrint(ModelConfig(variant=name, trunk=trunk))) / 1e6 for name in VARIANTS]
    assert documented == pytest.approx(counted, abs=0.0501)


def test_transformer_is_a_vit():
    """Stem, texture branch and embedding layer weigh what timm's network of that name weighs, but for the first layer's
    two missing colours and its learned positions; and its tokens go back to where their patches are."""
    with torch.device("meta"):
        plain = {"pos_embed": "none", "class_token": False, "global_pool": "avg"}
        theirs = VisionTransformer(in_chans=1, num_classes=512, embed_dim=384, num_heads=6, **plain)
        ours = DeepPrint(ModelConfig(variant="Tex", trunk="vit_small", embedding_dim=512))
    assert parameters(ours) == parameters(theirs)
    image = torch.zeros(1, 1, 96, 96)
    image[..., 32:48, 64:80] = 1.0  # the patch in row 2 and column 4
    patches = Patches(16)
    difference = Grid()(patches(image) - patches(torch.zeros_like(image)))
    assert difference.abs().sum(dim=(0, 1)).nonzero().tolist() == [[2, 4]]
    assert len(set(patches(torch.zeros_like(image))[0, :, 0].tolist())) > 1, "places differ"


def test_group_norm_is_independent_of_the_batch():
    torch.manual_seed(0)
    model = DeepPrint(ModelConfig(variant="TexMinu", trunk="compact", norm="group", dropout=0.0, width=16))
    image = torch.randn(4, 1, 96, 96)
    together = model(image).embedding
    alone = torch.cat([model(image[n : n + 1]).embedding for n in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_embeddings_stay_float32_under_autocast():
    model = DeepPrint(ModelConfig(variant="LocTexMinu", trunk="compact", embedding_dim=32, width=16))
    with torch.autocast("cpu", torch.bfloat16):
        output = model(torch.randn(2, 1, 96, 96))
    assert output.embedding.dtype == torch.float32
    torch.testing.assert_close(output.embedding.norm(dim=1), torch.ones(2))


def test_knobs_that_do_not_go_together():
    with pytest.raises(UserError, match="even"):
        ModelConfig(variant="TexMinu", embedding_dim=33)
    with pytest.raises(UserError, match="trunk compact"):
        ModelConfig(norm="group")


def test_every_trunk_has_a_name_in_the_configuration_and_a_line_in_the_table():
    assert set(typing.get_args(Trunk)) == set(trunks.TRUNKS)
    for name in trunks.TRUNKS:
        parts = trunks.trunk_parts(ModelConfig(trunk=name, width=8), 16)
        assert isinstance(parts.stem(), torch.nn.Sequential)
