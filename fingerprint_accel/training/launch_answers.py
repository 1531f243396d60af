"""The answers to `accelerate config`, and what training does with each of them.

`accelerate launch` stores the answers in environment variables of the processes that it starts. An answer works, is
used as an option of the recipe, has no effect, or is refused. `ANSWERS` lists them all. `docs/training.md` shows the
same table.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, Literal

from fingerprint_accel.errors import UserError

# This module imports neither torch nor accelerate, so that `doctor` works if these packages cannot be imported.


@dataclass(frozen=True)
class Answer:
    """What training does with an answer, or with several answers that are treated alike.

    Attributes:
        keys: Names of the settings in the file of `accelerate config`, separated by spaces, with `*` as a wildcard. The
            options of `accelerate launch` have the same names.
        values: Values of the setting, separated by spaces. "" stands for any value.
        kind: What training does: the answer `works`, is `mapped` to an option of the recipe, has `no effect`, or is
            `refused` with a `UserError`.
        text: Details. For a refused answer, the remedy.
        tested: How this was tested.
        variable: For a refused answer: the environment variable in which `accelerate launch` passes the answer, or
            `NAME=VALUE` if the variable has another value than the setting. "" if the launcher does not pass it.
    """

    keys: str
    values: str
    kind: Literal["works", "mapped", "no effect", "refused"]
    text: str
    tested: str = ""
    variable: str = ""

    def is_for(self, key: str, value: str) -> bool:
        """Return whether this is the entry for a setting and its value."""
        known = [normalised(word) for word in self.values.split()]
        return any(fnmatch(key, pattern) for pattern in self.keys.split()) and (not known or value in known)

    def refusal(self, value: str) -> str:
        """Return the line that refuses this answer and names the remedy."""
        setting = f"{self.keys.split()[0]} {value if self.values else ''}".strip()
        return f"`accelerate config`: {setting} is not supported; {self.text}"


CPU_GPU = "on a CPU and on one GPU"
ON_CPUS = "with two processes on CPUs; not run on GPUs"
UNIT = "in a unit test"
LAUNCHER = "with two launchers on one machine, on CPUs; not run on several machines"
WITH_MPI = "with Open MPI 5 on one machine"
OTHERS = "not used"
IGNORED = "Accelerate 1.15 ignores it in the file; the option of accelerate launch of the same name works"
ACCELERATORS = "choose multi-GPU with NVIDIA GPUs, or use recipes/hardware/cpu.yaml"

# fmt: off
ANSWERS = (
    Answer("compute_environment", "LOCAL_MACHINE", "works", "", CPU_GPU),
    Answer("compute_environment", "AMAZON_SAGEMAKER", "refused", "choose This machine, also on a machine of a cloud",
           UNIT, "ACCELERATE_USE_SAGEMAKER=true"),
    Answer("distributed_type", "NO", "works", "one process", CPU_GPU),
    Answer("distributed_type", "MULTI_GPU", "works", "one process per GPU, with DDP", ON_CPUS),
    Answer("distributed_type", "MULTI_CPU", "works",
           "Accelerate has to launch mpirun; otherwise it starts one process in place of several, which is refused",
           WITH_MPI),
    Answer("distributed_type", "FSDP", "works", "FSDP version 2", ON_CPUS),
    Answer("distributed_type", "DEEPSPEED", "refused",
           "choose FullyShardedDataParallel, which also shards weights, gradients and optimizer state", UNIT,
           "ACCELERATE_USE_DEEPSPEED=true"),
    Answer("distributed_type", "MEGATRON_LM", "refused",
           "choose multi-GPU or FullyShardedDataParallel; Megatron-LM trains language models", UNIT,
           "ACCELERATE_USE_MEGATRON_LM=true"),
    Answer("distributed_type", "MULTI_XPU MULTI_HPU MULTI_NPU MULTI_MLU MULTI_SDAA MULTI_MUSA MULTI_NEURON XLA",
           "refused", ACCELERATORS, UNIT),
    Answer("device", "cpu cuda", "works", "a GPU if torch.cuda can use one, otherwise the CPU", CPU_GPU),
    Answer("device", "mps xpu hpu npu mlu sdaa musa neuron xla", "refused",
           "answer yes to CPU only, or use recipes/hardware/cpu.yaml", UNIT),
    Answer("use_cpu", "true false", "works", "", CPU_GPU),
    Answer("num_processes", "", "works", "", ON_CPUS),
    Answer("gpu_ids", "", "works", "sets CUDA_VISIBLE_DEVICES", "in a unit test; not run on several GPUs"),
    Answer("num_machines machine_rank main_process_ip main_process_port", "", "works", "", LAUNCHER),
    Answer("same_network rdzv_backend", "", "no effect", IGNORED, LAUNCHER),
    Answer("mpirun_hostfile", "", "works", "", WITH_MPI),
    Answer("debug", "true false", "works", "compares the shapes of the tensors that processes exchange", ON_CPUS),
    Answer("enable_cpu_affinity", "true false", "no effect",
           f"{IGNORED}. On GPUs, the option needs pip install '.[nvml]'", "on a CPU; not run on a GPU"),
    Answer("mixed_precision", "no", "works", "float32", CPU_GPU),
    Answer("mixed_precision", "bf16", "works", "slow on a CPU without AMX or AVX512-BF16", CPU_GPU),
    Answer("mixed_precision", "fp16", "works", "with gradient scaling on GPUs; refused on CPUs: choose no or bf16",
           "on a CPU; not run on a GPU"),
    Answer("mixed_precision", "fp8", "refused",
           "choose bf16, or give --training.precision bf16", UNIT),
    Answer("dynamo_backend", "NO", "works", "--training.compile decides", CPU_GPU),
    Answer("dynamo_backend", "INDUCTOR", "mapped", "--training.compile", "on a CPU; not run on a GPU"),
    Answer("dynamo_backend", "EAGER AOT_EAGER CUDAGRAPHS AOT_TS_NVFUSER NVPRIMS_NVFUSER OFI FX2TRT ONNXRT TENSORRT TVM "
           "AOT_TORCHXLA_TRACE_ONCE TORCHXLA_TRACE_ONCE HPU_BACKEND NEURON", "refused",
           "choose inductor, which is used as --training.compile, or answer no to torch dynamo", UNIT,
           "ACCELERATE_DYNAMO_BACKEND"),
    Answer("dynamo_mode", "default reduce-overhead max-autotune", "mapped", "the value of --training.compile", UNIT),
    Answer("dynamo_use_regional_compilation", "true false", "no effect",
           "the network is always compiled block by block", UNIT),
    Answer("dynamo_use_dynamic dynamo_use_fullgraph", "true false", "no effect",
           "blocks are compiled for static shapes, and may consist of several graphs", UNIT),
    Answer("gradient_accumulation_steps", "", "mapped",
           "--training.gradient-accumulation-steps, if ACCELERATE_GRADIENT_ACCUMULATION_STEPS is set. Accelerate sets "
           "this variable with DeepSpeed only, so give the option instead", UNIT),
    Answer("fsdp_version", "2", "works", "", ON_CPUS),
    Answer("fsdp_version", "1", "refused", "choose version 2 (fsdp_version: 2)", UNIT, "FSDP_VERSION"),
    Answer("fsdp_reshard_after_forward", "true false", "works", "", ON_CPUS),
    Answer("fsdp_reshard_after_forward", "FULL_SHARD SHARD_GRAD_OP NO_SHARD HYBRID_SHARD HYBRID_SHARD_ZERO2", "refused",
           "choose FSDP version 2, and answer yes or no", UNIT, "FSDP_RESHARD_AFTER_FORWARD"),
    Answer("fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP NO_WRAP", "works",
           "the first gathers the weights of one block at a time, the second gathers all weights", ON_CPUS),
    Answer("fsdp_auto_wrap_policy", "SIZE_BASED_WRAP", "refused", "choose TRANSFORMER_BASED_WRAP", UNIT,
           "FSDP_AUTO_WRAP_POLICY"),
    Answer("fsdp_transformer_layer_cls_to_wrap", "", "works",
           "not needed, because the network names its blocks; an unknown class is refused", ON_CPUS),
    Answer("fsdp_offload_params", "false", "works", "", ON_CPUS),
    Answer("fsdp_offload_params", "true", "refused", "answer no", UNIT, "FSDP_OFFLOAD_PARAMS"),
    Answer("fsdp_activation_checkpointing fsdp_activation_checkpointing_offload", "false", "works", "", ON_CPUS),
    Answer("fsdp_activation_checkpointing", "true", "refused",
           "answer no, and use --model.gradient-checkpointing, which keeps the names of the weights", UNIT,
           "FSDP_ACTIVATION_CHECKPOINTING"),
    Answer("fsdp_activation_checkpointing_offload", "true", "refused", "set it to false", UNIT,
           "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD"),
    Answer("fsdp_state_dict_type", "SHARDED_STATE_DICT FULL_STATE_DICT", "no effect",
           "checkpoints always contain whole tensors", ON_CPUS),
    Answer("fsdp_state_dict_type", "LOCAL_STATE_DICT", "refused", "choose FULL_STATE_DICT", UNIT,
           "FSDP_STATE_DICT_TYPE"),
    Answer("fsdp_cpu_ram_efficient_loading", "true false", "no effect",
           "every process initialises the weights from the seed", ON_CPUS),
    Answer("fsdp_backward_prefetch fsdp_forward_prefetch fsdp_use_orig_params fsdp_sync_module_states "
           "fsdp_sharding_strategy fsdp_min_num_params", "", "no effect", "settings of FSDP version 1", ON_CPUS),
    Answer("fsdp_ignored_modules", "", "refused", "leave it out", UNIT, "FSDP_IGNORED_MODULES"),
    Answer("use_parallelism_config parallelism_config_*", "", "refused",
           "answer no to the parallelism config: FSDP shards over all processes", UNIT,
           "ACCELERATE_USE_PARALLELISM_CONFIG=true"),
    Answer("deepspeed_* zero* offload_* gradient_clipping", "", "no effect", "settings of DeepSpeed", OTHERS),
    Answer("megatron_lm_*", "", "no effect", "settings of Megatron-LM", OTHERS),
    Answer("fp8_*", "", "no effect", "settings of fp8", OTHERS),
    Answer("downcast_bf16 main_training_function tpu_* commands command_file", "", "no effect", "settings for TPUs",
           OTHERS),
    Answer("ec2_instance_type iam_role_name image_uri profile region base_job_name pytorch_version "
           "transformers_version py_version sagemaker_inputs_file sagemaker_metrics_file additional_args", "",
           "no effect", "settings for Amazon SageMaker", OTHERS),
)
# fmt: on
DEFAULTS = {"FSDP_VERSION": "1"}  # value that Accelerate assumes if a variable is not set
TRUE, FALSE = ("true", "yes", "on", "y", "t"), ("false", "no", "off", "n", "f")


def normalised(value: Any) -> str:
    """Return a value of a setting in lower case, with `true` or `false` for all words that mean yes or no."""
    text = str(value).lower()
    return "true" if text in TRUE else "false" if text in FALSE else text


def answer_for(key: str, value: Any) -> Answer | None:
    """Return the entry of `ANSWERS` for a setting and its value, or None if this value is not known."""
    return next((answer for answer in ANSWERS if answer.is_for(key, normalised(value))), None)


def check_answer(key: str, value: Any) -> Answer:
    """Return the entry of `ANSWERS` for a setting and its value.

    Raises:
        UserError: If the answer is refused or not known.
    """
    answer = answer_for(key, value)
    if answer is None:
        known = " ".join(found.values for found in ANSWERS if key in found.keys.split() and found.kind != "refused")
        raise UserError(f"`accelerate config`: {key} {value} is not known; choose one of: {known}")
    if answer.kind == "refused":
        raise UserError(answer.refusal(value))
    return answer


def uses_fsdp(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether the environment variables of this process ask for FSDP, with a word that means yes, or 1."""
    return normalised(environment.get("ACCELERATE_USE_FSDP", "")) in ("true", "1")


def check_environment(environment: Mapping[str, str] = os.environ) -> None:
    """Check the answers that `accelerate launch` has stored in environment variables of this process.

    The precision is not checked, because the option `training.precision` overrides it.

    Raises:
        UserError: If an answer is refused.
    """
    with_fsdp = uses_fsdp(environment)
    for answer in ANSWERS:
        name, _, meaning = answer.variable.partition("=")
        if not name or (name.startswith("FSDP_") and not with_fsdp):
            continue
        value = environment.get(name, DEFAULTS.get(name, ""))
        if meaning and normalised(value) == meaning:
            raise UserError(answer.refusal(answer.values))
        if not meaning and value and answer.is_for(answer.keys.split()[0], normalised(value)):
            raise UserError(answer.refusal(value))


def answers_in(config: Mapping[str, Any]) -> Iterator[tuple[str, Any, Answer | None]]:
    """Yield name, value and entry of `ANSWERS` of each setting in a file of `accelerate config`.

    Args:
        config: Content of the file. Settings of a section, such as `fsdp_config`, may be named with or without the
            prefix `fsdp_`, as in Accelerate.
    """
    for key, value in config.items():
        if not isinstance(value, Mapping):
            yield str(key), value, answer_for(str(key), value)
            continue
        prefix = key.removesuffix("config") if key in ("fsdp_config", "fp8_config", "dynamo_config") else ""
        for name, own in value.items():  # YAML has keys that are not text
            full = str(name) if str(name).startswith(prefix) else f"{prefix}{name}"
            yield full, own, answer_for(full, own)
