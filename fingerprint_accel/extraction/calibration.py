"""Calibration of a model: its decision thresholds, its error rates, and a record of the prints they were measured on.

The calibration is stored in the notes of a model, in its `config.json`. A threshold is valid only for prints similar to
those that it was measured on. Non-mated comparisons of real fingers have higher similarities than those of synthetic
fingers. A threshold measured on synthetic prints would therefore accept many more false matches on real prints than its
FMR states. A calibration on synthetic prints is stored and shown, but never used for decisions.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

from fingerprint_accel.errors import UserError, require
from fingerprint_accel.untrusted import Fields

MOST_PAIRS, MOST_POSES = 10**15, 10**4
NOTE = "calibration"  # key in the notes of a model
LOOSE_NOTES = ("eer", "thresholds", "eer_with_poses", "thresholds_with_poses", "measured_on")
"""Keys in the notes of older models, in place of `NOTE`. They do not record whether the prints were synthetic."""
REMEDY = "measure thresholds on real prints with `fingerprint-accel calibrate MODEL DATASET`"


@dataclass(frozen=True)
class Way:
    """Error rates and thresholds of one comparison method.

    The method is either one embedding per print, or the highest similarity over several poses (rotations and shifts) of
    each print.

    Attributes:
        poses: number of poses in which each print was embedded; the highest similarity over the poses is used.
        prints: number of prints that were compared.
        fingers: number of fingers among these prints.
        mated: number of mated comparisons.
        nonmated: number of non-mated comparisons.
        eer: equal error rate.
        thresholds: dictionary that maps each FMR to the lowest similarity accepted as a match, for example {"0.001":
            0.41}. FMRs below 1 / `nonmated` are left out.
        fnmr: FNMR at each threshold, with the same keys as `thresholds`.
        eer_before: equal error rate of the same comparisons without centring (see `centring`); None if the templates
            are not centred.
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

    @classmethod
    def read(cls, fields: Fields) -> Way:
        """Read the error rates of a comparison method from the notes of a model.

        Raises:
            UserError: if a value is missing or out of range.
        """
        counts = {name: fields.integer(name, 0, MOST_PAIRS) for name in ("prints", "fingers", "mated", "nonmated")}
        thresholds = _rates(fields.part("thresholds"), -2, 2)
        fnmr = _rates(fields.part("fnmr"), 0, 1)
        require(list(fnmr) == list(thresholds), f"calibration: the FMRs of thresholds and fnmr differ; {REMEDY}")
        centred = fields.values.get("eer_before") is not None
        return cls(
            poses=fields.integer("poses", 1, MOST_POSES),
            **counts,
            eer=fields.number("eer", 0, 1),
            thresholds=thresholds,
            fnmr=fnmr,
            eer_before=fields.number("eer_before", 0, 1) if centred else None,
        )


def _rates(fields: Fields, low: float, high: float) -> dict[str, float]:
    """Return numbers by FMR. The FMRs are the keys, as texts.

    Raises:
        UserError: if an FMR is not above 0 and below 1, or a number is out of range.
    """
    for name in fields.values:
        require(
            re.fullmatch(r"0\.0*[1-9]\d{0,9}|[1-9]e-0?\d", name) is not None,
            f"calibration: {name[:40]!r} is no FMR; {REMEDY}",
        )
    return {name: fields.number(name, low, high) for name in fields.values}


@dataclass(frozen=True)
class Calibration:
    """Calibration record of a model: measured error rates and thresholds, and the prints used.

    Attributes:
        source: name of the dataset that the rates were measured on.
        synthetic: whether any print of the dataset was synthetic.
        protocol: description of the pairs that were compared.
        ways: error rates of each comparison method that was measured.
        center: mean template of the prints, encoded by `centring.as_text`; empty for none. The model subtracts it from
            every template, and the error rates were measured with this subtraction.
    """

    source: str
    synthetic: bool
    protocol: str
    ways: list[Way] = field(default_factory=list)
    center: str = ""

    @classmethod
    def from_notes(cls, notes: dict[str, Any]) -> Calibration | None:
        """Read the calibration from the notes of a model; return None if there is none.

        Raises:
            UserError: if the calibration cannot be read.
        """
        if notes.get(NOTE) is None:
            return None
        fields = Fields(notes, "notes of the model", REMEDY).part(NOTE)
        ways = fields.values.get("ways")
        if not isinstance(ways, list) or not all(isinstance(way, dict) for way in ways):
            raise UserError(f"the model's calibration cannot be read (ways is no list of objects); {REMEDY}")
        return cls(
            fields.text("source"),
            fields.switch("synthetic"),
            fields.text("protocol"),
            [Way.read(Fields(way, "calibration of the model", REMEDY)) for way in ways],
            center_of(notes),
        )

    def values(self) -> dict[str, Any]:
        """Return the calibration as a dictionary, to store in the notes of a model."""
        return asdict(self)

    def way(self, poses: int) -> Way | None:
        """Return the error rates for `poses` poses per print, or None if no such rates were measured."""
        return next((way for way in self.ways if way.poses == poses), None)


def center_of(notes: dict[str, Any]) -> str:
    """Return the mean template in the notes of a model, encoded by `centring.as_text`; empty if there is none."""
    record = notes.get(NOTE)
    return str(record.get("center") or "") if isinstance(record, dict) else ""


@dataclass(frozen=True)
class Basis:
    """Thresholds that may be used for decisions, and a sentence for the user that states their source.

    Attributes:
        thresholds: dictionary that maps each FMR to the lowest similarity accepted as a match; empty if no decision is
            possible.
        line: sentence that names the source of the thresholds. Without thresholds it states the reason and a remedy.
    """

    thresholds: dict[str, float]
    line: str


def decision_basis(notes: dict[str, Any], poses: int) -> Basis:
    """Return the thresholds of a model for comparisons in a given number of poses, if they may be used for decisions.

    Args:
        notes: notes of the model.
        poses: number of poses in which prints are compared; 1 for one embedding per print, 0 for poses that no
            calibration covers.

    Raises:
        UserError: if the calibration in the notes cannot be read.
    """
    found = Calibration.from_notes(notes)
    if found is None:
        older = "the model does not record which prints its thresholds were measured on"
        return _none(older if "thresholds" in notes else "the model is not calibrated on real fingers")
    if found.synthetic:
        return _none("the thresholds come from synthetic prints and do not hold on real fingers")
    way = found.way(poses)
    if way is None:
        return _none(f"not calibrated for {'one embedding per print' if poses == 1 else 'the best over these poses'}")
    if not way.thresholds:
        return _none(f"calibrated on {way.nonmated:,} non-mated comparisons, too few for a threshold")
    measured = f"thresholds measured on {found.source}, {found.protocol}, {way.nonmated:,} non-mated comparisons"
    return Basis(way.thresholds, f"{measured} of {way.fingers:,} fingers")


def _none(reason: str) -> Basis:
    """Return a basis without thresholds, which states why no decision is possible."""
    return Basis({}, f"no decision: {reason}; {REMEDY}")
