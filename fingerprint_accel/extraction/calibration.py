"""What a model decides by: thresholds with the prints that they were measured on, kept in its notes as one record.

A threshold holds for prints like those that it was measured on. Different real fingers are more alike to a network than
different synthetic ones, so a threshold from synthetic prints accepts far more of them than it claims; such a record is
kept and shown, but nothing is decided by it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from fingerprint_accel.errors import UserError

NOTE = "calibration"  # its name among a model's notes
LOOSE_NOTES = ("eer", "thresholds", "eer_with_poses", "thresholds_with_poses", "measured_on")
"""Notes of older exports, which the record replaces. They do not say whether the prints were synthetic."""
REMEDY = "`fingerprint-accel calibrate MODEL DATASET` measures thresholds on real prints"


@dataclass(frozen=True)
class Way:
    """Error rates of one way of comparing.

    Attributes:
        poses: in which prints were compared, the best of which counts; 1: as they are.
        prints, fingers: that took part.
        mated, nonmated: number of comparisons.
        eer: equal error rate.
        thresholds: lowest similarity accepted, by FMR ("0.001": 0.41); only rates that `nonmated` can resolve.
        fnmr: at these thresholds, by the same names.
        eer_before: of the same comparisons without the centre; None where there is no centre.
    """

    poses: int
    prints: int
    fingers: int
    mated: int
    nonmated: int
    eer: float
    thresholds: dict[str, float]
    fnmr: dict[str, float]
    eer_before: float | None = None


@dataclass(frozen=True)
class Calibration:
    """The record.

    Attributes:
        source: name of the dataset.
        synthetic: whether any of its prints was synthetic.
        protocol: which prints were compared.
        ways: prints as they are, and best over poses where that was measured.
        center: mean template of the prints, as `centring.as_text` writes it, which the model takes away from every
            template; empty: none. The rates hold behind it.
    """

    source: str
    synthetic: bool
    protocol: str
    ways: list[Way] = field(default_factory=list)
    center: str = ""

    @classmethod
    def from_notes(cls, notes: dict[str, Any]) -> Calibration | None:
        """The record among a model's notes, or None; UserError where it cannot be read."""
        values = notes.get(NOTE)
        if values is None:
            return None
        try:
            facts = str(values["source"]), bool(values["synthetic"]), str(values["protocol"])
            return cls(*facts, [Way(**way) for way in values["ways"]], center_of(notes))
        except (KeyError, TypeError) as error:
            raise UserError(f"the model's calibration cannot be read ({error}); {REMEDY}") from error

    def values(self) -> dict[str, Any]:
        """For the notes."""
        return asdict(self)

    def way(self, poses: int) -> Way | None:
        """Rates of comparing in so many poses, where they were measured."""
        return next((way for way in self.ways if way.poses == poses), None)


def center_of(notes: dict[str, Any]) -> str:
    """The centre among a model's notes, as `centring.as_text` writes it; empty where it has none."""
    record = notes.get(NOTE)
    return str(record.get("center") or "") if isinstance(record, dict) else ""


@dataclass(frozen=True)
class Basis:
    """What decisions rest on.

    Attributes:
        thresholds: lowest similarity accepted, by FMR; empty where nothing may be decided.
        line: where they come from; or why there are none, and what to do about it.
    """

    thresholds: dict[str, float]
    line: str


def decision_basis(notes: dict[str, Any], poses: int) -> Basis:
    """The thresholds that a model with these notes may decide by where prints are compared in so many poses: 1 is as
    they are, 0 is poses for which no model keeps thresholds.

    Raises:
        UserError: a calibration that cannot be read.
    """
    found = Calibration.from_notes(notes)
    if found is None:
        older = "the thresholds do not say what they were measured on, so " if "thresholds" in notes else ""
        return _none(f"{older}the model is not calibrated on real fingers")
    if found.synthetic:
        return _none("the thresholds come from synthetic prints and do not hold on real fingers")
    way = found.way(poses)
    if way is None:
        return _none(f"not calibrated for comparing prints {'as they are' if poses == 1 else 'best over these poses'}")
    if not way.thresholds:
        return _none(f"calibrated on {way.nonmated:,} non-mated comparisons, too few for a threshold")
    measured = f"thresholds measured on {found.source}, {found.protocol}, {way.nonmated:,} non-mated comparisons"
    return Basis(way.thresholds, f"{measured} of {way.fingers:,} fingers")


def _none(reason: str) -> Basis:
    return Basis({}, f"no decision: {reason}; {REMEDY}")
