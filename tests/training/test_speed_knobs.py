"""The knobs of speed: how they are written, and what torch and Accelerate are told."""

import pytest
import torch
from accelerate.utils import DDPCommunicationHookType

from fingerprint_accel.config import Config, TrainingConfig, load_yaml, parse
from fingerprint_accel.errors import UserError
from fingerprint_accel.training.speed import ddp_options, set_precision


def test_precision_is_set_for_gpus_alone(recwarn):
    """Torch's own switches, which can be turned without a GPU; the newest way of turning them warns of nothing."""
    conv, before = torch.backends.cudnn, torch.get_float32_matmul_precision()
    kept = conv.allow_tf32, conv.benchmark
    try:
        torch.set_float32_matmul_precision("highest")
        conv.benchmark = False
        set_precision(torch.device("cpu"))
        assert (torch.get_float32_matmul_precision(), conv.benchmark) == ("highest", False)
        set_precision(torch.device("cuda"))
        assert torch.get_float32_matmul_precision() == "high"
        assert (conv.allow_tf32, conv.benchmark) == (True, True)
    finally:
        torch.set_float32_matmul_precision(before)
        conv.allow_tf32, conv.benchmark = kept
    assert not [warning for warning in recwarn if "precision" in str(warning.message).lower()]


def test_ddp_is_told():
    options = ddp_options(TrainingConfig(gradient_compression="fp16", bucket_cap_mb=60))
    assert options.comm_hook is DDPCommunicationHookType.FP16
    assert options.to_kwargs() == {"bucket_cap_mb": 60, "broadcast_buffers": False, "gradient_as_bucket_view": True}
    assert ddp_options(TrainingConfig()).comm_hook is DDPCommunicationHookType.NO


@pytest.mark.parametrize("mode", ["no", "default", "reduce-overhead", "max-autotune"])
@pytest.mark.parametrize("compression", ["no", "bf16", "fp16"])
def test_knobs_parse(mode, compression):
    words = ["--training.compile", mode, "--training.gradient-compression", compression]
    training = parse(Config(), "", [*words, "--training.bucket-cap-mb", "50"]).training
    assert (training.compile, training.gradient_compression) == (mode, compression)
    assert training.bucket_cap_mb == 50


@pytest.mark.parametrize(("written", "mode"), [("true", "default"), ("false", "no"), ("'no'", "no")])
def test_files_from_when_compile_was_a_switch_read(tmp_path, written, mode):
    (tmp_path / "old.yaml").write_text(f"training:\n  compile: {written}\n")
    assert load_yaml(tmp_path / "old.yaml").training.compile == mode


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("compile: fast", "training.compile must be one of no, default, reduce-overhead, max-autotune, not 'fast'"),
        ("optimizer: true", "training.optimizer must be one of adamw, sgd, not True"),
        ("bucket_cap_mb: 0", "training.bucket_cap_mb must be at least 1"),
        ("compile: 3", "training.compile must be one of"),
    ],
)
def test_mistakes_name_the_knob(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(f"training:\n  {text}\n")
    with pytest.raises(UserError, match=message):
        load_yaml(tmp_path / "run.yaml")


def test_an_unquoted_no_in_yaml_is_understood(tmp_path):
    (tmp_path / "run.yaml").write_text("training: {compile: no, precision: no, gradient_compression: no}")
    training = load_yaml(tmp_path / "run.yaml").training
    assert (training.compile, training.precision, training.gradient_compression) == ("no", "no", "no")
