"""Ends one tiny training in every way, and resumes it; a script: DATA FOLDER RECIPE.

Everything is imported once and each process of a run is a fork of this one, so that a run takes seconds. Signals and
kills are real, connections between processes too. Writes `results.json`: exit codes and seconds of each run.
"""

import contextlib
import errno
import gc
import itertools
import json
import os
import runpy
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import pyarrow.compute  # noqa: F401  (this, and what follows, is imported by every run)
import timm.utils.model_ema  # noqa: F401
import torch
import torch._dynamo

from fingerprint_accel.data.batch import Batch
from fingerprint_accel.extraction import extractor  # noqa: F401
from fingerprint_accel.models import saved_model
from fingerprint_accel.recipe import run_recipe
from fingerprint_accel.training import checkpoint, loop, meters, preemption_monitor, setup, validation

DATA, FOLDER, RECIPE = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
STEPS, GLOBAL_BATCH = 12, 8
WORDS = [
    *("--reading.validation-fraction", "0.3", "--preprocess.crop", "256", "--preprocess.size", "32"),
    *("--model.variant", "Tex", "--model.trunk", "compact", "--model.width", "8", "--model.embedding-dim", "16"),
    *("--training.steps", str(STEPS), "--training.warmup-steps", "2", "--training.log-every", "5"),
    *("--training.tracker", "none", "--training.precision", "no", "--resume", "auto", "--training.timeout", "20"),
    *("--training.validate-every", "4", "--training.save-every", "3", "--data", str(DATA)),
    *("--training.ema-decay", "0.9"),
]
MOMENTS = {  # the call at which it comes: in step 6, in validation after step 4, in the save then
    "step": (setup.TrainingModule, "forward", 6),
    "validation": (validation, "begin_step", 1),
    "save": (checkpoint, "fsync_path", 7),
}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def strike(moment, action):
    """Does `action` when the moment comes; steps are slower from then on, so that ranks find the time to talk."""
    place, name, number = MOMENTS[moment]
    original, calls = getattr(place, name), itertools.count(1)

    def struck(*arguments, **knobs):
        count = next(calls)
        result = original(*arguments, **knobs)
        if count == number:
            action()
        if count >= number:
            time.sleep(0.1)
        return result

    setattr(place, name, struck)


def write_down_samples(file):
    """One line per step and rank with the prints that it sees."""
    step, seen, preprocess = loop.optimizer_step, [], setup.Preprocessor.forward

    def prepared(self, batch: Batch, augment, *rest):
        if augment:
            seen.extend(zip(batch.index.tolist(), batch.epoch.tolist(), strict=True))
        return preprocess(self, batch, augment, *rest)

    def stepped(run, batches, pace, meters, progress):
        seen.clear()
        bad = step(run, batches, pace, meters, progress)
        with file.open("a") as lines:
            lines.write(json.dumps({"step": progress.step + 1, "seen": seen}) + "\n")
        return bad

    setup.Preprocessor.forward, loop.optimizer_step = prepared, stepped


def process(name, out, rank, processes, port, words, before):
    """One process of a run; never returns."""
    if processes > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_RANK": str(rank)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for number, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(FOLDER / f"{name}.{rank}.{kind}", os.O_WRONLY | os.O_CREAT), number)
    preemption_monitor.TICK, code = 0.02, 0
    write_down_samples(FOLDER / f"{name}.samples")
    before(rank)
    share = ["--training.batch-size", str(GLOBAL_BATCH // processes), "--out", str(out)]
    sys.argv = [RECIPE, *WORDS, *share, *words]
    try:
        run_recipe(runpy.run_path(RECIPE, run_name="recipe")["CONFIG"], "")
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def launch(name, out, processes, words=(), before=lambda rank: None, hung=False):
    """Runs to the end; exit codes of all ranks (negative: the signal) and seconds.

    With `hung` rank 1 does not end by itself: it is killed when rank 0 has ended.
    """
    port, start = free_port(), time.monotonic()
    children = []
    for rank in range(processes):
        child = os.fork()
        if not child:
            process(name, out, rank, processes, port, words, before)
        children.append(child)
    codes = []
    for child in children:
        if codes and hung:
            os.kill(child, signal.SIGKILL)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return {"codes": codes, "seconds": time.monotonic() - start}


def failing_read(rank):
    """The disk of rank 1 fails in the middle of the run."""

    def broken(self, *arguments):
        if os.environ.get("RANK") == "1" and self.position_of_failure.__next__() == 5:
            raise OSError(5, "Input/output error", "data.arrow")
        return read(self, *arguments)

    from fingerprint_accel.data.shards import Shards

    read, Shards.position_of_failure, Shards.read = Shards.read, itertools.count(), broken


def full_at(place, name, number):
    """The disk is full at a certain write of rank 0."""

    def before(rank):
        original, calls = getattr(place, name), itertools.count(1)

        def written(*arguments):
            if rank == 0 and next(calls) == number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "the file")
            return original(*arguments)

        setattr(place, name, written)

    return before


def little_memory(rank):
    """Rank 1 has room for two prints."""
    from fingerprint_accel.models.deepprint import DeepPrint

    forward = DeepPrint.forward

    def limited(self, image):
        if rank == 1 and self.training and len(image) > 2:
            raise torch.OutOfMemoryError("injected")
        return forward(self, image)

    DeepPrint.forward = limited


def main():
    gc.freeze()  # forks need not look through what they share
    results = {}
    for processes in (1, 2):
        name = f"whole-{processes}"
        results[name] = launch(name, FOLDER / name, processes)
    for number, processes, moment in itertools.product(("SIGKILL", "SIGTERM"), (1, 2), MOMENTS):
        name = f"{number}-{processes}-{moment}"
        victim = 0 if moment == "save" or processes == 1 else 1

        def before(rank, number=number, moment=moment, victim=victim):
            if (number, moment) == ("SIGKILL", "step"):
                preemption_monitor.TICK = 1.0  # training notices before the thread does
            strike(moment, (lambda: os.kill(os.getpid(), getattr(signal, number))) if rank == victim else lambda: None)

        results[name] = launch(name, FOLDER / name, processes, before=before)
        for again in (1, 2) if moment == "step" else (processes,):
            resumed = f"{name}-{again}"
            shutil.copytree(FOLDER / name, FOLDER / resumed)
            results[resumed] = launch(resumed, FOLDER / resumed, again)
    results["ctrl-c"] = launch(
        "ctrl-c", FOLDER / "ctrl-c", 2, before=lambda rank: strike("step", lambda: os.kill(os.getpid(), signal.SIGINT))
    )

    def hang(rank):
        strike("step", (lambda: os.kill(os.getpid(), signal.SIGSTOP)) if rank else lambda: None)

    results["hung"] = launch("hung", FOLDER / "hung", 2, ["--training.timeout", "5"], hang, hung=True)
    for name, before in {
        "full in a save": full_at(checkpoint, "write_tensors", 5),
        "full in a record": full_at(meters.MetricsFile, "write", 3),
        "full at the end": full_at(saved_model, "write_tensors", 1),
    }.items():
        results[name] = launch(name, FOLDER / name, 2, before=before)
        shutil.copytree(FOLDER / name, FOLDER / f"{name}, room again")
        results[f"{name}, room again"] = launch(f"{name}, room again", FOLDER / f"{name}, room again", 2)
    results["failing"] = launch("failing", FOLDER / "failing", 2, before=failing_read)
    every_step = ["--training.log-every", "1"]
    small = ["--training.batch-size", "2", "--training.gradient-accumulation-steps", "2"]
    rehearsed = [*every_step, "--training.auto-micro-batch-size", "yes"]
    results["shrunk"] = launch("shrunk", FOLDER / "shrunk", 2, rehearsed, before=little_memory)
    results["small"] = launch("small", FOLDER / "small", 2, [*rehearsed, *small])
    stopped = FOLDER / "SIGTERM-1-step"
    for name, words in {
        "more micro-batches": ["--training.batch-size", "2", "--training.gradient-accumulation-steps", "4"],
        "another batch": ["--training.batch-size", "2", "--training.gradient-accumulation-steps", "3"],
    }.items():
        shutil.copytree(stopped, FOLDER / name)
        results[name] = launch(name, FOLDER / name, 1, words)
    (FOLDER / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    with contextlib.suppress(FileExistsError):
        FOLDER.mkdir()
    main()
