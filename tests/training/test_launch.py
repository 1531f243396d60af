"""What training does with the answers to `accelerate config`, as `accelerate launch` passes them on."""

import dataclasses
import importlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import launch as launching
from starting import ROOT
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from fingerprint_accel.config import Config, ModelConfig, TrainingConfig
from fingerprint_accel.errors import UserError, one_line_errors
from fingerprint_accel.recipe import run_training, synthetic_prints
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.training import launch, setup
from fingerprint_accel.training.launch_answers import ANSWERS, check_answer, check_environment
from fingerprint_accel.training.run_folder import start_trackers


def launched(tmp_path, words=(), **settings):
    """Variables that `accelerate launch` would set for the processes that it starts with a file of settings."""
    file = tmp_path / "answers.yaml"
    whole = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "NO", "num_processes": 1, "num_machines": 1}
    file.write_text(yaml.safe_dump(whole | {"mixed_precision": "no"} | settings))
    words = ["--config_file", str(file), *words, "script.py"]
    arguments, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        chosen = launching.prepare_deepspeed_cmd_env(arguments)[1]
    elif arguments.use_fsdp or arguments.use_megatron_lm or arguments.multi_gpu:
        chosen = launching.prepare_multi_gpu_env(arguments)
    else:
        chosen = launching.prepare_simple_launcher_cmd_env(arguments)[1]
    return {name: value for name, value in chosen.items() if os.environ.get(name) != value}


def fsdp(**settings):
    return {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2, **settings}}


REFUSED = {
    "deepspeed": ({"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 2}}, "choose FullyShardedData"),
    "megatron": ({"distributed_type": "MEGATRON_LM"}, "MEGATRON_LM is not supported; choose multi-GPU"),
    "fsdp 1": (fsdp(fsdp_version=1), r"fsdp_version 1 is not supported; choose version 2 \(fsdp_version: 2\)"),
    "fsdp 1 strategy": (fsdp(fsdp_reshard_after_forward="FULL_SHARD"), "full_shard is not supported; choose FSDP ver"),
    "size": (fsdp(fsdp_auto_wrap_policy="SIZE_BASED_WRAP"), "SIZE_BASED_WRAP is not supported; choose TRANSFORMER_BA"),
    "offload": (fsdp(fsdp_offload_params=True), "fsdp_offload_params true is not supported; answer no"),
    "recompute": (fsdp(fsdp_activation_checkpointing=True), "use --model.gradient-checkpointing"),
    "recompute there": (fsdp(fsdp_activation_checkpointing_offload=True), "offload true is not supported; set it to f"),
    "local": (fsdp(fsdp_state_dict_type="LOCAL_STATE_DICT"), "LOCAL_STATE_DICT is not supported; choose FULL_STATE_"),
    "ignored": (fsdp(fsdp_ignored_modules="model"), "fsdp_ignored_modules is not supported; leave it out"),
    "mesh": (fsdp() | {"parallelism_config": {"parallelism_config_tp_size": 2}}, "answer no to the parallelism config"),
    **{
        backend: ({"dynamo_config": {"dynamo_backend": backend}}, f"{backend} is not supported; choose inductor")
        for backend in ("EAGER", "CUDAGRAPHS", "TENSORRT")
    },
}  # fmt: skip


@pytest.fixture
def answered(monkeypatch, tmp_path, fresh_accelerator):
    """Sets the variables of the answers in a file, and none of another launcher."""

    def answer(words=(), **settings):
        for name in list(os.environ):
            if name.startswith(("ACCELERATE_", "FSDP_", "SLURM_", "OMPI_", "PMI_", "MV2_", "MASTER_")):
                monkeypatch.delenv(name)
        for name, value in launched(tmp_path, words, **settings).items():
            if not name.startswith(("OMP_", "KMP_", "PYTHONPATH")):
                monkeypatch.setenv(name, value)

    return answer


@pytest.mark.parametrize(("settings", "remedy"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_ends_in_one_line_before_anything_starts(settings, remedy, answered, tiny, monkeypatch):
    answered(**settings)
    monkeypatch.setattr(setup, "Accelerator", None)
    with pytest.raises(UserError, match=remedy) as caught:
        setup.make_accelerator(tiny)
    assert str(caught.value).startswith("`accelerate config`: ")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=remedy):  # of the quickstart, which makes prints first
        synthetic_prints(Path("nowhere"), 1, 1, 0, Style())


def test_sagemaker_is_refused():
    with pytest.raises(UserError, match="AMAZON_SAGEMAKER is not supported; choose This machine"):
        check_environment({"ACCELERATE_USE_SAGEMAKER": "true"})


def test_settings_of_fsdp_do_not_matter_without_fsdp():
    check_environment({"FSDP_VERSION": "1", "FSDP_OFFLOAD_PARAMS": "true"})
    check_environment({})


@pytest.mark.parametrize("yes", ["1", "True", "on"])
def test_fsdp_is_checked_however_it_is_asked_for(yes):
    with pytest.raises(UserError, match="fsdp_version 1 is not supported"):
        check_environment({"ACCELERATE_USE_FSDP": yes})
    with pytest.raises(UserError, match="fsdp_offload_params true is not supported"):
        check_environment({"ACCELERATE_USE_FSDP": yes, "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"})


def test_every_refused_answer_that_the_launcher_passes_on_is_refused_here():
    passed = [answer for answer in ANSWERS if answer.variable]
    assert len(passed) == 13
    for answer in passed:
        name, _, meaning = answer.variable.partition("=")
        for value in [meaning] if meaning else answer.values.split() or ["something"]:
            with pytest.raises(UserError, match=re.escape(answer.text)):
                check_environment({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", name: value})


@pytest.mark.parametrize(
    ("error", "reason"), [(NotImplementedError(), "NotImplementedError"), (ValueError("why\nmore"), "why")]
)
def test_errors_of_accelerate_are_one_line(error, reason, answered, tiny, monkeypatch):
    answered()
    monkeypatch.setattr(setup, "Accelerator", Mock(side_effect=error))
    with pytest.raises(
        UserError, match=rf"^Accelerate refuses this configuration \({reason}\); run `accelerate config"
    ):
        setup.make_accelerator(tiny)


def test_fp8_is_refused_unless_the_recipe_has_a_precision_of_its_own(answered, tiny, monkeypatch):
    answered(use_cpu=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")  # the launcher stops if no library for it is installed
    automatic = dataclasses.replace(tiny, training=dataclasses.replace(tiny.training, precision="auto"))
    with pytest.raises(UserError, match=r"mixed_precision fp8 is not supported; choose bf16, or give --training.preci"):
        setup.make_accelerator(automatic)
    own = dataclasses.replace(tiny, training=dataclasses.replace(tiny.training, precision="bf16"))
    assert setup.make_accelerator(own).mixed_precision == "bf16"


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_precision_is_the_answer(precision, answered, tiny):
    answered(use_cpu=True, mixed_precision=precision)
    automatic = dataclasses.replace(tiny, training=dataclasses.replace(tiny.training, precision="auto"))
    assert setup.make_accelerator(automatic).mixed_precision == precision


@pytest.mark.parametrize("device", ["mps", "xpu", "vulkan"])
def test_other_devices_are_refused(device, answered, tiny, monkeypatch):
    answered()
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", device)
    with pytest.raises(
        UserError, match=f"device {device} is not (supported; answer yes to CPU only|known; choose one)"
    ):
        setup.make_accelerator(tiny)


def test_gpu_ids_choose_the_visible_devices(tmp_path):
    assert launched(tmp_path, gpu_ids="7")["CUDA_VISIBLE_DEVICES"] == "7"
    several = launched(tmp_path, gpu_ids="2,7", distributed_type="MULTI_GPU", num_processes=2)
    assert several["CUDA_VISIBLE_DEVICES"] == "2,7"


def test_several_processes_on_cpus_without_mpirun(answered, tiny):
    """Accelerate would start one without a word."""
    answered(distributed_type="MULTI_CPU", num_processes=2, use_cpu=True)
    with pytest.raises(
        UserError, match=r"asked for several processes, but starts one without mpirun. Use `ACC.* torch"
    ):
        setup.make_accelerator(tiny)
    answered(distributed_type="MULTI_CPU", num_processes=1, use_cpu=True)
    assert setup.make_accelerator(tiny).num_processes == 1


@pytest.mark.parametrize("library", [None, SimpleNamespace()], ids=["missing", "installed"])
def test_cpu_affinity_needs_a_library_on_gpus(library, answered, monkeypatch):
    answered(enable_cpu_affinity=True)
    assert "ACCELERATE_CPU_AFFINITY" not in os.environ, "Accelerate ignores it in the file"
    answered(["--enable_cpu_affinity"])
    launch.check_answers()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: library)
    if library is not None:
        launch.check_answers()
        return
    with pytest.raises(UserError, match=r"enable_cpu_affinity needs .*; pip install '.\[nvml\]', or answer no to numa"):
        launch.check_answers()


def test_inductor_becomes_the_option_and_compiles_no_whole_network(answered, tiny):
    answered(use_cpu=True, dynamo_config={"dynamo_backend": "INDUCTOR", "dynamo_use_dynamic": True})
    config, (note,) = launch.with_answers(tiny)
    assert config == dataclasses.replace(tiny, training=dataclasses.replace(tiny.training, compile="default"))
    assert note == (
        "`accelerate config`: dynamo_backend INDUCTOR, dynamo_mode default is used as --training.compile default, "
        "which compiles block by block; `accelerate launch --dynamo_backend no` turns it off"
    )
    run = setup.set_up(config)
    assert run.module is run.bare, "Accelerate has not wrapped it"
    assert run.bare._compiled_call_impl is None
    regions = list(run.bare.model.regions)
    assert len(regions) > 3
    assert all(region._compiled_call_impl is not None for region in regions)
    assert not any(region._compiled_call_impl for region in setup.set_up(tiny).bare.model.regions)


def test_a_run_says_which_answers_it_uses(answered, tiny, monkeypatch, capsys):
    """The answers are used before anything is set up, and printed once."""

    def stop(config):
        raise UserError(f"{config.training.compile} {config.training.gradient_accumulation_steps}")

    answered(use_cpu=True, dynamo_config={"dynamo_backend": "INDUCTOR", "dynamo_mode": "max-autotune"})
    monkeypatch.setenv(launch.ACCUMULATION, "4")
    monkeypatch.setattr(setup, "set_up", stop)
    with pytest.raises(UserError, match=r"^max-autotune 4$"):
        run_training(tiny)
    assert capsys.readouterr().out.splitlines() == launch.with_answers(tiny)[1]
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError):
        run_training(tiny)
    assert capsys.readouterr().out == ""


def test_options_that_are_given_override_answers(answered, monkeypatch):
    answered(dynamo_config={"dynamo_backend": "INDUCTOR", "dynamo_mode": "reduce-overhead"})
    config = Config(training=TrainingConfig(compile="default"))
    note = "dynamo_backend INDUCTOR, dynamo_mode reduce-overhead is not used, because --training.compile is default"
    assert launch.with_answers(config) == (config, [f"`accelerate config`: {note}"])
    same = Config(training=TrainingConfig(compile="reduce-overhead"))
    assert launch.with_answers(same) == (same, [])
    answered(["--dynamo_backend", "no"], dynamo_config={"dynamo_backend": "INDUCTOR"})
    assert launch.with_answers(config) == (config, [])


@pytest.mark.parametrize(
    ("model", "more", "what"),
    [
        (ModelConfig(gradient_checkpointing=True), {}, "--model.gradient-checkpointing"),
        (ModelConfig(), fsdp(), "FSDP"),
    ],
)
def test_inductor_does_not_work_with_everything(model, more, what, answered):
    answered(dynamo_config={"dynamo_backend": "INDUCTOR"}, **more)
    with pytest.raises(UserError, match=f"does not work with {what}; `accelerate launch --dynamo_backend no` turns it"):
        launch.with_answers(Config(model=model))


@pytest.mark.parametrize(
    ("own", "answer", "steps", "said"),
    [
        (1, "4", 4, "4 is used as --training.gradient-accumulation-steps 4"),
        (2, "4", 2, "4 is not used, because --training.gradient-accumulation-steps is 2"),
        (4, "4", 4, ""),
        (2, "1", 2, ""),
        (2, None, 2, ""),
    ],
)
def test_gradient_accumulation(own, answer, steps, said, answered, monkeypatch):
    answered()
    if answer is not None:
        monkeypatch.setenv(launch.ACCUMULATION, answer)
    config, notes = launch.with_answers(Config(training=TrainingConfig(gradient_accumulation_steps=own)))
    assert config.training.gradient_accumulation_steps == steps
    assert notes == ([f"`accelerate config`: gradient_accumulation_steps {said}"] if said else [])


@pytest.mark.parametrize("value", ["auto", "0", "-1", ""])
def test_gradient_accumulation_that_is_no_number(value, monkeypatch):
    monkeypatch.setenv(launch.ACCUMULATION, value)
    with pytest.raises(UserError, match="give a whole number of at least 1"):
        launch.with_answers(Config())


def test_answers_of_a_later_accelerate_are_refused():
    with pytest.raises(UserError, match="dynamo_backend LATER is not known; choose one of: NO INDUCTOR"):
        check_answer("dynamo_backend", "LATER")


def test_a_tracker_that_does_not_start_is_one_line(tiny):
    class UnknownError(Exception):
        pass

    def fails(*_, **__):
        raise UnknownError("No API key configured. Use `wandb login` to log in.\nmore")

    config = dataclasses.replace(tiny, training=dataclasses.replace(tiny.training, tracker="wandb"))
    accelerator = SimpleNamespace(num_processes=1, process_index=0, init_trackers=fails)
    with pytest.raises(
        UserError, match=r"^--training.tracker wandb: does not start \(No API key .*\); correct this, or"
    ):
        start_trackers(accelerator, config, {})


def test_the_report_of_torchrun_ends_in_the_line(monkeypatch, tmp_path, capsys):
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise UserError("nowhere: not a dataset folder")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: nowhere: not a dataset folder\n"
    failure = ProcessFailure(local_rank=0, pid=7, exitcode=2, error_file=str(file))
    assert abs(failure.timestamp - time.time()) < 60
    *_, line, border = ChildFailedError("train_10k.py", {0: failure}).format_msg().splitlines()
    assert line == "  traceback : error: nowhere: not a dataset folder"
    assert set(border) == {"="}


def test_a_mistake_under_accelerate_launch_is_one_line(tmp_path):
    file = tmp_path / "answers.yaml"
    settings = {"distributed_type": "NO", "num_processes": 1, "use_cpu": False, "mixed_precision": "fp16"}
    file.write_text(yaml.safe_dump({"compute_environment": "LOCAL_MACHINE", "num_machines": 1, **settings}))
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--quiet", "--config_file", file]
    words = [ROOT / "recipes" / "train_10k.py", "--data", "synth:fingers=4", "--out", tmp_path / "run"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    result = subprocess.run([*command, *words], env=environment, capture_output=True, text=True)
    assert result.returncode == 1, "of the launcher; the recipe ends with 2"
    assert result.stderr == "error: fp16 needs a GPU; use --training.precision bf16 or no\n"
    assert result.stdout == ""
    assert not (tmp_path / "run").exists()
