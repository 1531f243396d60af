"""Checkpoints of flx give the embeddings that flx's arithmetic gives.

The arithmetic is written down here once more, from tensors under flx's own names, with nothing of the package in it.
"""

import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fingerprint_accel.compat import flx, flx_weights
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.extractor import FingerprintExtractor

DIMS, SUBJECTS = 12, 7
VARIANTS = ("Tex", "Minu", "TexMinu", "LocTex", "LocMinu", "LocTexMinu")


class Flx:
    """flx's network as functions; tensors are drawn when first asked for and kept under flx's names."""

    def __init__(self, variant, state=()):
        self.variant, self.state = variant, dict(state)
        self.generator = torch.Generator().manual_seed(0)

    def draw(self, name, *shape, gain=1.0):
        if name not in self.state:
            fan_in = math.prod(shape[1:]) if len(shape) > 1 else 1
            self.state[name] = torch.randn(*shape, generator=self.generator) * gain / fan_in**0.5
        return self.state[name]

    def basic(self, name, x, outputs, kernel, stride=1, padding=0):
        """Convolution without bias, batch normalisation with statistics, ReLU."""
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        x = F.conv2d(x, self.draw(f"{name}.conv.weight", outputs, x.shape[1], *kernel, gain=1.4), None, stride, padding)
        for part, base in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            key = f"{name}.bn.{part}"
            if key not in self.state:
                self.state[key] = base + 0.1 * torch.rand(outputs, generator=self.generator)
        self.state[f"{name}.bn.num_batches_tracked"] = torch.tensor(5)
        mean, var, weight, bias = (
            self.state[f"{name}.bn.{p}"] for p in ("running_mean", "running_var", "weight", "bias")
        )
        return F.relu(F.batch_norm(x, mean, var, weight, bias, eps=1e-3))

    def chain(self, name, x, *layers):
        for number, layer in enumerate(layers):
            x = self.basic(f"{name}.{number}", x, *layer)
        return x

    def pooled(self, name, x, outputs):
        return self.basic(f"{name}.1", F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), outputs, 1)

    def a(self, n, x):
        return torch.cat(
            [
                self.basic(f"{n}.branch0", x, 96, 1),
                self.chain(f"{n}.branch1", x, (64, 1), (96, 3, 1, 1)),
                self.chain(f"{n}.branch2", x, (64, 1), (96, 3, 1, 1), (96, 3, 1, 1)),
                self.pooled(f"{n}.branch3", x, 96),
            ],
            1,
        )

    def b(self, n, x):
        wide, tall = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
        return torch.cat(
            [
                self.basic(f"{n}.branch0", x, 384, 1),
                self.chain(f"{n}.branch1", x, (192, 1), (224, *wide), (256, *tall)),
                self.chain(f"{n}.branch2", x, (192, 1), (192, *tall), (224, *wide), (224, *tall), (256, *wide)),
                self.pooled(f"{n}.branch3", x, 128),
            ],
            1,
        )

    def c(self, n, x):
        wide, tall = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))
        one = self.basic(f"{n}.branch1_0", x, 384, 1)
        two = self.basic(f"{n}.branch2_1", self.basic(f"{n}.branch2_0", x, 384, 1), 448, *tall)
        two = self.basic(f"{n}.branch2_2", two, 512, *wide)
        return torch.cat(
            [
                self.basic(f"{n}.branch0", x, 256, 1),
                self.basic(f"{n}.branch1_1a", one, 256, *wide),
                self.basic(f"{n}.branch1_1b", one, 256, *tall),
                self.basic(f"{n}.branch2_3a", two, 256, *wide),
                self.basic(f"{n}.branch2_3b", two, 256, *tall),
                self.pooled(f"{n}.branch3", x, 256),
            ],
            1,
        )

    def stem(self, n, x):
        x = self.basic(f"{n}.2", self.basic(f"{n}.1", self.basic(f"{n}.0", x, 32, 3, 2), 32, 3), 64, 3, 1, 1)
        x = torch.cat([F.max_pool2d(x, 3, 2), self.basic(f"{n}.3.conv", x, 96, 3, 2)], 1)
        other = self.chain(f"{n}.4.branch1", x, (64, 1), (64, (1, 7), 1, (0, 3)), (64, (7, 1), 1, (3, 0)), (96, 3))
        x = torch.cat([self.chain(f"{n}.4.branch0", x, (64, 1), (96, 3)), other], 1)
        return torch.cat([self.basic(f"{n}.5.conv", x, 192, 3, 2), F.max_pool2d(x, 3, 2)], 1)

    def texture(self, n, x):
        for number in range(4):
            x = self.a(f"{n}._0_block.{number}", x)
        name = f"{n}._0_block.4"
        other = self.chain(f"{name}.branch1", x, (192, 1), (224, 3, 1, 1), (256, 3, 2))
        x = torch.cat([self.basic(f"{name}.branch0", x, 384, 3, 2), other, F.max_pool2d(x, 3, 2)], 1)
        for number in range(7):
            x = self.b(f"{n}._1_block.{number}", x)
        name = f"{n}._1_block.7"
        first = self.chain(f"{name}.branch0", x, (192, 1), (192, 3, 2))
        other = self.chain(
            f"{name}.branch1", x, (256, 1), (256, (1, 7), 1, (0, 3)), (320, (7, 1), 1, (3, 0)), (320, 3, 2)
        )
        x = torch.cat([first, other, F.max_pool2d(x, 3, 2)], 1)
        for number in range(3):
            x = self.c(f"{n}._2_block.{number}", x)
        return F.normalize(self.linear(f"{n}._6_linear", F.avg_pool2d(x, 8).flatten(1), DIMS), dim=1)

    def linear(self, name, x, outputs, gain=1.0):
        weight = self.draw(f"{name}.weight", outputs, x.shape[1], gain=gain)
        return F.linear(x, weight, self.draw(f"{name}.bias", outputs, gain=0.1))

    def conv(self, name, x, outputs, kernel, stride=1, padding=0):
        weight = self.draw(f"{name}.weight", outputs, x.shape[1], kernel, kernel)
        return F.conv2d(x, weight, self.draw(f"{name}.bias", outputs, gain=0.1), stride, padding)

    def minutia(self, prefix, x):
        for number in range(6):
            x = self.a(f"{prefix}minutia_stem.features.{number}", x)
        for number, shape in enumerate(((384, 128, 3, 3), (128, 128, 7, 7), (128, 32, 3, 3), (6, 32, 3, 3))):
            self.draw(f"{prefix}minutia_map.features.{number}.weight", *shape)  # for training only, but in the file
            self.draw(f"{prefix}minutia_map.features.{number}.bias", shape[0] if number in (1, 3) else shape[1])
        for number, (outputs, stride) in enumerate(((768, 1), (768, 2), (896, 1), (1024, 2))):
            x = self.conv(f"{prefix}minutia_embedding._0_block.{number}", x, outputs, 3, stride, 1)
        x = F.max_pool2d(x, 9, 1).flatten(1)
        return F.normalize(self.linear(f"{prefix}minutia_embedding._4_linear", x, DIMS), dim=1)

    def aligned(self, x):
        """One print: flx mixes the matrices of larger batches."""
        small = F.interpolate(x, (128, 128), mode="bilinear", antialias=True)
        for place, (outputs, kernel) in {0: (24, 5), 2: (32, 3), 4: (48, 3), 6: (64, 3)}.items():
            small = F.max_pool2d(
                self.conv(f"localization.localization.{place}", small, outputs, kernel, 1, kernel // 2), 2
            )
        hidden = F.relu(self.linear("localization.fc_loc.0", small.flatten(1), 64))
        angle, right, down = self.linear("localization.fc_loc.2", hidden, 3, gain=0.3)[0]
        matrix = torch.stack([angle.cos(), -angle.sin(), right, angle.sin(), angle.cos(), down]).view(1, 2, 3)
        return F.grid_sample(x, F.affine_grid(matrix, x.shape, align_corners=False), align_corners=False)

    @torch.no_grad()
    def __call__(self, x):
        prefix = "embeddings." if "Loc" in self.variant else ""
        if prefix:
            x = torch.cat([self.aligned(one) for one in x.split(1)])
        x = self.stem(f"{prefix}stem.features", x)
        found = {}
        for branch, made in (("texture", "Tex" in self.variant), ("minutia", "Minu" in self.variant)):
            if made:
                self.draw(f"{prefix}{branch}_logits.0.weight", SUBJECTS, DIMS)
                self.draw(f"{prefix}{branch}_logits.0.bias", SUBJECTS)
                found[branch] = (
                    self.texture(f"{prefix}texture_branch", x) if branch == "texture" else self.minutia(prefix, x)
                )
        return found.get("texture"), found.get("minutia")


@pytest.fixture(scope="module")
def whole():
    """Two prints, and for networks without and with alignment: tensors and embeddings of both branches.

    The variants with one branch are these networks without the other: all take the same path to the same embeddings.
    """
    images = torch.rand(2, 1, 299, 299, generator=torch.Generator().manual_seed(1))
    plain = Flx("TexMinu")
    found = {False: (plain.state, *plain(images))}
    aligning = Flx("LocTexMinu", {f"embeddings.{name}": tensor for name, tensor in plain.state.items()})
    names = set(aligning.state)
    found[True] = (aligning.state, *aligning(images))
    assert all(name.startswith("localization.") for name in set(aligning.state) - names)
    return images, found


@pytest.fixture(params=VARIANTS)
def checkpoint(request, whole, tmp_path):
    """A checkpoint with flx's names, two prints, and their embeddings by flx's arithmetic."""
    variant = request.param
    images, found = whole
    state, texture, minutia = found["Loc" in variant]
    if "Tex" not in variant:
        state, texture = {name: tensor for name, tensor in state.items() if "texture_" not in name}, None
    if "Minu" not in variant:
        state, minutia = {name: tensor for name, tensor in state.items() if "minutia_" not in name}, None
    parts = {
        "model_state_dict": state,
        "loss_state_dict": {},
        "optimizer_state_dict": {"state": {}, "param_groups": []},
    }
    torch.save(parts, tmp_path / "best_model.pyt")
    return variant, tmp_path / "best_model.pyt", images, texture, minutia


def test_embeddings_are_those_of_flx(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", lambda tensor, **_: tensor)  # saves drawing what is replaced
    variant, path, images, texture, minutia = checkpoint
    model = flx.load(path)
    assert not model.training
    with torch.no_grad():
        output = model(images)
        alone = model(images[:1])
    for ours, first, theirs in (
        (output.texture_embeddings, alone.texture_embeddings, texture),
        (output.minutia_embeddings, alone.minutia_embeddings, minutia),
    ):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
            torch.testing.assert_close(first, theirs[:1], rtol=0, atol=1e-5)
            assert (theirs[0] - theirs[1]).abs().max() > 1e-3, "prints differ"
    if variant != "LocTexMinu":
        return  # one conversion will do: it takes seconds
    extractor = flx_weights.convert(path, tmp_path / "model")
    again = FingerprintExtractor.from_pretrained(tmp_path / "model")
    assert again.model.config.variant == variant
    canvas = np.random.default_rng(0).integers(0, 255, (1, 320, 320), np.uint8)
    np.testing.assert_array_equal(again(torch.from_numpy(canvas)), extractor(torch.from_numpy(canvas)))


class Harmful:
    def __reduce__(self):
        return (open, ("harm", "w"))


def test_what_is_no_checkpoint_is_refused_and_executes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model_state_dict": {"x": Harmful()}}, "harmful.pyt")
    (tmp_path / "pickled.pyt").write_bytes(pickle.dumps(Harmful()))
    (tmp_path / "cut.pyt").write_bytes((tmp_path / "harmful.pyt").read_bytes()[:100])
    for name in ("harmful.pyt", "pickled.pyt", "cut.pyt"):
        with pytest.raises(UserError, match=f"{name}: damaged, or holds more than tensors; refused"):
            flx_weights.load(name)
    assert not (tmp_path / "harm").exists()
    torch.save({"model_state_dict": {"weight": torch.zeros(3)}}, "other.pyt")
    torch.save([1, 2], "list.pyt")
    for name in ("other.pyt", "list.pyt"):
        with pytest.raises(UserError, match=f"{name}: not a "):
            flx_weights.load(name)
    with pytest.raises(UserError, match=r"nowhere\.pyt: cannot be read"):
        flx_weights.load("nowhere.pyt")
