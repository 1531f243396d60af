"""The table of answers has all that `accelerate config` offers, and the documentation has the same table."""

import ast
import dataclasses
import inspect
import re

import pytest
from accelerate.commands.config import cluster, sagemaker
from accelerate.commands.config.config_args import ClusterConfig, SageMakerConfig
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import ComputeEnvironment, DistributedType, DynamoBackend, PrecisionType
from accelerate.utils.constants import TORCH_DYNAMO_MODES
from accelerate.utils.dataclasses import FP8BackendType
from starting import ROOT

from fingerprint_accel.training.launch_answers import ANSWERS, answer_for, answers_in

# Options of `accelerate launch` that `accelerate config` does not ask for: of the launcher alone, or that name the
# distributed type in another way.
OF_THE_LAUNCHER = {"help", "config_file", "quiet", "module", "no_python", "training_script", "training_script_args"}
OF_THE_LAUNCHER |= {"tee", "log_dir", "role", "rdzv_conf", "max_restarts", "monitor_interval", "vm", "env"}
OF_THE_LAUNCHER |= {"num_cpu_threads_per_process", "aws_access_key_id", "aws_secret_access_key"}
OF_THE_LAUNCHER |= {"cpu", "multi_gpu", "tpu", "use_deepspeed", "use_fsdp", "use_megatron_lm"}


def asked_settings(module):
    """Section and name of each setting that a questionnaire stores, with the choices that it offers, if any."""
    assigned = [node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Assign)]
    prefixes = {node.lineno: node.value.value for node in assigned if ast.unparse(node.targets[0]) == "prefix"}
    for node in assigned:
        target, value, choices = node.targets[0], node.value, [None]
        if not isinstance(target, ast.Subscript) or not ast.unparse(target.value).endswith("_config"):
            continue
        name = target.slice
        if isinstance(name, ast.BinOp):  # prefix + "name"
            name = prefixes[max(line for line in prefixes if line < node.lineno)] + name.right.value
        else:
            name = name.value
        if ast.unparse(value).startswith("_ask_options("):
            lists = (
                [value.args[1].body, value.args[1].orelse] if isinstance(value.args[1], ast.IfExp) else value.args[1:2]
            )
            known = {**vars(module), "deepspeed_devices": ["none", "cpu", "nvme"]}
            choices = [choice for part in lists for choice in eval(ast.unparse(part), known)]
        elif "_convert_yes_no_to_bool" in ast.unparse(value):
            choices = [True, False]
        yield target.value.id, name, choices


@pytest.mark.parametrize("module", [cluster, sagemaker], ids=["cluster", "sagemaker"])
def test_every_question_is_known(module):
    """Fails if a new version of Accelerate stores a setting, or offers a choice, that the table does not have."""
    asked = list(asked_settings(module))
    assert len(asked) >= {cluster: 61, sagemaker: 5}[module]
    typing_error = "torhchxla_trace_once"  # choosing it ends in an error of Accelerate
    for section, name, choices in asked:
        for choice in choices:
            if choice != typing_error:
                ((_, _, answer),) = answers_in({section: {name: choice}})
                assert answer is not None, f"{section}: {name} {choice}"


def test_every_choice_of_the_enumerations_is_known():
    offered = {
        "compute_environment": ComputeEnvironment,
        "distributed_type": DistributedType,
        "dynamo_backend": DynamoBackend,
        "mixed_precision": PrecisionType,
        "fp8_backend": FP8BackendType,
    }
    for key, kinds in offered.items():
        assert [str(kind.value) for kind in kinds if answer_for(key, kind.value) is None] == []
    for mode in TORCH_DYNAMO_MODES:
        assert answer_for("dynamo_mode", mode).kind == "mapped"


def test_every_setting_of_the_file_and_of_the_launcher_is_known():
    fields = {field.name for kind in (ClusterConfig, SageMakerConfig) for field in dataclasses.fields(kind)}
    options = {action.dest for action in launch_command_parser()._actions}
    names = {pattern for answer in ANSWERS for pattern in answer.keys.split()}
    for name in (fields | options) - OF_THE_LAUNCHER - {field for field in fields if field.endswith("_config")}:
        assert any(answer.is_for(name, answer.values.split()[0].lower() if answer.values else "")
                   or name in answer.keys.split() for answer in ANSWERS), name  # fmt: skip
    plain = {name for name in names if not name.endswith("*")} - {"device"}
    assert plain <= fields | options | {"fsdp_ignored_modules"}, "the table has no settings that do not exist"


def test_no_answer_is_in_two_entries():
    for answer in ANSWERS:
        for key in (key for key in answer.keys.split() if not key.endswith("*")):
            for value in answer.values.split() or ["7"]:
                assert answer_for(key, value) is answer
    assert all(answer.text for answer in ANSWERS if answer.kind != "works")


CODE = re.compile(r"--[\w.-]*\w|pip install '[^']+'|\b[A-Z_]{12,}\b|recipes/\S+yaml|accelerate launch|torch.cuda")


def rows():
    """The table of docs/training.md, from the entries of the code."""
    for answer in ANSWERS:
        settings = ", ".join(f"`{name}`" for name in answer.keys.split())
        values = ", ".join(f"`{name}`" for name in answer.values.split()) or "any"
        word = {"mapped": "used as", "refused": "**refused**:"}.get(answer.kind, answer.kind + ":" * bool(answer.text))
        text = f"{word} {CODE.sub(lambda found: f'`{found[0]}`', answer.text)}".strip()
        yield f"| {settings} | {values} | {text} | {answer.tested} |"


def test_the_table_of_the_documentation():
    page = (ROOT / "docs" / "training.md").read_text()
    table = page[page.index("| setting | answer |") :].split("\n\n")[0].splitlines()
    assert table[2:] == list(rows())


def test_commands_that_are_shown_to_users_launch_quietly():
    """Without --quiet, the traceback of the launcher hides the line that names a mistake."""
    places = [*ROOT.glob("*.md"), *ROOT.glob("*.def"), *(ROOT / "docs").glob("*.md")]
    for folder in ("recipes", "examples", "benchmarks", "fingerprint_accel"):
        places += [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".sh", ".yaml", ".html")]
    shown = re.compile(
        r"accelerate launch (?P<quiet>--quiet )?(?:--(?!quiet)\S+ \S+\s)*(?:recipes/|benchmarks/|/opt/|-m )"
    )
    found = [(path, match) for path in places for match in shown.finditer(path.read_text())]
    assert len(found) > 40
    assert [f"{path}: {match[0]}" for path, match in found if not match["quiet"]] == []
