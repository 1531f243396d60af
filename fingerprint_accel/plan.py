"""What training on so many prints takes: disk, memory of a device, time. Networks are counted, speed is projected."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

import torch

from fingerprint_accel.config import ModelConfig, Trunk
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.preprocess.minutia_map import MAP_SIZE
from fingerprint_accel.text import aligned

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

GIB, GB = 2**30, 1e9
ROW_BYTES = 2_300  # beside the pixels: minutiae, labels, padding (a synthetic dataset)
LZ4_SHARE = 0.37  # of the room of raw prints, synthetic ones
MFU = 0.1297  # of the bf16 peak of the data sheet; see MEASURED
MEASURED = (
    "13 % of a data sheet's peak, as Inception v4 Tex reached on one H100 (1,747 prints/s from files at batch 256 in "
    "bf16; 2,076 with --training.compile default: benchmarks/results/h100/tex.json), on every device, and nothing lost "
    "between them"
)


@dataclass(frozen=True)
class Device:
    """A GPU by its data sheet: bf16 TFLOP/s of matrix products without sparsity, and memory in GiB."""

    tflops: float
    memory: float

    @property
    def room(self) -> float:
        """Bytes of it that training can have; CUDA, cuDNN and fragments take the rest."""
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
    """What a recipe sets; `tests/test_plan.py` compares it with the recipe."""

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
SIZE = 299  # pixels, the recipes' input


@dataclass(frozen=True)
class Counted:
    """What one print costs in training, counted on the network itself.

    Attributes:
        parameters: trained numbers.
        largest_block: those of the block that has most.
        saved_bytes: kept per print from the forward to the backward pass, in bf16 where autocast computes so.
        flops: per print, forward and backward; a multiplication and an addition are two.
    """

    parameters: int
    largest_block: int
    saved_bytes: float
    flops: float


def flop_counter() -> FlopCounterMode:
    """Torch's, which leaves out the attention of CPUs (2.14)."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    attention = {
        forward: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
        backward: lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4]),
    }
    return FlopCounterMode(display=False, custom_mapping=attention)


def count(model: ModelConfig, size: int, map_size: int = MAP_SIZE) -> Counted:
    """Two prints go through a network of tensors that have shapes but no memory. Takes seconds."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from fingerprint_accel.models.deepprint import DeepPrint

    saved: dict[int, int] = {}  # bytes of each storage, all of which live until the end

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
    copies = 2 * parameters  # of the weights in bf16, saved once however many prints there are
    largest = max(sum(weight.numel() for weight in block.parameters()) for block in network.blocks)
    return Counted(parameters, largest, max(0, sum(saved.values()) - copies) / 2, 3 * counter.get_total_flops() / 2)


@dataclass(frozen=True)
class Need:
    """Memory of one device in bytes, by part."""

    network: float
    head: float
    activations: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.network + self.head + self.activations


def need(counted: Counted, fingers: int, batch_size: int, devices: int, recipe: Recipe, fsdp: bool = False) -> Need:
    """Weights, gradients and both moments of AdamW in float32, and weights once more in bf16; what the batch keeps; the
    identity heads, whole or a slice, with their logits for the whole batch.

    With `fsdp` a device has its share of the former; whole are only two blocks, with gradients, and what is in bf16.
    """
    rows = fingers / devices if recipe.sharded else fingers
    active = rows * recipe.sampling
    prints = batch_size * (devices if recipe.sharded else 1)
    dims = MODEL.embedding_dim  # of both branches together
    head = (rows * 12 + active * (16 if recipe.sampling < 1 else 4)) * dims + 2 * 2 * 4 * prints * active
    network = counted.parameters * (16 / (devices if fsdp else 1) + 2) + (16 * counted.largest_block if fsdp else 0)
    return Need(network, head, counted.saved_bytes * batch_size)


def parse_devices(text: str) -> tuple[int, str, Device]:
    """`8xA100-80` -> 8, its name and data sheet.

    Raises:
        UserError: another form, or a GPU that is not in the list.
    """
    found = re.fullmatch(r"(?:(\d+)x)?([A-Za-z0-9-]+)", text)
    if not found or found[2] not in DEVICES or found[1] == "0":
        raise UserError(f"--gpus {text}: write 8xA100-80; there are {', '.join(DEVICES)}")
    return int(found[1] or 1), found[2], DEVICES[found[2]]


def plan(
    fingers: int,
    impressions: float,
    gpus: str,
    canvas: int = 320,
    trunk: Trunk = "inception_v4",
    fsdp: bool = False,
) -> str:
    """A table for `fingers` with `impressions` prints each on devices such as `8xA100-80`.

    Args:
        fingers: to train on.
        impressions: prints of each.
        gpus: how many of which.
        canvas: side of a stored print, pixels.
        trunk: of the network, one of Trunk.
        fsdp: whether the devices share the network out.

    Raises:
        UserError: numbers that make no dataset, devices or a trunk that are not known.
    """
    require(fingers >= 2 and impressions >= 1, "plan: needs two fingers and one impression of each at least")
    require(trunk in get_args(Trunk), f"--trunk {trunk}: there are {', '.join(get_args(Trunk))}")
    devices, name, device = parse_devices(gpus)
    prints = fingers * impressions
    recipe = next(recipe for recipe in RECIPES if prints <= recipe.most_prints)
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
            f"{raw / GB:,.1f} GB raw, about {LZ4_SHARE * raw / GB:,.1f} GB as lz4; twice that while importing",
        ],
        ["recipe", f"recipes/{recipe.name}, {recipe.batch_size} prints per device, {recipe.epochs:g} epochs"],
        *([["  with", ", ".join(knobs)]] if knobs else []),
        ["memory of a device", f"{needed.total / GIB:,.1f} of {device.memory:g} GiB"],
        ["  network, AdamW", f"{needed.network / GIB:,.1f} GiB for {counted.parameters / 1e6:,.1f} M parameters"],
        ["  activations", f"{needed.activations / GIB:,.1f} GiB, {counted.saved_bytes / 1e6:,.0f} MB a print in bf16"],
        ["  identity heads", f"{needed.head / GIB:,.2f} GiB" + (", a slice of them" if recipe.sharded else "")],
        ["speed, projected", f"{rate:,.0f} prints/s on {devices} x {name}"],
        ["an epoch, projected", _hours(prints / rate)],
        ["training, projected", _hours(recipe.epochs * prints / rate)],
        ["projected from", MEASURED + ("" if trunk == MODEL.trunk else f"; {trunk} was not measured")],
    ]
    if needed.total > device.room:
        rows.append(["WILL NOT FIT", _remedy(counted, fingers, devices, device, recipe, fsdp)])
    return aligned(rows)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} hours" if seconds >= 5400 else f"{seconds / 60:,.0f} minutes"


def _remedy(counted: Counted, fingers: int, devices: int, device: Device, recipe: Recipe, fsdp: bool) -> str:
    for share in (2, 4, 8, 16, 32):
        batch_size = recipe.batch_size // share
        if batch_size and need(counted, fingers, batch_size, devices, recipe, fsdp).total < device.room:
            words = f"--training.batch-size {batch_size} --training.gradient-accumulation-steps {share}"
            return f"add {words}: the same update"
    return "more or larger GPUs"
