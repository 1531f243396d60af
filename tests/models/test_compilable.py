"""Layers that a GPU and its compiler are told in other words, beside torch's and timm's own."""

import copy
import os

import pytest
import torch
import torch.nn.functional as F
from timm.models.inception_v4 import InceptionV4
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor import list_mode_options

from fingerprint_accel.config import ModelConfig
from fingerprint_accel.models.compilable import AvgPool3x3, ReLU, StemConv, StridedMaxPool, _AvgPool3x3, _Largest
from fingerprint_accel.models.deepprint import DeepPrint
from fingerprint_accel.training.speed import FEWER_PASSES

SIZES = [(7, 9), (8, 5), (4, 3), (35, 35)]


def with_gradient(function, features):
    """What it makes of the features, and the gradient by them of a sum with the same random weights each time."""
    features = features.detach().requires_grad_()
    result = function(features)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(1), dtype=result.dtype)
    (gradient,) = torch.autograd.grad((result * weights).sum(), features)
    return result.detach(), gradient


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_largest_of_every_other_window(size, layout):
    """With many ties, where the gradient goes to the first place; in the order of the features in memory."""
    features = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features = features.relu().round(decimals=1).contiguous(memory_format=layout)
    ours, theirs = (with_gradient(pool, features) for pool in (_Largest.apply, lambda x: F.max_pool2d(x, 3, 2)))
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1], rtol=0, atol=1e-12)
    assert ours[1].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("size", SIZES)
def test_average_of_neighbours(size):
    features = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, theirs = (with_gradient(pool, features) for pool in (_AvgPool3x3.apply, AvgPool3x3().forward))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("folded", [False, True])
def test_first_convolution_as_a_product(folded):
    """With a bias where a normalisation was folded in."""
    torch.manual_seed(0)
    layer, image = StemConv(8).double(), torch.randn(2, 1, 31, 31, dtype=torch.float64)
    if folded:
        layer.bias = nn.Parameter(torch.randn(8, dtype=torch.float64))
    results, gradients = [], []
    for forward in (layer.forward, layer.as_product):
        layer.zero_grad()
        results.append(forward(image))
        results[-1].square().sum().backward()
        gradients.append([weight.grad.clone() for weight in layer.parameters()])
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=0)
    assert results[1].is_contiguous(memory_format=torch.channels_last)


def test_compiled_layers_are_the_same_layers():
    layers = nn.Sequential(AvgPool3x3(), ReLU(), StridedMaxPool())
    features = torch.randn(2, 4, 9, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    broken = features.clone()
    broken[0, 1, 2, 3] = torch.nan
    plain, spread = with_gradient(layers, features), layers(broken)
    layers.compile(backend="aot_eager", dynamic=False)
    torch.testing.assert_close(with_gradient(layers, features), plain, rtol=0, atol=1e-12)
    assert spread.isnan().any(), "or a loss that is not finite would go unnoticed"
    assert torch.equal(layers(broken).isnan(), spread.isnan())


@pytest.fixture(scope="module")
def tex():
    torch.manual_seed(0)
    return DeepPrint(ModelConfig(variant="Tex", embedding_dim=16, dropout=0.0))


def test_the_trunk_is_timms(tex):
    """Features of the last block, running statistics and gradients."""
    ours = nn.Sequential(*copy.deepcopy(tex.stem), *copy.deepcopy(tex.texture_branch)[:16]).double()
    theirs = InceptionV4(num_classes=1, in_chans=1).features.double()
    theirs.load_state_dict(ours.state_dict())
    image = torch.randn(2, 1, 107, 107, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = [with_gradient(network, image) for network in (ours, theirs)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ours.state_dict(), dict(theirs.state_dict()), rtol=0, atol=1e-9)


@pytest.mark.skipif("SLOW_TESTS" not in os.environ, reason="takes minutes: SLOW_TESTS=1")
def test_the_trunk_through_the_code_generator(tex):
    """With the options that are for GPUs, on a CPU."""
    network = copy.deepcopy(tex).double().to(memory_format=torch.channels_last)
    image = torch.randn(4, 1, 299, 299, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for compiled in (False, True):
        for region in network.regions if compiled else ():
            region.compile(options={**list_mode_options("default"), **FEWER_PASSES}, dynamic=False)
        network.zero_grad()
        embedding = network(image).texture
        (embedding * torch.linspace(-1, 1, embedding.numel()).view_as(embedding)).sum().backward()
        found.append([embedding.detach(), *(weight.grad.clone() for weight in network.parameters())])
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-9)


def test_each_kind_of_block_is_compiled_once(tex):
    counter = CompileCounterWithBackend("eager")
    assert len(tex.regions) == 22
    first, second, _, _, shrink = tex.regions[6:11]
    assert type(first) is type(second) is not type(shrink)
    features = torch.randn(1, 384, 5, 5, requires_grad=True)
    for block in (first, second):
        block.compile(backend=counter, dynamic=False)
        features = block(features)
    assert counter.frame_count == 1
