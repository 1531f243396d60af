"""Compiled parts inside DDP, on two processes."""

import json

import numpy as np

from .conftest import ROOT, TINY, launched

# both parts, as on a GPU; dynamo and AOT autograd without the code generator, which takes minutes on two cores
TRAIN = """
import runpy, sys
import fingerprint_accel.training.setup as setup
from fingerprint_accel.losses.exchange import talk_outside_compiled_code

def compile_both(module, training, device):
    if training.compile != "no":
        talk_outside_compiled_code()
    for part in (module.model, module.loss) if training.compile != "no" else ():
        part.compile(backend="aot_eager", dynamic=False)
    return ""

setup.compile_parts = compile_both
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""
CHANGING = [
    *("--model.variant", "Tex"),
    *("--reading.samples-per-class", "2", "--loss.contrastive-weight", "1.0", "--loss.scale", "16"),
    *("--loss.margin-start", "0.25", "--loss.margin-ramp", "0.5", "--training.gradient-accumulation-steps", "2"),
    *("--model.dropout", "0", "--training.steps", "6", "--training.validate-every", "0"),
]


def test_two_compiled_processes_train_what_plain_ones_do(prints, environment, tmp_path):
    """With a contrastive loss, whose exchange between processes stays outside of what is compiled."""
    script, losses = tmp_path / "train.py", {}
    script.write_text(TRAIN)
    for mode in ("no", "default"):
        out = tmp_path / mode
        words = [*TINY, *CHANGING, "--data", str(prints), "--out", str(out), "--training.compile", mode]
        launched("two processes", [script, ROOT / "recipes" / "train_10k.py", *words], environment)
        lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        losses[mode] = [line["loss"] for line in lines if line["kind"] == "train"]
    assert len(losses["no"]) == 6
    np.testing.assert_allclose(losses["default"], losses["no"], rtol=0, atol=1e-4)
