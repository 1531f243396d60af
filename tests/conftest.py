from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

gc.disable()  # imports and tests that are collected make half a million objects and no garbage
TEST_PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if TEST_PROCESSES > 1:  # they share the cores; libraries read this when they are imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from accelerate.state import AcceleratorState, GradientState  # noqa: E402

if TYPE_CHECKING:
    from fingerprint_accel.extraction.extractor import FingerprintExtractor

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_finish() -> None:
    """Leave the objects of modules and tests out of every later search for garbage, which takes 5 % of the suite."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    gc.enable()


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Undo what a test does to the number of threads: more threads than cores wait for each other and use the cores."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real fingerprints beside the repository; they are private, so tests on them need them to be there."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real fingerprints in {folder}")
    return folder


@pytest.fixture(scope="session")
def prints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder of 24 synthetic fingers with 4 impressions each."""
    from filelock import FileLock

    from fingerprint_accel.synthesis.sensors import Style
    from fingerprint_accel.synthesis.writing import write_synthetic_dataset

    here = tmp_path_factory.getbasetemp()
    folder = (here.parent if TEST_PROCESSES > 1 else here) / "prints"
    with FileLock(folder.with_suffix(".lock")):  # one process makes it for all
        if not folder.exists():
            write_synthetic_dataset(folder, 24, 4, seed=3, style=Style(quality="clean"), workers=1, progress=False)
    return folder


@pytest.fixture(scope="session")
def calibrated_notes() -> Callable[..., dict[str, Any]]:
    """Makes the notes of a model that was calibrated on 2,880 non-mated comparisons of ten fingers, from the thresholds
    of prints as they are and of the best of 45 poses."""
    from fingerprint_accel.extraction.calibration import Calibration, Way

    def notes(
        as_is: dict[str, float], posed: dict[str, float] | None = None, synthetic: bool = False
    ) -> dict[str, Any]:
        both = [(1, as_is)] + ([] if posed is None else [(45, posed)])
        ways = [
            Way(poses, 80, 10, 280, 2880, 0.05, found, {fmr: min(max(value, 0.0), 1.0) for fmr, value in found.items()})
            for poses, found in both
        ]
        return {"calibration": Calibration("scans", synthetic, "all-pairs", ways).values()}

    return notes


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], bool]:
    """Tells whether a file or folder was flushed to the disk, by any of its names."""
    flush, done = os.fsync, set()

    def recorded(descriptor: int) -> None:
        stated = os.fstat(descriptor)
        done.add((stated.st_dev, stated.st_ino))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    return lambda path: (path.stat().st_dev, path.stat().st_ino) in done


@pytest.fixture(scope="session")
def spread_out() -> Callable[[FingerprintExtractor, np.ndarray], None]:
    """Makes random weights tell prints apart, by moving the last biases until embeddings of `canvases` centre on 0.

    Embeddings of any two prints by an untrained network have a cosine above 0.999: tests would compare rounding.
    """

    def spread(extractor: FingerprintExtractor, canvases: np.ndarray) -> None:
        branches = (extractor.model.texture_branch, extractor.model.minutia_branch)
        for layer in [branch[-1] for branch in branches if branch is not None]:
            outputs: list[torch.Tensor] = []
            hook = layer.register_forward_hook(lambda *args, found=outputs: found.append(args[2]))
            extractor(torch.from_numpy(canvases))
            hook.remove()
            layer.bias.data -= outputs[0].mean(dim=0)

    return spread


def _forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """Starts and leaves the test with Accelerate's singletons empty, as in a new process."""
    _forget()
    yield
    _forget()


@pytest.fixture
def embedded():
    """Embeddings that a model could have made: (fingers * impressions, 16), finger and impression of each."""

    def make(fingers=12, impressions=4, noise=0.7, seed=0):
        rng = np.random.default_rng(seed)
        finger = np.repeat(np.arange(fingers), impressions)
        vectors = rng.normal(size=(fingers, 16))[finger] + noise * rng.normal(size=(len(finger), 16))
        return vectors.astype(np.float32), finger, np.tile(np.arange(impressions), fingers)

    return make
