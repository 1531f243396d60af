"""Two prints, one number, and what the number means."""

from __future__ import annotations

from pathlib import Path

from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.extractor import open_extractor
from fingerprint_accel.extraction.poses import UPRIGHT, USUAL


def decisions(value: float, thresholds: dict[str, float]) -> list[tuple[str, str]]:
    """Rows to print: for each false match rate the threshold and whether `value` reaches it.

    Args:
        value: similarity of two prints.
        thresholds: similarity by false match rate, as models keep it ("0.001": 0.41).
    """
    rows = []
    for rate, threshold in sorted(thresholds.items(), key=lambda item: -float(item[0])):
        verdict = "match" if value >= threshold else "no match"
        rows.append((f"at FMR {float(rate):.4g}", f"{verdict} (threshold {threshold:.3f})"))
    return rows


def compare_command(reference: Path, probe: Path, model: str, ppi: int, poses: bool) -> None:
    """Prints the similarity of two image files and the decisions at the model's thresholds.

    Raises:
        UserError: no such model, an image without a print, or a ppi that is not positive.
    """
    if ppi <= 0:
        raise UserError(f"--ppi {ppi}: must be above 0")
    extractor = open_extractor(model)
    tried = USUAL if poses else UPRIGHT
    value = extractor.compare(reference, probe, ppi, tried)
    rows = [("similarity", f"{value:.3f}" + (f" (best of {len(tried)} poses)" if poses else ""))]
    thresholds = extractor.notes.get("thresholds_with_poses" if poses else "thresholds", {})
    rows += decisions(value, thresholds)
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {text}" for name, text in rows))
    if not thresholds:
        print(f"{extractor.origin}: keeps no thresholds; measure error rates with `fingerprint-accel evaluate`")
