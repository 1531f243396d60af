"""What has to be the same of all prints that one model sees."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fingerprint_accel.errors import require


@dataclass(frozen=True)
class PrintInfo:
    """Resolution (pixels per inch) and side (pixels) of prints, and whether they are stored enhanced."""

    ppi: int
    canvas: int
    enhanced: bool = False

    def check_suits(self, wanted: PrintInfo, data: Path | str, synthetic: bool = False) -> None:
        """Checks these prints against those that a model was trained on.

        Args:
            wanted: the prints that the model was trained on.
            data: where these prints come from, for the message.
            synthetic: `data` is a source (`synth:...`), not a dataset folder; its remedies are others.

        Raises:
            UserError: they differ. The message names the remedy.
        """
        for what, option in (("ppi", "--dataset-ppi"), ("canvas", "--canvas")):
            ours, theirs = getattr(wanted, what), getattr(self, what)
            remedy = f"write {what}={ours} in it" if synthetic else f"import or `merge` it with {option} {ours}"
            require(ours == theirs, f"{data}: {what} {theirs}, the model wants {ours}; {remedy}")
        made = "make a dataset with `synth`, then `merge` it with --enhance"
        remedy = made if synthetic else f"`merge {data} --enhance` makes them"
        require(self.enhanced or not wanted.enhanced, f"{data}: the model wants enhanced prints; {remedy}")
        require(
            wanted.enhanced or not self.enhanced,
            f"{data}: enhanced, the model wants prints as they are; import them again without --enhance",
        )
