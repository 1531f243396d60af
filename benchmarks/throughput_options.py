"""The command line of `throughput.py`."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, get_args

import torch
from results_file import written_by

from fingerprint_accel.config import Config, ModelConfig, ReadingConfig, TrainingConfig, Variant, parse
from fingerprint_accel.errors import UserError
from fingerprint_accel.outputs import check_file

STAGES = ("read", "raw", "decode", "prepare", "step", "train")
PRECISIONS = ("no", "bf16", "fp16")
EXAMPLES = """\
Measure how fast this machine trains, and what limits it. Without --data the tool makes prints.

  accelerate launch --quiet benchmarks/throughput.py --out speed.json

with your own data and settings:
  accelerate launch --quiet benchmarks/throughput.py --data DATASET --model.variant TexMinu --training.batch-size 64 \\
      --training.precision bf16 --out speed.json
find the fastest batch size, precision and compilation (one row per combination):
  accelerate launch --quiet benchmarks/throughput.py --stages step,train --variants Tex,TexMinu \\
      --batch-sizes 16,64,256 --precisions no,bf16 --compile no,default --out sweep.json
on several GPUs (rates are sums over processes):
  accelerate launch --quiet --multi_gpu --num_processes 8 benchmarks/throughput.py --stages train --out eight.json
compare with plain training, and project the hours of epochs of 500,000 to 1,500,000 prints:
  python benchmarks/throughput.py --compare reference --out compare.json
with a small network, in a minute on two cores:
  python benchmarks/throughput.py --model.trunk compact --preprocess.crop 256 --preprocess.size 128 --seconds 5
"""
AFTER = """\
All options of training (--model.trunk compact, --preprocess.enhance, --config run.yaml, ...) work here too.
--help-training lists them. docs/benchmarks.md explains the columns.
"""
DEFAULTS = Config(
    reading=ReadingConfig(validation_fraction=0.0), training=TrainingConfig(batch_size=32, tracker="none")
)
COMPILE = ("no", "default", "reduce-overhead", "max-autotune")


@dataclass(frozen=True)
class Options:
    """The tool's own options.

    Attributes:
        stages: Stages to measure, in order.
        named: Whether the stages were named on the command line.
        configs: One configuration for each combination of the sweep.
        seconds: Seconds for each stage.
        compare: Whether to measure the reference beside ours instead of the stages.
        workers: Workers of the reference's DataLoader; 0 is one for each core.
        out: JSON file to write, if any.
        plot: PNG file to write, if any.
    """

    stages: tuple[str, ...]
    named: bool
    configs: list[Config]
    seconds: float
    compare: bool
    workers: int
    out: Path | None
    plot: Path | None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the tool's own options. All other options are those of training."""
    made = _Parser(
        description=EXAMPLES, epilog=AFTER, add_help=False, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter, usage="throughput.py [options] [options of training]",
    )  # fmt: skip
    add = made.add_argument
    add("--data", metavar="DATASET", help="dataset folder; default: made and kept in ~/.cache, 315 MB")
    add("--stages", metavar="A,B", help=f"stages: {', '.join(STAGES)}; default: all that apply")
    add(
        "--seconds",
        type=float,
        default=20.0,
        help="seconds per stage and combination, or per side of a comparison (20)",
    )
    add("--variants", metavar="A,B", help=f"sweep: {', '.join(get_args(Variant))}")
    add("--batch-sizes", metavar="A,B", help="sweep: prints in a micro-batch of a process")
    add("--precisions", metavar="A,B", help=f"sweep: {', '.join(PRECISIONS)}")
    add("--compile", metavar="A,B", help="sweep: no, default, reduce-overhead, max-autotune")
    add("--compare", metavar="reference", help="alternate with plain training and compare; default variant: Tex")
    add("--reference-workers", type=int, default=0, help="workers of its DataLoader; default: one for each core")
    add("--out", metavar="FILE.json", type=Path, help="write JSON, and a plot beside it; default: print only")
    add("--plot", metavar="FILE.png", type=Path, help="write the plot here")
    add("-h", "--help", action="help", help="this text")
    add("--help-training", action="store_true", help="list the options of training")
    return made


def read_options(words: list[str]) -> Options:
    """Read the command line.

    Raises:
        UserError: Options that do not fit.
        SystemExit: After --help and --help-training.
    """
    own, knobs = parser().parse_known_args(words)
    if own.help_training:
        knobs = ["--help"]
    if own.data is not None:
        knobs += ["--data", own.data]
    if own.compare not in (None, "reference"):
        raise UserError(f"--compare {own.compare}: only `reference` exists")
    if own.compare and own.stages:
        raise UserError("--compare has its own stages; leave out --stages or --compare")
    if not own.seconds > 0:
        raise UserError(f"--seconds {own.seconds:g}: must be above 0")
    if own.reference_workers < 0:
        raise UserError(f"--reference-workers {own.reference_workers}: must not be negative")
    defaults = dataclasses.replace(DEFAULTS, model=ModelConfig(variant="Tex")) if own.compare else DEFAULTS
    configs = _combinations(parse(defaults, "Knobs of training.", knobs), own)
    if own.compare and len(configs) > 1:
        raise UserError("--compare takes one combination: give each sweep one value")
    return Options(
        stages=_list("--stages", own.stages or ",".join(STAGES), STAGES), named=own.stages is not None,
        configs=configs, seconds=own.seconds,
        compare=bool(own.compare), workers=own.reference_workers, out=_file("--out", own.out, ".json"),
        plot=_file("--plot", own.plot or (own.out and own.out.with_suffix(".png")), ".png"),
    )  # fmt: skip


def _combinations(base: Config, own: argparse.Namespace) -> list[Config]:
    """Return the cross product of the sweeps. Other options have the values of `base`."""
    model, training = base.model, base.training
    variants = _list("--variants", own.variants or model.variant, get_args(Variant))
    sizes = [_count("--batch-sizes", word) for word in _words(own.batch_sizes or str(training.batch_size))]
    precisions = _list("--precisions", own.precisions or training.precision, (*PRECISIONS, "auto"))
    compiled = _list("--compile", own.compile or training.compile, COMPILE)
    if "fp16" in precisions and not torch.cuda.is_available():
        raise UserError("fp16 needs a GPU; use bf16 or no")
    found: list[Config] = []
    for variant, size, precision, code in itertools.product(variants, sizes, precisions, compiled):
        changed: dict[str, Any] = {"batch_size": size, "precision": precision, "compile": code}
        of_model: dict[str, Any] = {"variant": variant}
        found.append(
            dataclasses.replace(
                base,
                model=dataclasses.replace(model, **of_model),
                training=dataclasses.replace(training, **changed),
            )
        )
    return found


def _words(text: str) -> list[str]:
    """Split a list at commas."""
    return [word.strip() for word in text.split(",")]


def _list(option: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Split a list at commas and check its words."""
    words = tuple(dict.fromkeys(_words(text)))
    for word in words:
        if word not in known:
            raise UserError(f"{option} {word}: there are {', '.join(known)}")
    return words


def _count(option: str, word: str) -> int:
    """Return a whole number above 0."""
    if not word.isdecimal() or int(word) < 1:
        raise UserError(f"{option} {word}: must be a whole number above 0")
    return int(word)


def _file(option: str, path: Path | None, ending: str) -> Path | None:
    """Check an output file before minutes of measuring."""
    if path is None:
        return None
    if path.suffix != ending or path.is_dir():
        raise UserError(f"{option} {path}: must be a file that ends in {ending}")
    check_file(path, written_by())
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
