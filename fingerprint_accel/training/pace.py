"""Report the time per step and the remaining time of a run.

On a CPU, both times are estimated before the first step. On all devices, both are measured in the first steps.
"""

from __future__ import annotations

import time

import torch

from fingerprint_accel.training.memory import rehearsal, rehearse
from fingerprint_accel.training.setup import Run

WARM_UP, MEASURED = 2, 5  # number of first steps that are not measured, and the step after which times are reported
EARLY = 60.0  # seconds after which a slow run on a CPU reports times before step MEASURED
REHEARSED = (2, 4)  # prints in two rehearsals; the first also initialises kernels, so the second is measured
SLOW_STEP = 10.0  # seconds per step above which the estimate is printed
HOPELESS, HOPELESS_COMPACT = 3600.0, 12 * 3600.0  # seconds of a run above which a warning is printed; compact trunk
QUICK = 20_000  # prints on which the compact trunk can train in less than HOPELESS_COMPACT on any CPU


def duration(seconds: float) -> str:
    """Format a duration in seconds as text with a suitable unit, such as `45 s`, `38 min`, `5.2 h` or `3.1 days`."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def forecast(run: Run, step: int, position: int) -> str:
    """Estimate the duration of a run on a CPU from the time of two small micro-batches.

    Args:
        run: The run, before its first step.
        step: Number of optimizer steps done, if the run resumes.
        position: Number of prints that the run has already read from the stream of training prints.

    Returns:
        One line for the user if steps are slow or the run would take too long, else "". Always "" on a GPU.
    """
    training, model, left = run.config.training, run.config.model, run.steps - step
    compiles = run.accelerator.is_fsdp2 or training.compile != "no"
    compact = model.trunk == "compact"
    quick = compact and left * run.samples_per_step < QUICK
    if run.accelerator.device.type != "cpu" or compiles or quick or left < 1:
        return ""
    with rehearsal(run):
        for size in REHEARSED:
            start = time.perf_counter()
            rehearse(run, step, position, size)
            seconds = time.perf_counter() - start
            if seconds > SLOW_STEP:  # slow enough for a report without a second rehearsal
                break
    per_print = seconds / size
    per_step = per_print * training.batch_size * training.gradient_accumulation_steps
    hopeless = left * per_step > (HOPELESS_COMPACT if compact else HOPELESS)
    if per_step < SLOW_STEP and not hopeless:
        return ""
    line = f"estimate for this CPU: about {duration(per_step)} per step, {duration(left * per_step)} for {left} steps"
    if not hopeless:
        return line
    if compact:
        return f"warning: {line}; train on a GPU, or set fewer --training.epochs or --training.steps"
    return (
        f"warning: {line}. Trunk {model.trunk} at {run.config.preprocess.size} pixels is slow on a CPU. Use a GPU or "
        "recipes/finetune.py, or add --model.trunk compact --preprocess.crop 256 --preprocess.size 160"
    )


class Pace:
    """Measures the time per step at the start of a run, without the slow first steps, validation and saving.

    Args:
        run: The run.
        step: Number of optimizer steps done, if the run resumes.
    """

    def __init__(self, run: Run, step: int) -> None:
        self.device, self.first, self.steps = run.accelerator.device, step, run.steps
        self.validates = run.validation is not None
        self.slow_start = self.device.type != "cpu" or run.config.training.compile != "no"
        self._marks = [time.perf_counter()]
        self._reported = False

    def pause(self, seconds: float) -> None:
        """Exclude a pause of the given duration since the last step from the measurement."""
        self._marks = [mark + seconds for mark in self._marks]

    def after_step(self, step: int) -> str:
        """Record the time at the end of a step, and return a line for the user once enough steps are measured.

        Args:
            step: Number of optimizer steps done.

        Returns:
            A line with the time per step and the remaining time, once per run; "" after all other steps.
        """
        if self._reported:
            return ""
        done = step - self.first
        if self.device.type == "cuda" and done in (WARM_UP, MEASURED):  # synchronise only twice in a run
            torch.cuda.synchronize(self.device)
        self._marks.append(time.perf_counter())
        early = not self.slow_start and self._marks[-1] - self._marks[0] > EARLY
        if done < MEASURED and not early:
            return ""
        self._reported = True
        start = min(WARM_UP, done - 1)
        per_step = (self._marks[-1] - self._marks[start]) / (done - start)
        left = self.steps - step
        if left < 1:
            return ""
        validation = ", without validation" if self.validates else ""
        return (
            f"step {step} of {self.steps}: {duration(per_step)} per step, about {duration(left * per_step)} left"
            f"{validation}"
        )
