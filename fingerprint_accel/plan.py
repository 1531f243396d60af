"""Estimate the disk space, device memory and training time of a training run.

The parameters, memory and operations of the network are counted (`plan_network`). The speed of a GPU is projected from
one measurement. The communication between GPUs is modelled (`plan_scaling`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from fingerprint_accel.command_line import fill
from fingerprint_accel.config import Config, LossConfig, ModelConfig, TrainingConfig, Trunk
from fingerprint_accel.errors import require
from fingerprint_accel.plan_devices import GIB, Cluster, Device, parse_devices
from fingerprint_accel.plan_network import Counted, count
from fingerprint_accel.plan_scaling import Collective, Step, collectives, duration, sent, step
from fingerprint_accel.text import aligned

GB = 1e9
ROW_BYTES = 2_300  # bytes per print besides pixels: minutiae, labels, padding (measured on a synthetic dataset)
LZ4_SHARE = 0.37  # size of prints after lz4 compression as a share of their raw size (measured on a synthetic dataset)
MFU = 0.1297  # model FLOP utilisation: measured speed divided by the bf16 peak of the data sheet, see MEASURED
MEASURED = (
    "Inception v4 Tex on one H100: 1,747 prints/s at batch 256 in bf16 (benchmarks/results/h100/tex.json). "
    "The estimate assumes the same 13 % of the data sheet's peak on every GPU."
)


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
        compression: Number format in which GPUs exchange gradients, see `TrainingConfig.gradient_compression`.
        bucket_cap_mb: Size of the buckets of gradients in MiB.
        matryoshka_dims: See `LossConfig.matryoshka_dims`.
        contrastive_weight: See `LossConfig.contrastive_weight`.
    """

    name: str
    most_prints: float
    batch_size: int
    epochs: float
    sharded: bool = False
    sampling: float = 1.0
    compression: Literal["no", "bf16"] = "no"
    bucket_cap_mb: int = 25
    matryoshka_dims: tuple[int, ...] = (64, 128)
    contrastive_weight: float = 0.5

    def config(self, model: ModelConfig) -> Config:
        """Return the options of the recipe on which the communication depends, for a network."""
        loss = LossConfig(
            head="cosface",
            sharded=self.sharded,
            class_sample_rate=self.sampling,
            contrastive_weight=self.contrastive_weight,
            matryoshka_dims=self.matryoshka_dims,
        )
        training = TrainingConfig(
            batch_size=self.batch_size,
            gradient_compression=self.compression,
            bucket_cap_mb=self.bucket_cap_mb,
        )
        return Config(model=model, loss=loss, training=training)


RECIPES = (
    Recipe("train_10k.py", 20_000, 32, 60, matryoshka_dims=(), contrastive_weight=0.0),
    Recipe("train_100k.py", 200_000, 128, 40),
    Recipe("train_500k.py", 700_000, 128, 30, True),
    Recipe("train_1m.py", 1_200_000, 256, 24, True, 1.0, "bf16", 100),
    Recipe("train_1_5m.py", float("inf"), 256, 20, True, 0.33, "bf16", 100),
)
MODEL = ModelConfig(variant="TexMinu", trunk="inception_v4", embedding_dim=512)
SIZE = 299  # side of the network's input in the recipes, in pixels


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


def plan(
    fingers: int,
    impressions: float,
    gpus: str,
    canvas: int = 320,
    trunk: Trunk = "inception_v4",
    fsdp: bool = False,
    network: float = 100,
    progress: Callable[[str], object] = lambda stage: None,
) -> str:
    """Choose the recipe for a number of prints, and return a text table of disk space, memory and training time.

    Args:
        fingers: Number of fingers to train on.
        impressions: Average number of prints of each finger.
        gpus: Number and type of the devices, such as `8xA100-80`, or `2x8xA100-80` for two machines.
        canvas: Side of the square image of a stored print, in pixels.
        trunk: Trunk of the network, one of `Trunk`.
        fsdp: Whether FSDP shards the network over the devices.
        network: Speed of the network adapters of a machine together, in Gbit/s.
        progress: Function that is called with the name of each stage that takes seconds.

    Raises:
        UserError: If there are too few prints, or the devices or the trunk are unknown.
    """
    require(fingers >= 2, f"--fingers {fingers}: at least 2 are needed")
    require(impressions >= 1, f"--impressions {impressions:g}: at least 1 is needed")
    require(trunk in get_args(Trunk), f"--trunk {trunk}: choose {', '.join(get_args(Trunk))}")
    name, device, cluster = parse_devices(gpus, network)
    devices = cluster.processes
    prints = fingers * impressions
    recipe = next(recipe for recipe in RECIPES if prints <= recipe.most_prints)
    progress(f"counting parameters and operations of {trunk}")
    model = replace(MODEL, trunk=trunk)
    counted = count(model, SIZE)
    needed = need(counted, fingers, recipe.batch_size, devices, recipe, fsdp)
    compute = recipe.batch_size * counted.flops / (device.tflops * 1e12 * MFU)
    operations = [] if fsdp else collectives(counted, recipe.config(model), fingers, devices)
    projected = step(compute, operations, cluster)
    rate = devices * recipe.batch_size / projected.seconds
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
        *step_rows(projected, operations, cluster, recipe.compression),
        ["projected speed", f"{rate:,.0f} prints/s on {gpus.removesuffix(name)}{name}"],
        ["projected epoch", _hours(prints / rate)],
        ["projected training", _hours(recipe.epochs * prints / rate)],
    ]
    if needed.total > device.room:
        rows.append(["WILL NOT FIT", _remedy(counted, fingers, devices, device, recipe, fsdp)])
    unmeasured = "" if trunk == MODEL.trunk else f" {trunk} was not measured."
    return f"{aligned(rows)}\n\n{fill(f'Projected from {MEASURED}{unmeasured}', 80)}"


def step_rows(projected: Step, operations: list[Collective], cluster: Cluster, compression: str) -> list[list[str]]:
    """Return the rows of the table on the duration of a step, each with its assumption.

    Args:
        projected: Duration of the step.
        operations: Collectives of the step; empty if they are unknown.
        cluster: Devices and connections.
        compression: Number format of the gradients, `no` for float32.
    """
    rows = [
        ["projected step", f"{1e3 * projected.seconds:,.1f} ms"],
        ["  compute", f"{1e3 * projected.compute:,.1f} ms, at 13 % of the bf16 peak of the data sheet"],
    ]
    if cluster.processes == 1:
        return rows
    if not operations:
        return [*rows, ["  communication", "not estimated with FSDP, and assumed to be hidden"]]
    slowest = min(cluster.links, key=lambda link: link.bandwidth)
    path = f"in rings over {slowest.name} at {slowest.bandwidth / GB:,.0f} GB/s"
    gradients = [operation for operation in operations if operation.purpose == "gradients"]
    others = [operation for operation in operations if operation.purpose != "gradients"]
    width = "float32" if compression == "no" else compression
    return [
        *rows,
        ["  gradients", f"{_exchange(gradients, cluster)}, {width}, {path}"],
        ["  heads, centres", f"{_exchange(others, cluster)}, not hidden"],
        ["  waiting", f"{1e3 * projected.waiting:,.1f} ms; the backward pass hides the rest and is not slowed down"],
        ["scaling efficiency", f"{100 * projected.efficiency:.1f} %, if all GPUs are equally fast and no data is late"],
    ]


def _exchange(operations: list[Collective], cluster: Cluster) -> str:
    seconds = sum(duration(operation, cluster) / operation.every for operation in operations)
    total = sum(sent(operation, cluster) / operation.every for operation in operations)
    number = sum(operation.every == 1 for operation in operations)
    return f"{1e3 * seconds:,.1f} ms for {number} collectives, {total / 1e6:,.1f} MB sent"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} hours" if seconds >= 5400 else f"{seconds / 60:,.0f} minutes"


def _remedy(counted: Counted, fingers: int, devices: int, device: Device, recipe: Recipe, fsdp: bool) -> str:
    for share in (2, 4, 8, 16, 32):
        batch_size = recipe.batch_size // share
        if batch_size and need(counted, fingers, batch_size, devices, recipe, fsdp).total < device.room:
            words = f"--training.batch-size {batch_size} --training.gradient-accumulation-steps {share}"
            return f"add {words} (same batch per update)"
    return "use more or larger GPUs"
