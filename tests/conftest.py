from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real fingerprints beside the repository; they are private, so tests on them need them to be there."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real fingerprints in {folder}")
    return folder


@pytest.fixture(scope="session")
def prints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder of 24 ridge-like fingers with 4 impressions each."""
    from fingerprint_accel.synthesis.simple import write_simple_dataset

    folder = tmp_path_factory.mktemp("data") / "prints"
    write_simple_dataset(folder, fingers=24, impressions_per_finger=4, seed=3, progress=False)
    return folder


def _forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """Starts and leaves the test with Accelerate's singletons empty, as in a new process."""
    _forget()
    yield
    _forget()
