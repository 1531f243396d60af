"""Measure the generator: its speed, the shares of pattern classes, and the uniqueness of fingers.

python benchmarks/synthesis.py --out FILE.json
python benchmarks/synthesis.py --stages uniqueness --masters 10000 --out FILE.json
"""

import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import tyro
from machine import device_name
from results_file import check_results, write_results
from tqdm import tqdm

from fingerprint_accel.errors import UserError, one_line_errors
from fingerprint_accel.synthesis.geometry import HEIGHT, WIDTH
from fingerprint_accel.synthesis.impressions import impression_keys, render
from fingerprint_accel.synthesis.orientation import CLASSES, SHARES, make_pattern, pattern_classes
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.synthesis.skin import finger_keys, make_masters

STAGES = ("masters", "impressions", "classes", "uniqueness")
ROUNDS = 5
CLASS_FINGERS = 1_000_000
MIDDLE = (slice(HEIGHT // 2 - 80, HEIGHT // 2 + 80), slice(WIDTH // 2 - 64, WIDTH // 2 + 64))  # 16 x 12.8 mm
NEIGHBOURS = 5  # nearest fingers by flow that are compared at all shifts
SHIFT = 40  # pixels to either side: 4 mm


def _rate(work: Callable[[], object], items: int, device: torch.device) -> dict[str, float]:
    """Return items per second: median, slowest and fastest of `ROUNDS` rounds."""
    rates = []
    for _ in range(ROUNDS + 1):  # the first warms up
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        rates.append(items / (time.perf_counter() - started))
    rates = rates[1:]
    return {"per_second": statistics.median(rates), "slowest_round": min(rates), "fastest_round": max(rates)}


def measure_masters(device: torch.device, _: int) -> dict[str, float]:
    """Measure fingers per second."""
    count = 256 if device.type == "cuda" else 16
    fingers = torch.arange(count, device=device)
    return _rate(lambda: make_masters(0, fingers), count, device)


def measure_impressions(device: torch.device, _: int) -> dict[str, float]:
    """Measure impressions per second in the default style."""
    count = 512 if device.type == "cuda" else 128
    masters = make_masters(0, torch.arange(16, device=device))
    which = torch.arange(count, device=device) % 16
    keys = impression_keys(0, which, torch.arange(count, device=device) // 16)
    return _rate(lambda: render(masters, which, keys, Style()), count, device)


def measure_classes(device: torch.device, _: int) -> dict[str, Any]:
    """Measure the shares of pattern classes over a million fingers, beside the requested ones."""
    kinds = pattern_classes(finger_keys(0, torch.arange(CLASS_FINGERS, device=device)))
    found = (torch.bincount(kinds, minlength=len(CLASSES)).double() / CLASS_FINGERS).tolist()
    return {
        name: {"found": share, "asked": SHARES[i]} for i, (name, share) in enumerate(zip(CLASSES, found, strict=True))
    }


def measure_uniqueness(device: torch.device, count: int) -> dict[str, Any]:
    """Measure the similarity of ridges of different fingers: correlation of the middle 16 x 12.8 mm.

    All pairs are compared without shifts. Every finger is compared with its nearest neighbours by flow at all shifts of
    up to 4 mm.
    """
    fingers = torch.arange(count, device=device)
    masters = [make_masters(1, part) for part in tqdm(fingers.split(32), desc="making fingers", unit="32 fingers")]
    ridges = torch.cat([part.ridges for part in masters])
    flow = torch.cat([_flow(part) for part in finger_keys(1, fingers).split(64)])
    in_place = _all_pairs(ridges)
    nearest, flow_likeness = _nearest(flow)
    shifted = torch.stack([_at_all_shifts(ridges, nearest[:, i]) for i in range(NEIGHBOURS)], dim=1)
    same = _at_all_shifts(_worn(ridges[:256]), torch.arange(min(256, count), device=device), ridges)
    best = shifted.max(dim=1).values
    return {
        "fingers": count,
        "pairs": count * (count - 1) // 2,
        "highest correlation as they lie": float(in_place.max()),
        "flow of the nearest neighbour, median (1 is equal)": float(flow_likeness[:, 0].median()),
        "flow of the nearest neighbour, highest": float(flow_likeness[:, 0].max()),
        "correlation with neighbours by flow at the best shift, median": float(best.median()),
        "correlation with neighbours by flow at the best shift, highest": float(best.max()),
        "correlation of a finger with itself under heavy noise, lowest": float(same.min()),
    }


def _flow(keys: torch.Tensor) -> torch.Tensor:
    """Return unit vectors (N, D): doubled ridge direction on a grid of 1 mm over the middle of the finger."""
    field = make_pattern(keys).field[:, MIDDLE[0], MIDDLE[1]][:, ::10, ::10].flatten(1)
    return F.normalize(torch.cat([torch.cos(2 * field), torch.sin(2 * field)], dim=1), dim=1)


def _normalised(ridges: torch.Tensor) -> torch.Tensor:
    """Return ridges with mean 0 and length 1."""
    values = ridges.float().flatten(1)
    return F.normalize(values - values.mean(dim=1, keepdim=True), dim=1)


def _all_pairs(ridges: torch.Tensor) -> torch.Tensor:
    """Return the highest correlation (N,) of each finger with any other, without shifts."""
    middle = ridges[:, MIDDLE[0], MIDDLE[1]]
    highest = torch.full((len(ridges),), -1.0, device=ridges.device)
    for start in tqdm(range(0, len(ridges), 1000), desc="comparing all pairs", unit="1000 fingers"):
        rows = _normalised(middle[start : start + 1000])
        for other in range(0, len(ridges), 1000):
            found = rows @ _normalised(middle[other : other + 1000]).T
            if other == start:
                found.fill_diagonal_(-1)
            highest[start : start + 1000] = torch.maximum(highest[start : start + 1000], found.max(dim=1).values)
    return highest


def _nearest(flow: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the fingers with the most similar flow, (N, NEIGHBOURS) int64, and the similarities, (N, NEIGHBOURS)."""
    found = []
    for start in range(0, len(flow), 1000):
        likeness = flow[start : start + 1000] @ flow.T
        likeness[torch.arange(len(likeness)), start + torch.arange(len(likeness))] = -1
        found.append(likeness.topk(NEIGHBOURS, dim=1))
    return torch.cat([part.indices for part in found]), torch.cat([part.values for part in found])


def _at_all_shifts(ridges: torch.Tensor, others: torch.Tensor, of: torch.Tensor | None = None) -> torch.Tensor:
    """Return the correlation (N,) of the middle of each finger with another finger, at the best shift."""
    of = ridges if of is None else of
    size = (HEIGHT, WIDTH)
    best = []
    for part, other in zip(
        tqdm(ridges.split(50), desc="at all shifts", unit="50 pairs"), others.split(50), strict=True
    ):
        patch = part[:, MIDDLE[0], MIDDLE[1]].float()
        patch = patch - patch.mean(dim=(1, 2), keepdim=True)
        whole = of[other].float()
        area = patch.shape[1] * patch.shape[2]

        def sums(picture: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
            product = torch.fft.rfft2(picture) * torch.fft.rfft2(kernel, s=size).conj()
            top, left = MIDDLE[0].start - SHIFT, MIDDLE[1].start - SHIFT
            return torch.fft.irfft2(product, s=size)[:, top : top + 2 * SHIFT + 1, left : left + 2 * SHIFT + 1]

        ones = torch.ones_like(patch)
        mean = sums(whole, ones) / area
        spread = (sums(whole.square(), ones) - area * mean.square()).clamp_min(1).sqrt()
        norm = patch.square().sum(dim=(1, 2), keepdim=True).sqrt()
        best.append((sums(whole, patch) / (spread * norm)).amax(dim=(1, 2)))
    return torch.cat(best)


def _worn(ridges: torch.Tensor) -> torch.Tensor:
    """Return the same fingers under noise as strong as their ridges."""
    values = ridges.float()
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(0)).to(values.device)
    return values + 85 * noise  # the standard deviation of a sine between 7 and 247


MEASURES: dict[str, Callable[[torch.device, int], dict[str, Any]]] = {
    "masters": measure_masters,
    "impressions": measure_impressions,
    "classes": measure_classes,
    "uniqueness": measure_uniqueness,
}


def main(
    stages: Annotated[str, tyro.conf.arg(metavar="A,B")] = "masters,impressions,classes",
    masters: int = 10_000,
    device: str = "auto",
    out: Path | None = None,
) -> None:
    """Measure the generator, print a table and write JSON.

    Args:
        stages: Any of masters, impressions (per second), classes (shares), uniqueness (13 minutes on two cores).
        masters: Fingers that `uniqueness` compares.
        device: auto, cpu or cuda.
        out: JSON file to write.
    """
    check_results(out)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.device(device)
    results: dict[str, Any] = {}
    for stage in stages.split(","):
        if stage not in MEASURES:
            raise UserError(f"--stages {stage}: there are {', '.join(STAGES)}")
        if masters < NEIGHBOURS + 1:
            raise UserError(f"--masters {masters}: must be at least {NEIGHBOURS + 1}")
        results[stage] = MEASURES[stage](where, masters)
        for name, value in results[stage].items():
            shown = f"{value['found']:.3%} (asked {value['asked']:.1%})" if isinstance(value, dict) else f"{value:,.3f}"
            print(f"{stage:<12} {name:<64} {shown}")
    if out is not None:
        setting = {
            "device": device_name(where), "threads": torch.get_num_threads(), "python": platform.python_version(),
            "torch": torch.__version__, "command": " ".join(sys.argv),
        }  # fmt: skip
        write_results(out, {**results, "setting": setting})
        print(f"written to {out}")


if __name__ == "__main__":
    with one_line_errors("interrupted"):
        tyro.cli(main, description=__doc__)
