"""Build a `Run` from a configuration. A `Run` contains all objects that the training loop needs."""

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
    DynamoBackend,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    TorchDynamoPlugin,
    parse_flag_from_env,
)

from fingerprint_accel.config import Config
from fingerprint_accel.data.order import SampleOrder
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.losses.deepprint import DeepPrintLoss
from fingerprint_accel.models.deepprint import DeepPrint
from fingerprint_accel.models.saved_model import find_model
from fingerprint_accel.preprocess.pipeline import Preprocessor
from fingerprint_accel.synthesis.source import is_source
from fingerprint_accel.training.data import PrintSource, open_data, sibling_labels
from fingerprint_accel.training.fsdp import fsdp_plugin, prepare, switch_on
from fingerprint_accel.training.launch import check_answers, check_launch
from fingerprint_accel.training.launch_answers import check_answer
from fingerprint_accel.training.module import TrainingModule
from fingerprint_accel.training.optimizer import make_optimizer, moving_average
from fingerprint_accel.training.run_folder import trackers
from fingerprint_accel.training.speed import compile_parts, ddp_options, set_precision

if TYPE_CHECKING:
    from timm.utils.model_ema import ModelEmaV3

BLOCK_SIZE = 16_384  # prints per block with `reading.order block`: many batches, but little memory
CPU_INFO = Path("/proc/cpuinfo")
BF16_FLAGS = {"amx_bf16", "avx512_bf16"}  # CPUs with bf16 in hardware; others emulate it, slower than float32


@dataclass
class Run:
    """All objects of a training run on this process.

    Attributes:
        config: Configuration of the run. The micro-batch size in it may be reduced before training.
        accelerator: Accelerator of the run.
        train: Training prints.
        validation: Validation prints, or None if the run has no validation.
        order: Order in which the training prints are read.
        preprocessor: Module that converts stored prints to the input of the network, on the device.
        module: Network and losses, wrapped by DDP if there are several processes.
        bare: Network and losses without the DDP wrapper. FSDP changes this module in place.
        optimizer: Optimizer, wrapped by Accelerate.
        steps: Number of optimizer steps of the run.
        ema: Moving average of the weights of the network, or None.
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
        """Number of prints per optimizer step, over all processes and micro-batches."""
        training = self.config.training
        return training.batch_size * training.gradient_accumulation_steps * self.accelerator.num_processes

    @property
    def torch_optimizer(self) -> torch.optim.Optimizer:
        """The PyTorch optimizer, without the wrapper of Accelerate."""
        return self.optimizer.optimizer  # type: ignore[attr-defined]

    @cached_property
    def parameters(self) -> list[torch.nn.Parameter]:
        """All parameters of network and losses, in the order of `TrainingModule.parameters`."""
        return list(self.bare.parameters())

    @property
    def parameter_names(self) -> dict[int, str]:
        """Dictionary from `id(parameter)` to the name of the parameter."""
        return {id(parameter): name for name, parameter in self.bare.named_parameters()}


def fast_precision() -> Literal["bf16", "fp16", "no"]:
    """Return the value of `training.precision` that is fastest on this machine.

    The value is `bf16` if the device computes bf16 in hardware. Otherwise the value is `fp16` on a GPU, and `no` on a
    CPU. If the environment variable `ACCELERATE_USE_CPU` is set, the device is the CPU, even if there is a GPU.
    """
    if torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    flags = CPU_INFO.read_text().split() if CPU_INFO.exists() else []
    return "bf16" if BF16_FLAGS.intersection(flags) else "no"


def make_accelerator(config: Config) -> Accelerator:
    """Create the Accelerate `Accelerator` of a run, from its configuration and from the settings of the launch.

    Raises:
        UserError: If the precision or an experiment tracker is not available, or the settings of the launch do not work
            with this configuration.
    """
    training = config.training
    no_fp16_here = "fp16 needs a GPU; use --training.precision bf16 or no"
    if training.precision == "fp16" and not torch.cuda.is_available():
        raise UserError(no_fp16_here)
    check_answers()
    if training.precision == "auto":
        check_answer("mixed_precision", os.environ.get("ACCELERATE_MIXED_PRECISION", "no"))
    AcceleratorState._reset_state()  # an earlier run in this process may have had another precision
    log_with = trackers(config)
    try:
        plugin = fsdp_plugin(config)
        accelerator = Accelerator(
            mixed_precision=None if training.precision == "auto" else training.precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=training.gradient_accumulation_steps, sync_with_dataloader=False, adjust_scheduler=False
            ),
            fsdp_plugin=plugin,
            dynamo_plugin=TorchDynamoPlugin(backend=DynamoBackend.NO),  # it would compile the whole network at once
            log_with=log_with or None,
            project_config=ProjectConfiguration(config.out, logging_dir=str(Path(config.out) / "tensorboard")),
            step_scheduler_with_optimizer=False,
            kwargs_handlers=[
                ddp_options(training),
                InitProcessGroupKwargs(backend=None, timeout=timedelta(seconds=training.timeout)),
            ],
        )
    except (ValueError, ImportError, NotImplementedError) as error:
        if "fp16" in str(error):
            raise UserError(no_fp16_here) from error
        reason = str(error).splitlines()[:1] or [type(error).__name__]
        raise UserError(
            f"Accelerate refuses this configuration ({reason[0]}); run `accelerate config` again"
        ) from error
    check_launch(accelerator.num_processes, accelerator.device.type)
    # the settings of `accelerate config` may ask for fp16 on a CPU
    require(accelerator.mixed_precision != "fp16" or accelerator.device.type != "cpu", no_fp16_here)
    switch_on(accelerator, plugin, config)
    use_all_cores(accelerator.device.type, accelerator.num_processes)
    set_precision(accelerator.device)
    return accelerator


def use_all_cores(device: str, processes: int) -> None:
    """Let torch use all CPU cores, if `accelerate launch` has limited a single CPU process to one thread.

    Args:
        device: Type of the device, such as `cpu`.
        processes: Number of processes of the run.
    """
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1"
    if device == "cpu" and processes == 1 and by_accelerate:
        torch.set_num_threads(len(os.sched_getaffinity(0)))


def keep_from_ddp(module: TrainingModule) -> None:
    """Exclude sharded identity heads from DDP, because each process holds the class vectors of different fingers.

    DDP would average the gradients over processes, and overwrite the class vectors with the class vectors of rank 0.
    """
    if module.sharded_parameters:
        ignore = torch.nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
        ignore(module, list(module.sharded_parameters))


def _init_from(model: DeepPrint, config: Config, train: PrintSource) -> None:
    """Initialise a network with the weights of a trained network, which the option `model.init_from` names.

    The options `preprocess.crop` and `preprocess.size` of the run and of the trained network may differ.

    Args:
        model: Network to initialise.
        config: Configuration of the run.
        train: Training prints of the run.

    Raises:
        UserError: If the trained network is missing, if it has another architecture than `model`, or if it was trained
            on prints of another format than `train`.
    """
    saved = find_model(config.model.init_from)
    saved.check_fits(config.model)
    train.info.check_suits(saved.prints, config.data, synthetic=is_source(config.data))
    saved.load_into(model, saved.starts(config.model))


def set_up(config: Config) -> Run:
    """Prepare a run: open the data, and build network, losses and optimizer on the device that Accelerate selects.

    Raises:
        UserError: If no data is given, the data cannot be used, or an option does not work on this machine.
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
    if not accelerator.is_fsdp2:  # FSDP needs contiguous weights
        bare = bare.to(memory_format=torch.channels_last)
    keep_from_ddp(bare)
    note = compile_parts(bare, training, accelerator.device)
    if training.compile != "no":
        preprocessor.compile()
    if note:
        accelerator.print(note)
    optimizer = make_optimizer(bare, training)
    average = moving_average(bare.model, training.ema_decay, bool(config.model.init_from))
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
