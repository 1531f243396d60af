"""Turns a configuration into a `Run`, the objects that the loop works with."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    parse_flag_from_env,
)
from torch import nn

from fingerprint_accel.config import Config, TrainingConfig
from fingerprint_accel.data.order import SampleOrder
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.losses.deepprint import DeepPrintLoss
from fingerprint_accel.losses.sharded import ShardedHead
from fingerprint_accel.models.deepprint import DeepPrint
from fingerprint_accel.models.saved_model import find_model
from fingerprint_accel.preprocess.pipeline import Preprocessor
from fingerprint_accel.synthesis.source import is_source
from fingerprint_accel.training.data import PrintSource, open_data, sibling_labels
from fingerprint_accel.training.fsdp import fsdp_plugin, prepare, switch_on
from fingerprint_accel.training.module import TrainingModule
from fingerprint_accel.training.run_folder import check_launch, trackers
from fingerprint_accel.training.speed import compile_parts, ddp_options, set_precision

if TYPE_CHECKING:
    from timm.utils.model_ema import ModelEmaV3

BLOCK_SIZE = 16_384  # prints that are shuffled together in `block` order: many batches, but little memory
SHARES_OUT_ITSELF = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
CPU_INFO = Path("/proc/cpuinfo")
BF16_FLAGS = {"amx_bf16", "avx512_bf16"}  # of processors; others emulate bf16, which is slower than float32


@dataclass
class Run:
    """Everything that one training run is made of, on this process.

    Attributes:
        module: network and losses as the loop calls them (wrapped by DDP where there are several processes).
        bare: the same without wrapping; FSDP changes it in place.
        optimizer: wrapped by Accelerate.
        ema: moving average of the network's weights, if one is kept.
        steps: optimizer steps in all.
    """

    config: Config
    accelerator: Accelerator
    train: PrintSource
    validation: PrintSource | None
    order: SampleOrder
    preprocessor: Preprocessor
    module: torch.nn.Module
    bare: TrainingModule
    optimizer: torch.optim.Optimizer
    steps: int
    ema: ModelEmaV3 | None = None

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.out)

    @property
    def samples_per_step(self) -> int:
        """Prints per optimizer step over all processes and micro-batches."""
        training = self.config.training
        return training.batch_size * training.gradient_accumulation_steps * self.accelerator.num_processes

    @property
    def torch_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer without Accelerate's wrapping."""
        return self.optimizer.optimizer  # type: ignore[attr-defined]

    @cached_property
    def parameters(self) -> list[torch.nn.Parameter]:
        """What is trained, in the order of the module."""
        return list(self.bare.parameters())

    @property
    def parameter_names(self) -> dict[int, str]:
        """Name of each trained parameter by its id()."""
        return {id(parameter): name for name, parameter in self.bare.named_parameters()}


def fast_precision() -> Literal["bf16", "fp16", "no"]:
    """A `training.precision`: bf16 where the GPU or processor has it in hardware, fp16 on other GPUs, else no autocast.

    `ACCELERATE_USE_CPU` counts: training then runs on the processor although there is a GPU.
    """
    if torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    flags = CPU_INFO.read_text().split() if CPU_INFO.exists() else []
    return "bf16" if BF16_FLAGS.intersection(flags) else "no"


def make_accelerator(config: Config) -> Accelerator:
    """Accelerator for this configuration and the way the process was launched."""
    training = config.training
    no_fp16_here = "fp16 needs a GPU; use --training.precision bf16 or no"
    if training.precision == "fp16" and not torch.cuda.is_available():
        raise UserError(no_fp16_here)
    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    plugin, log_with = fsdp_plugin(config), trackers(config)
    try:
        accelerator = Accelerator(
            mixed_precision=None if training.precision == "auto" else training.precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=training.gradient_accumulation_steps, sync_with_dataloader=False, adjust_scheduler=False
            ),
            fsdp_plugin=plugin,
            log_with=log_with or None,
            project_config=ProjectConfiguration(config.out, logging_dir=str(Path(config.out) / "tensorboard")),
            step_scheduler_with_optimizer=False,
            kwargs_handlers=[
                ddp_options(training),
                InitProcessGroupKwargs(backend=None, timeout=timedelta(seconds=training.timeout)),
            ],
        )
    except ValueError as error:
        if "fp16" in str(error):
            raise UserError(no_fp16_here) from error
        reason = str(error).splitlines()[0]
        raise UserError(f"Accelerate refuses this configuration ({reason}); run `accelerate config` again") from error
    # an accelerate config may ask for fp16 on a CPU
    require(accelerator.mixed_precision != "fp16" or accelerator.device.type != "cpu", no_fp16_here)
    check_launch(accelerator.num_processes)
    switch_on(accelerator, plugin, config)
    use_all_cores(accelerator.device.type, accelerator.num_processes)
    set_precision(accelerator.device)
    return accelerator


def use_all_cores(device: str, processes: int) -> None:
    """Undoes the single thread that `accelerate launch` sets where it was not told that it runs on a CPU."""
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1"
    if device == "cpu" and processes == 1 and by_accelerate:
        torch.set_num_threads(len(os.sched_getaffinity(0)))


def keep_from_ddp(module: TrainingModule, kind: DistributedType) -> None:
    """Has DDP neither average slices nor overwrite them with those of rank 0.

    Raises:
        UserError: Accelerate shards all parameters in a way of its own.
    """
    if not module.sharded_parameters:
        return
    if kind in SHARES_OUT_ITSELF:
        raise UserError(f"loss.sharded shares out the heads itself, so {kind.value} must not: leave one of them out")
    ignore = torch.nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
    ignore(module, list(module.sharded_parameters))


def depths(model: DeepPrint) -> dict[nn.Parameter, int]:
    """Blocks with parameters between each parameter and its embedding; not of the map decoder, a last layer itself."""
    found: dict[nn.Parameter, int] = {}

    def counted(blocks: nn.Sequential | None, behind: int) -> int:
        for block in reversed(blocks if blocks is not None else nn.Sequential()):
            parameters = list(block.parameters())
            found.update(dict.fromkeys(parameters, behind))
            behind += bool(parameters)
        return behind

    minutiae = counted(model.minutia_stem, counted(model.minutia_branch, 0))
    behind = counted(model.stem, max(counted(model.texture_branch, 0), minutiae))
    if model.alignment is not None:
        found.update(dict.fromkeys(model.alignment.parameters(), behind))
    return found


def make_optimizer(module: nn.Module, training: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW or SGD, fused, so that it can skip an update on the device.

    Each group has its `rate`, a share of the learning rate. Vectors (biases, normalisation) are not decayed. Heads that
    sample classes are in it twice: whole, without gradients, and what is drawn of them.
    """
    depth = depths(module.model) if isinstance(module, TrainingModule) else {}
    drawn = [
        (f"{name}.{entry}", parameter)
        for name, part in module.named_modules()
        if isinstance(part, ShardedHead)
        for entry, parameter in part.drawn.items()
    ]
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): [], (1.0, False): []}
    for name, parameter in [*module.named_parameters(), *drawn]:
        rate = training.head_lr_mult if name.startswith("loss.") else training.layer_decay ** depth.get(parameter, 0)
        if parameter.requires_grad:
            groups.setdefault((rate, parameter.ndim > 1), []).append(parameter)
    members = [
        {"params": group, "weight_decay": training.weight_decay if decayed else 0.0, "rate": rate}
        for (rate, decayed), group in groups.items()
        if group
    ]
    if training.optimizer == "sgd":
        return torch.optim.SGD(members, lr=training.learning_rate, momentum=training.momentum, fused=True)
    return torch.optim.AdamW(members, lr=training.learning_rate, fused=True)


def _average(model: DeepPrint, decay: float, trained: bool) -> ModelEmaV3 | None:
    """Moving average of the weights over the steps to come.

    Random weights are forgotten soon: the first step replaces them and the decay rises from 0. Weights that are
    `trained` already count like any step's: decay^steps of them is left at the end (Wortsman et al. 2022,
    arXiv 2109.01903, average the weights before and after fine-tuning in this way).
    """
    if decay == 0:
        return None
    from timm.utils.model_ema import ModelEmaV3  # takes seconds

    # timm copies the weights at the step after `update_after_step`
    return ModelEmaV3(model, decay, use_warmup=not trained, update_after_step=-1 if trained else 0)


def _init_from(model: DeepPrint, config: Config, train: PrintSource) -> None:
    """Takes the weights of the trained network. Crop and size may differ from its own: it may go on at another scale.

    Raises:
        UserError: the trained network is not there, has another shape, or was trained on other prints than `train`.
    """
    saved = find_model(config.model.init_from)
    saved.check_fits(config.model)
    train.info.check_suits(saved.prints, config.data, synthetic=is_source(config.data))
    saved.load_into(model, saved.starts(config.model))


def set_up(config: Config) -> Run:
    """Opens the data and builds the model, on the device that Accelerate chose.

    Raises:
        UserError: missing --data, data that cannot be used, knobs that do not fit the machine.
    """
    if not config.data:
        raise UserError(
            "no data: give --data a dataset folder (`fingerprint-accel import` makes one) or synth:fingers=2000"
        )
    accelerator = make_accelerator(config)
    train, validation = open_data(config, accelerator)
    training, reading, info = config.training, config.reading, train.info
    block_size = BLOCK_SIZE if reading.order == "block" else 0
    siblings = sibling_labels(train, reading.siblings, config.data) if reading.siblings > 1 else None
    order = SampleOrder(
        len(train), training.seed, block_size, train.labels, reading.samples_per_class, reading.balanced, siblings
    )
    preprocessor = Preprocessor(config.preprocess, info.canvas, training.seed, info.ppi).to(accelerator.device)
    torch.manual_seed(training.seed)
    model = DeepPrint(config.model)
    if config.model.init_from:
        _init_from(model, config, train)
    bare = TrainingModule(model, DeepPrintLoss(config.loss, model, train.classes))
    if not accelerator.is_fsdp2:  # whose slices are of contiguous weights
        bare = bare.to(memory_format=torch.channels_last)
    keep_from_ddp(bare, accelerator.distributed_type)
    note = compile_parts(bare, training, accelerator.device)
    if training.compile != "no":
        preprocessor.compile()
    if note:
        accelerator.print(note)
    optimizer = make_optimizer(bare, training)
    average = _average(bare.model, training.ema_decay, bool(config.model.init_from))
    module, optimizer = prepare(accelerator, bare, optimizer, average)
    per_step = training.batch_size * training.gradient_accumulation_steps * accelerator.num_processes
    return Run(
        config=config,
        accelerator=accelerator,
        train=train,
        validation=validation,
        order=order,
        preprocessor=preprocessor,
        module=module,
        bare=bare,
        optimizer=optimizer,
        ema=average,
        steps=training.steps or max(1, round(training.epochs * order.length / per_step)),
    )
