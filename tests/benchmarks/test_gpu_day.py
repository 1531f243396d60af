"""The script for a GPU: its runner, its commands, and what they measure, with tiny sizes on a CPU."""

import functools
import importlib
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tyro

from fingerprint_accel.cli import VERBS
from fingerprint_accel.config import parse
from fingerprint_accel.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--steps", "2", "--batch-size", "4", "--width", "8", "--side", "64"]


@pytest.fixture(autouse=True)
def every_run_starts_afresh(fresh_accelerator):
    """For what trains in this process."""


def understood(words):
    """Reads a command as its script would, without running it."""
    script, *options = words
    if script == "-m":
        return {"pytest": check_tests, "fingerprint_accel.cli": check_verb}.get(options[0], launched)(options[1:])
    assert (ROOT / script).is_file()
    module = importlib.import_module(Path(script).stem)
    if script.endswith("throughput.py"):
        return importlib.import_module("throughput_options").read_options(options)
    if script.startswith("recipes/") or script.endswith("step_profile.py"):
        own = {"--steps-profiled", "--out"} if script.startswith("benchmarks/") else set()
        kept = [word for word, before in zip(options, ["", *options[:-1]], strict=True) if not own & {word, before}]
        return parse(getattr(module, "CONFIG", None) or module.DEFAULTS, "", kept)
    return tyro.cli(functools.wraps(module.main)(lambda **values: values), args=options)


def check_tests(words):
    paths = [word for word in words if word.startswith("tests/")]
    assert paths and all((ROOT / path).exists() for path in paths)


def check_verb(words):
    assert words[0] in VERBS


def launched(words):
    """What a launcher starts."""
    place = next(place for place, word in enumerate(words) if word.endswith(".py"))
    configs = [word for word in words[:place] if word.endswith(".yaml")]
    assert all((ROOT / config).is_file() for config in configs)
    understood(words[place:])


@pytest.mark.parametrize("kind", ["commands", "tiny"])
def test_every_command_is_one_that_its_script_understands(tmp_path, kind):
    from gpu_day import Runner
    from gpu_day_items import items

    runner, labels = Runner(tmp_path, tmp_path / "log", {}), 0
    for item in items():
        for label, command in getattr(item, kind).items():
            understood(runner.words(command, tmp_path / f"{label}.json")[1:])
            labels += 1
    assert labels >= 15


def test_a_failure_costs_only_its_command(tmp_path):
    """Results are there after each, also of commands that fail, hang with children, or are not begun."""
    from gpu_day import Runner, run_items
    from gpu_day_items import Item

    child = "import subprocess; subprocess.run(['sleep', '77'])"
    commands = {
        "good": "-c 'import sys; open(sys.argv[1], chr(119)).write(chr(123) + chr(125)); print(5)' OUT",
        "bad": "-c 'print(6); raise SystemExit(3)'",
        "hangs": f'-c "{child}"',
        "late": "-c 1",
    }
    kept = []
    runner = Runner(tmp_path, tmp_path / "log", dict(os.environ))
    item = Item("thing", "a thing", 1, commands)
    started = time.monotonic()
    run_items([item], runner, started + 60, False, lambda item, rows: kept.append(json.dumps(rows)))
    assert time.monotonic() - started < 9
    assert [len(json.loads(rows)) for rows in kept] == [1, 2, 3, 4]
    rows = json.loads(kept[-1])
    statuses = [row["status"] for row in rows.values()]
    assert statuses[:2] + statuses[3:] == ["ok", "exit code 3", "not started"]
    assert statuses[2].startswith("stopped after")
    assert (rows["good"]["results"], rows["good"]["said"], rows["bad"]["said"]) == ({}, ["5"], ["6"])
    assert subprocess.run(["pgrep", "-f", "sleep 77"], capture_output=True).returncode == 1


@pytest.mark.parametrize(
    "form",
    ["{test} {outcome} [ 10%]", "[gw3] [ 10%] {outcome} {test} "],
)
def test_outcomes_are_read_from_the_output_of_pytest(form):
    from gpu_day import tests_in

    outcomes = {"a": "PASSED", "b[x y]": "PASSED", "c": "SKIPPED (no GPU)", "d": "FAILED", "e": "ERROR"}
    lines = [form.format(test=f"tests/x/test_y.py::{name}", outcome=outcome) for name, outcome in outcomes.items()]
    lines = [line.replace("SKIPPED (no GPU)", "SKIPPED") if line.startswith("[gw") else line for line in lines]
    lines += ["tests/x/test_y.py::started", "= short test summary info =", "FAILED tests/x/test_y.py::d - assert"]
    failed = ["tests/x/test_y.py::d", "tests/x/test_y.py::e"]
    assert tests_in("\n".join(lines)) == {"passed": 2, "skipped": 1, "failed": failed}


def test_results_are_kept_and_named_after_the_gpu(tmp_path):
    from gpu_day import chosen, result_folder

    names = {"NVIDIA H200": "h200", "NVIDIA A100-SXM4-80GB": "a100", "Tesla V100-SXM2": "v100", None: "gpu"}
    names |= {"NVIDIA GeForce RTX 4090": "gpu", "NVIDIA H100 80GB HBM3": "h100"}
    assert {gpu: result_folder(gpu).name for gpu in names} == names
    with pytest.raises(UserError, match="--only lunch: there is no such item; choose from tests, precision, compile"):
        chosen(("tex", "lunch"))
    assert [item.name for item in chosen(("tex", "tests"))] == ["tests", "tex"]


def test_losses_are_compared_with_the_first_run():
    from loss_curves import compared, table

    def row(precision, first, last, skipped=0):
        made = {"precision": precision, "compile": "no", "last": last, "losses": [*first, *18 * [last]]}
        return {**made, "skipped": skipped, "seconds": 1.0}

    rows = [row("no", [4.0, 3.0], 2.0), row("fp16", [None, 3.3], 2.2, skipped=1), row("bf16", [4.0, 3.0], 2.02)]
    rows.append({"precision": "bf16", "compile": "default", "failed": "no compiler"})
    compared(rows, 0.05)
    assert [row["agrees"] for row in rows] == [True, False, True, False]
    assert rows[1]["difference"] == pytest.approx(0.1)
    assert rows[1]["first_difference"] == pytest.approx(0.1), "of the steps that both took"
    assert "DIFFERS" in table(rows) and "no compiler" in table(rows)


def test_runs_of_two_precisions(prints, tmp_path, capsys):
    import loss_curves

    out = tmp_path / "losses.json"
    words = ["--data", str(prints), *TINY, "--precisions", "no", "bf16", "--tolerance", "0.2", "--out", str(out)]
    tyro.cli(loss_curves.main, args=words)
    rows = json.loads(out.read_text())["results"]
    assert [(row["precision"], row["skipped"], len(row["losses"])) for row in rows] == [("no", 0, 2), ("bf16", 0, 2)]
    assert 0 < abs(rows[1]["first_difference"]) < 0.05
    assert capsys.readouterr().out.count("agrees") == 2


def test_training_fits_itself_into_too_little_memory(prints, tmp_path, capsys):
    import shortage

    out = tmp_path / "shortage.json"
    tyro.cli(shortage.main, args=["--data", str(prints), *TINY, "--steps", "1", "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["wrong"] == []
    assert found["results"]["fitted"] == {"batch_size": 2, "gradient_accumulation_steps": 2}
    assert found["results"]["message"].endswith("--training.batch-size 2 --training.gradient-accumulation-steps 2")
    spoiled = found["results"] | {"difference": 0.5, "message": "", "fitted_peak_mb": 9, "limit_mb": 8}
    assert len(shortage.wrong_in(spoiled, 4)) == 3


def test_a_profile_says_what_takes_the_time(prints, tmp_path, monkeypatch, capsys):
    import step_profile

    out = tmp_path / "profile.json"
    words = [*("--data", str(prints), "--steps-profiled", "1", "--out", str(out), "--training.batch-size", "4")]
    words += shlex.split("--model.trunk compact --model.width 8 --preprocess.crop 256 --preprocess.size 64")
    monkeypatch.setattr(sys, "argv", ["step_profile.py", *words])
    step_profile.main()
    found = json.loads(out.read_text())["results"]
    assert sum(kind["share"] for kind in found["kinds"].values()) == pytest.approx(1)
    assert found["kinds"]["convolution"]["ms_per_step"] > 0
    assert {"convolution", "matrix product", "optimizer", "normalisation"} <= set(found["kinds"])
    assert "aten::convolution_backward" in capsys.readouterr().out
    names = {
        "triton_poi_fused_convolution_relu_3": "generated by the compiler",
        "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64": "convolution",
        "nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTN": "matrix product",
        "void cudnn::ops::nchwToNhwcKernel<float, float, float, false, true>": "layout change",
        "Memcpy HtoD (Pinned -> Device)": "copy",
        "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor>": "optimizer",
    }
    assert {name: step_profile.kind_of(name) for name in names} == names


def test_the_table_reads_what_search_writes(tmp_path):
    import search
    from gpu_day_table import table

    search.main(references=300, probes=4, dim=16, out=tmp_path / "search.json")
    row = {"status": "ok", "seconds": 1.0, "command": "benchmarks/search.py"}
    row["results"] = json.loads((tmp_path / "search.json").read_text())
    said = table({"search": {"commands": {"search": row}}})
    assert "float32: " in said and "int8: " in said and said.count("million comparisons/s, one probe") == 2
