"""What `gpu_day.py` runs: the items, ordered by value, with the commands of each.

In a command, DATA is a dataset folder, WORK a folder for files that are not kept, and OUT the JSON file to write. A
command starts with a script or `-m MODULE`, and runs in the folder of the repository.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field

LAUNCH = "-m accelerate.commands.accelerate_cli launch --config_file recipes/hardware"
TEX = "benchmarks/throughput.py --data DATA --variants Tex --precisions bf16 --out OUT"
PROFILE = "benchmarks/step_profile.py --data DATA --model.variant Tex --training.precision bf16 --out OUT"
TESTS = (  # their code runs on a GPU if there is one
    *("tests/training", "tests/preprocess", "tests/losses", "tests/models", "tests/synthesis/test_impressions.py"),
    *("tests/synthesis/test_source.py", "tests/extraction/test_extractor.py", "tests/extraction/test_bulk.py"),
)
SYNTH = "-m fingerprint_accel.cli synth"
TORCHRUN = "-m torch.distributed.run --standalone --nproc_per_node=1"
RECIPE = "recipes/train_10k.py --data DATA --model.trunk compact --preprocess.crop 256 --training.tracker none"
TINY_NETWORK = "--model.trunk compact --model.width 8 --preprocess.crop 256 --preprocess.size 64"
TINY_STEP = f"{TEX} --seconds 0.1 {TINY_NETWORK} --batch-sizes 4".replace("--precisions bf16 ", "")
TINY_RUN = "--steps 2 --batch-size 4 --width 8 --side 64"
TINY_RECIPE = (
    "--model.init-from '' --model.variant TexMinu --model.trunk compact --model.width 8 --model.embedding-dim 32 "
    "--preprocess.size 64 --reading.validation-fraction 0.3 --training.batch-size 4 "
    "--training.steps 2 --training.tracker none"
)


@dataclass(frozen=True)
class Item:
    """An item of the script.

    Attributes:
        name: name of the item, for --only.
        title: what it shows, in a few words.
        seconds: limit of its commands together.
        commands: commands by label, which run one after the other.
        tiny: the same commands for a dry run on a CPU.
    """

    name: str
    title: str
    seconds: int
    commands: dict[str, str] = field(default_factory=dict)
    tiny: dict[str, str] = field(default_factory=dict)


def pytest(tests: str, workers: int) -> str:
    """Return the command that runs tests and names each result as soon as it is known."""
    spread = f" -n {workers} --dist loadscope" if workers > 1 and importlib.util.find_spec("xdist") else ""
    return f"-m pytest -v -p no:cacheprovider --tb=short{spread} {tests}"


def items() -> list[Item]:
    """Return all items, ordered by value."""
    return [*_checks(), *_speeds(), *_whole_runs()]


def _checks() -> list[Item]:
    """Return the items that show whether what runs on a GPU only is right."""
    workers = min(8, len(os.sched_getaffinity(0)))
    losses = "benchmarks/loss_curves.py --data DATA --out OUT"
    return [
        Item(
            "tests", "tests of the suite, on the GPU", 120,
            {"pytest": pytest(" ".join(TESTS), workers)},
            {"pytest": pytest("tests/preprocess/test_kept_tables.py", 1)},
        ),
        Item(
            "precision", "fp16 with gradient scaling, bf16 and float32: losses", 75,
            {"losses": f"{losses} --precisions no bf16 fp16"},
            {"losses": f"{losses} --precisions no bf16 {TINY_RUN} --tolerance 0.5"},
        ),
        Item(
            "compile", "CUDA graphs and compiled code against eager code: losses", 120,
            {"losses": f"{losses} --compile no default reduce-overhead"},
            {"losses": f"{losses} {TINY_RUN}"},
        ),
        Item(
            "autotune", "--training.compile max-autotune: losses", 100,
            {"losses": f"{losses} --compile no max-autotune --steps 60"},
            {"losses": f"{losses} {TINY_RUN}"},
        ),
        Item(
            "shortage", "--training.auto-micro-batch-size with too little memory", 45,
            {"shortage": "benchmarks/shortage.py --data DATA --out OUT"},
            {"shortage": f"benchmarks/shortage.py --data DATA --out OUT {TINY_RUN}"},
        ),
    ]  # fmt: skip


def _speeds() -> list[Item]:
    """Return the items that measure time and memory."""
    step, train = f"{TEX} --stages step --seconds 2", f"{TEX} --stages train --seconds 5 --compile default"
    heads = "benchmarks/heads.py --traffic-classes 0 --optimizer sgd --cases sampled full --out OUT"
    extraction = "benchmarks/extraction.py --data DATA --out OUT"
    return [
        Item(
            "recompute", "--model.gradient-checkpointing: memory and time", 60,
            {
                "kept": f"{step} --batch-sizes 512",
                "recomputed": f"{step} --batch-sizes 512 --model.gradient-checkpointing",
            },
            {"recomputed": f"{TINY_STEP} --stages step --model.gradient-checkpointing"},
        ),
        Item(
            "heads", "identity heads of ten million fingers on one device", 60,
            {"heads": f"{heads} --classes 10000000"},
            {"heads": f"{heads} --classes 1000 --dim 32 --steps 1"},
        ),
        Item(
            "tex", "DeepPrint Tex from files, with a profile", 240,
            {
                "512": f"{train} --batch-sizes 512",
                "profile": f"{PROFILE} --training.batch-size 512 --training.compile default",
                "1024": f"{train} --batch-sizes 1024",
            },
            {
                "4": f"{TINY_STEP} --stages train",
                "profile": f"{PROFILE} {TINY_NETWORK} --training.batch-size 4 --steps-profiled 1",
            },
        ),
        Item(
            "extract", "embedding with small and DeepPrint Tex", 70,
            {
                "extraction": f"{extraction} --device cuda --batch-size 64 --rounds 3 --seconds 1",
                "extract": "-m fingerprint_accel.cli extract DATA --out WORK/embeddings --model base --device cuda",
            },
            {"extract": "-m fingerprint_accel.cli extract DATA --out WORK/embeddings"},
        ),
        Item(
            "search", "exact search", 60,
            {"search": "benchmarks/search.py --references 1000000 --probes 2000 --out OUT"},
            {"search": "benchmarks/search.py --references 1000 --probes 10 --dim 64 --out OUT"},
        ),
    ]  # fmt: skip


def _whole_runs() -> list[Item]:
    """Return the items that run what the documentation shows."""
    docs = f"{LAUNCH}/gpu.yaml benchmarks/throughput.py --data DATA --seconds 1 --out OUT"
    return [
        Item(
            "quickstart", "the quickstart of the README", 75,
            {"quickstart": f"{LAUNCH}/gpu.yaml recipes/quickstart.py --out WORK/quickstart"},
            {
                "unseen": f"{SYNTH} --out WORK/quickstart/unseen-prints --fingers 8 --impressions 4",
                "quickstart": f"recipes/quickstart.py --data DATA --out WORK/quickstart {TINY_RECIPE}",
            },
        ),
        Item(
            "launch", "DDP and FSDP with NCCL in one process, and a resumed run", 90,
            {
                "ddp": f"{TORCHRUN} {RECIPE} --out WORK/run --training.steps 20",
                "resume": f"{TORCHRUN} {RECIPE} --out WORK/run --training.steps 40 --resume auto",
                "fsdp": f"{LAUNCH}/fsdp.yaml --num_processes 1 {RECIPE} --out WORK/fsdp --training.steps 20",
            },
            {
                "ddp": f"{RECIPE} --out WORK/run {TINY_RECIPE}",
                "resume": f"{RECIPE} --out WORK/run {TINY_RECIPE} --training.steps 3 --resume auto",
            },
        ),
        Item(
            "docs", "the first command of docs/benchmarks.md", 60,
            {"stages": docs},
            {"stages": f"{TINY_STEP} --stages read,prepare"},
        ),
    ]  # fmt: skip
