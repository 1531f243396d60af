"""Format of stored prints. The prints that a model processes must have the format of its training prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fingerprint_accel.errors import require
from fingerprint_accel.untrusted import Fields

LOWEST_PPI, HIGHEST_PPI = 50, 2000
LARGEST_CANVAS = 2048  # pixels


@dataclass(frozen=True)
class PrintInfo:
    """Format of the prints in a dataset, or of the prints that a model was trained on.

    Attributes:
        ppi: resolution, pixels per inch.
        canvas: side of the canvas (the square image of a print), pixels.
        enhanced: whether the ridges were enhanced before the prints were stored.
    """

    ppi: int
    canvas: int
    enhanced: bool = False

    @classmethod
    def read(cls, fields: Fields) -> PrintInfo:
        """Read `ppi`, `canvas` and `enhanced` from the description of a dataset or model.

        Raises:
            UserError: If a value is missing, has another type, or is out of range.
        """
        return cls(
            fields.integer("ppi", LOWEST_PPI, HIGHEST_PPI),
            fields.integer("canvas", 1, LARGEST_CANVAS),
            fields.switch("enhanced", default=False),
        )

    def check_suits(self, wanted: PrintInfo, data: Path | str, synthetic: bool = False) -> None:
        """Check that this format of prints is equal to the format that a model was trained on.

        Args:
            wanted: format of the training prints of the model.
            data: source of the prints, for the error message.
            synthetic: whether `data` is a description of synthetic prints (`synth:...`) instead of a dataset folder.

        Raises:
            UserError: if the formats differ. The message names the remedy.
        """
        for what, option in (("ppi", "--dataset-ppi"), ("canvas", "--canvas")):
            ours, theirs = getattr(wanted, what), getattr(self, what)
            remedy = f"write {what}={ours} in it" if synthetic else f"import or `merge` it with {option} {ours}"
            require(ours == theirs, f"{data}: {what} {theirs}, but the model needs {ours}; {remedy}")
        made = "make a dataset with `synth`, then `merge` it with --enhance"
        remedy = made if synthetic else f"run `merge {data} --enhance`"
        require(self.enhanced or not wanted.enhanced, f"{data}: the model needs enhanced prints; {remedy}")
        require(
            wanted.enhanced or not self.enhanced,
            f"{data}: enhanced, but the model needs prints without enhancement; import them again without --enhance",
        )
