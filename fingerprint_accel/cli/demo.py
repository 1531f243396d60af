"""The verb `demo`."""

from __future__ import annotations

from pathlib import Path


def demo(model: str = "small", gallery: Path | None = None, port: int = 7860) -> None:
    """Opens a page in the browser to drop two prints on, or to search a gallery; Ctrl-C ends it.

    The page shows each print as the network is given it, both laid on each other in the pose that compared best, their
    similarity and what the model's thresholds say, and minutiae where the model has a minutia branch. It is served to
    this machine alone and asks nothing of any other. Dropped prints are deleted when it ends, also by a signal.

    Needs `pip install 'fingerprint-accel[demo]'`.

    fingerprint-accel demo

    fingerprint-accel demo --gallery known --model runs/db1 --port 8000

    Args:
        model: Bundled model, run folder (its best checkpoint), checkpoint folder, or exported model folder.
        gallery: Gallery folder to search, see `enroll`; another can be named on the page.
        port: Where the page is served, http://127.0.0.1:PORT.
    """
    from fingerprint_accel.extraction.demo import demo_command

    demo_command(model, gallery, port)
