"""Estimate the disk space, device memory and training time of a training run.

The parameters, memory and operations of the network are counted. The speed is projected from one measurement.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

import torch

from fingerprint_accel.command_line import fill
from fingerprint_accel.config import ModelConfig, Trunk
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.preprocess.minutia_map import MAP_SIZE
from fingerprint_accel.text import aligned

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

GIB, GB = 2**30, 1e9
ROW_BYTES = 2_300  # bytes per print besides pixels: minutiae, labels, padding (measured on a synthetic dataset)
LZ4_SHARE = 0.37  # size of prints after lz4 compression as a share of their raw size (measured on a synthetic dataset)
MFU = 0.1297  # model FLOP utilisation: measured speed divided by the bf16 peak of the data sheet, see MEASURED
MEASURED = (
    "Inception v4 Tex on one H100: 1,747 prints/s at batch 256 in bf16 (benchmarks/results/h100/tex.json). "
    "The estimate assumes the same 13 % of the data sheet's peak on every GPU, and no loss between GPUs."
)


@dataclass(frozen=True)
class Device:
    """Speed and memory of a type of GPU.

    Attributes:
        tflops: TFLOP/s of dense bf16 matrix products in the data sheet.
        memory: Memory in GiB.
    """

    tflops: float
    memory: float

    @property
    def room(self) -> float:
        """Memory that training can use, in bytes. CUDA, cuDNN and fragmentation need the rest of `memory`."""
        return 0.92 * self.memory * GIB


DEVICES = {
    "A100-40": Device(312, 40),
    "A100-80": Device(312, 80),
    "H100": Device(989, 80),
    "H200": Device(989, 141),
    "L40S": Device(362, 48),
    "RTX4090": Device(165, 24),
}


@dataclass(frozen=True)
class Recipe:
    """Settings of a training recipe that the estimates depend on. `tests/test_plan.py` compares them with the recipe.

    Attributes:
        name: File name of the recipe.
        most_prints: Maximum number of training prints. For more prints, a different recipe is chosen.
        batch_size: Number of prints per device.
        epochs: Number of passes over the training prints.
        sharded: Whether the identity heads are split over the devices.
        sampling: Share of the class vectors that each step uses, see `LossConfig.class_sample_rate`.
    """

    name: str
    most_prints: float
    batch_size: int
    epochs: float
    sharded: bool = False
    sampling: float = 1.0


RECIPES = (
    Recipe("train_10k.py", 20_000, 32, 60),
    Recipe("train_100k.py", 200_000, 128, 40),
    Recipe("train_500k.py", 700_000, 128, 30, True),
    Recipe("train_1m.py", 1_200_000, 256, 24, True),
    Recipe("train_1_5m.py", float("inf"), 256, 20, True, 0.33),
)
MODEL = ModelConfig(variant="TexMinu", trunk="inception_v4", embedding_dim=512)
SIZE = 299  # side of the network's input in the recipes, in pixels


@dataclass(frozen=True)
class Counted:
    """Size of a network, and the memory and operations that training needs for one print.

    Attributes:
        parameters: Number of trained parameters.
        largest_block: Number of parameters of the largest block of the network.
        saved_bytes: Bytes per print that the forward pass keeps for the backward pass, with bf16 autocast.
        flops: Floating-point operations per print in the forward and backward pass. A multiply-add is two operations.
    """

    parameters: int
    largest_block: int
    saved_bytes: float
    flops: float


def flop_counter() -> FlopCounterMode:
    """Return torch's counter of floating-point operations, extended to attention on CPUs.

    torch 2.14 does not count the operations of attention on CPUs.
    """
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    attention = {
        forward: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
        backward: lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4]),
    }
    return FlopCounterMode(display=False, custom_mapping=attention)


def count(model: ModelConfig, size: int, map_size: int = MAP_SIZE) -> Counted:
    """Count the parameters of a network, and the memory and operations that training needs per print. Takes seconds.

    The network runs on fake tensors, which have shapes but no values.

    Args:
        model: Configuration of the network.
        size: Side of the input images, in pixels.
        map_size: Side of the predicted minutia maps, in pixels.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    from fingerprint_accel.models.deepprint import DeepPrint

    saved: dict[int, int] = {}  # bytes of each storage, by address; no storage is freed here, so addresses are unique

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage.nbytes()
        return tensor

    with FakeTensorMode():
        network = DeepPrint(model, map_size)
        image = torch.zeros(2, 1, size, size)
        kept = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with flop_counter() as counter, kept, torch.autocast("cpu", torch.bfloat16):
            output = network(image)
    for weight in network.parameters():
        saved.pop(weight.untyped_storage()._cdata, None)
    del output
    parameters = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    copies = 2 * parameters  # bytes of the bf16 weights, which are saved once per batch
    largest = max(sum(weight.numel() for weight in block.parameters()) for block in network.blocks)
    return Counted(parameters, largest, max(0, sum(saved.values()) - copies) / 2, 3 * counter.get_total_flops() / 2)


@dataclass(frozen=True)
class Need:
    """Memory that training needs on one device, in bytes.

    Attributes:
        network: Weights, gradients and optimizer state of the network.
        head: Weights, gradients and optimizer state of the identity heads, and their logits.
        activations: Tensors that are kept for the backward pass.
    """

    network: float
    head: float
    activations: float

    @property
    def total(self) -> float:
        """Memory for network, heads and activations together."""
        return self.network + self.head + self.activations


def need(counted: Counted, fingers: int, batch_size: int, devices: int, recipe: Recipe, fsdp: bool = False) -> Need:
    """Return the memory that training needs on one device.

    The network needs weights, gradients and two AdamW moments in float32, and a copy of the weights in bf16. The
    identity heads (classifiers with a vector for each finger) need weights, gradients and moments too, and memory for
    logits. If the recipe shards the heads, each device holds a slice of them. With `fsdp`, each device holds a share of
    the float32 tensors, two whole blocks with gradients, and the bf16 copy.

    Args:
        counted: Size and cost of the network, see `count`.
        fingers: Number of fingers to train on.
        batch_size: Number of prints per device.
        devices: Number of devices.
        recipe: Settings of the recipe.
        fsdp: Whether FSDP shards the network over the devices.
    """
    rows = fingers / devices if recipe.sharded else fingers
    active = rows * recipe.sampling
    prints = batch_size * (devices if recipe.sharded else 1)
    dims = MODEL.embedding_dim  # sum over both branches
    head = (rows * 12 + active * (16 if recipe.sampling < 1 else 4)) * dims + 2 * 2 * 4 * prints * active
    network = counted.parameters * (16 / (devices if fsdp else 1) + 2) + (16 * counted.largest_block if fsdp else 0)
    return Need(network, head, counted.saved_bytes * batch_size)


def parse_devices(text: str) -> tuple[int, str, Device]:
    """Parse text such as `8xA100-80`, and return the number of devices, the GPU's name and its `Device`.

    Raises:
        UserError: If the text is malformed or the GPU is not in `DEVICES`.
    """
    found = re.fullmatch(r"(?:(\d+)x)?([A-Za-z0-9-]+)", text)
    if not found or found[2] not in DEVICES or found[1] == "0":
        raise UserError(f"--gpus {text}: give a number and a type, such as 8xA100-80; types: {', '.join(DEVICES)}")
    return int(found[1] or 1), found[2], DEVICES[found[2]]


def plan(
    fingers: int,
    impressions: float,
    gpus: str,
    canvas: int = 320,
    trunk: Trunk = "inception_v4",
    fsdp: bool = False,
    progress: Callable[[str], object] = lambda stage: None,
) -> str:
    """Choose the recipe for a number of prints, and return a text table of disk space, memory and training time.

    Args:
        fingers: Number of fingers to train on.
        impressions: Average number of prints of each finger.
        gpus: Number and type of the devices, such as `8xA100-80`.
        canvas: Side of the square image of a stored print, in pixels.
        trunk: Trunk of the network, one of `Trunk`.
        fsdp: Whether FSDP shards the network over the devices.
        progress: Function that is called with the name of each stage that takes seconds.

    Raises:
        UserError: If there are too few prints, or the devices or the trunk are unknown.
    """
    require(fingers >= 2, f"--fingers {fingers}: at least 2 are needed")
    require(impressions >= 1, f"--impressions {impressions:g}: at least 1 is needed")
    require(trunk in get_args(Trunk), f"--trunk {trunk}: choose {', '.join(get_args(Trunk))}")
    devices, name, device = parse_devices(gpus)
    prints = fingers * impressions
    recipe = next(recipe for recipe in RECIPES if prints <= recipe.most_prints)
    progress(f"counting parameters and operations of {trunk}")
    counted = count(replace(MODEL, trunk=trunk), SIZE)
    needed = need(counted, fingers, recipe.batch_size, devices, recipe, fsdp)
    rate = devices * device.tflops * 1e12 * MFU / counted.flops
    raw = prints * (canvas**2 + ROW_BYTES)
    knobs = [f"--model.trunk {trunk}"] if trunk != MODEL.trunk else []
    knobs += ["--config_file recipes/hardware/fsdp.yaml"] if fsdp else []
    rows = [
        ["prints", f"{prints:,.0f} of {fingers:,} fingers"],
        [
            "disk",
            f"{raw / GB:,.1f} GB raw, or about {LZ4_SHARE * raw / GB:,.1f} GB with --encoding lz4",
        ],
        ["recipe", f"recipes/{recipe.name}, {recipe.batch_size} prints per device, {recipe.epochs:g} epochs"],
        *([["  with", ", ".join(knobs)]] if knobs else []),
        ["memory of a GPU", f"{needed.total / GIB:,.1f} of {device.memory:g} GiB"],
        ["  network, AdamW", f"{needed.network / GIB:,.1f} GiB for {counted.parameters / 1e6:,.1f} M parameters"],
        [
            "  activations",
            f"{needed.activations / GIB:,.1f} GiB, {counted.saved_bytes / 1e6:,.0f} MB per print in bf16",
        ],
        ["  identity heads", f"{needed.head / GIB:,.2f} GiB" + (" for a slice of them" if recipe.sharded else "")],
        ["projected speed", f"{rate:,.0f} prints/s on {devices} x {name}"],
        ["projected epoch", _hours(prints / rate)],
        ["projected training", _hours(recipe.epochs * prints / rate)],
    ]
    if needed.total > device.room:
        rows.append(["WILL NOT FIT", _remedy(counted, fingers, devices, device, recipe, fsdp)])
    unmeasured = "" if trunk == MODEL.trunk else f" {trunk} was not measured."
    return f"{aligned(rows)}\n\n{fill(f'Projected from {MEASURED}{unmeasured}', 80)}"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} hours" if seconds >= 5400 else f"{seconds / 60:,.0f} minutes"


def _remedy(counted: Counted, fingers: int, devices: int, device: Device, recipe: Recipe, fsdp: bool) -> str:
    for share in (2, 4, 8, 16, 32):
        batch_size = recipe.batch_size // share
        if batch_size and need(counted, fingers, batch_size, devices, recipe, fsdp).total < device.room:
            words = f"--training.batch-size {batch_size} --training.gradient-accumulation-steps {share}"
            return f"add {words} (same batch per update)"
    return "use more or larger GPUs"
