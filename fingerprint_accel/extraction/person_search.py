"""Search a gallery for a person by several prints of this person, such as a ten-print card.

Each probe is compared with references of its finger position and of unknown position; a probe of unknown position is
compared with all references. The similarities of the fingers of a person are fused, see `metrics.fusion`.

The search has two stages. First, the gallery is searched for each probe, and the persons of the references that are
found are ranked. Then all references of the best of these persons are compared with all probes in all poses. The second
stage is the same for every kind of gallery.
"""

from __future__ import annotations

import sys
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fingerprint_accel.data.listing import list_paths
from fingerprint_accel.data.listing_rows import is_container
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.extraction.enrolment_inputs import Wanted, canvas_of, listed_prints
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.galleries import EnrolledPrints, open_index
from fingerprint_accel.extraction.gallery_parts import Known, NothingSelectedError
from fingerprint_accel.extraction.gallery_search import Hits
from fingerprint_accel.metrics.fusion import best_of_persons, by_finger, fused_score
from fingerprint_accel.similarity import masked_similarity
from fingerprint_accel.text import aligned, printable

CANDIDATES = 1000  # references that the first stage finds for each probe
SHORTLIST = 100  # persons that the second stage compares, at least
HANDS = ("R", "L")
NO_DECISION = "no decision: thresholds hold for comparisons of single prints, not for fused scores"


@dataclass(frozen=True)
class Probes:
    """Prints of one person to search for.

    Attributes:
        embeddings: (M, D) float32 of unit length, or (M, P, D) in P poses.
        positions: finger position code of each print; 0 if unknown.
        skipped: number of prints that could not be read.
    """

    embeddings: np.ndarray
    positions: list[int]
    skipped: int = 0


@dataclass(frozen=True)
class FoundPerson:
    """A person that a search has found.

    Attributes:
        person: name of the person, or name of the print if it was enrolled without a person.
        score: fused score, see `metrics.fusion`.
        fingers: (F,) float32 similarity of each finger of the probes; NaN for fingers that are not compared.
    """

    person: str
    score: float
    fingers: np.ndarray


def are_several(paths: Sequence[Path], key: Sequence[str] = ()) -> bool:
    """Return whether paths of probes can hold more than one print.

    A file that cannot be read counts as one print.

    Args:
        paths: files, folders, csv files and datasets.
        key: fields of ANSI/NIST files that identify the person.
    """
    if len(paths) > 1 or paths[0].is_dir() or paths[0].suffix.lower() == ".csv":
        return True
    # A list of one image would cost a tenth of a second, because pyarrow imports pandas.
    return is_container(Path(), str(paths[0])) and len(list_paths(paths, key=key).table) > 1


@torch.inference_mode()
def read_probes(
    paths: Sequence[Path], extractor: FingerprintExtractor, ppi: int, names: str = "", key: Sequence[str] = ()
) -> Probes:
    """Embed the prints of one person. Prints that cannot be read are listed on stderr and left out.

    Args:
        paths: files, folders, csv files and datasets, as `enrolment.enroll_prints` takes them.
        extractor: model that filled the gallery.
        ppi: resolution of images that do not state theirs, pixels per inch.
        names: regular expression that reads person and finger position from file names; empty for none.
        key: fields of ANSI/NIST files that identify the person.

    Raises:
        UserError: if no print can be read, or if the prints belong to several persons.
    """
    found = listed_prints(paths, extractor, Wanted(names, key, skip_bad=True))
    persons = sorted({each.known.person for each in found.prints} - {""})
    require(
        len(persons) < 2,
        f"the probes belong to several persons ({', '.join(map(printable, persons[:3]))}); search for each alone",
    )
    rows, positions = list[np.ndarray](), list[int]()
    for each in found.prints:
        try:
            canvas = torch.from_numpy(np.stack([canvas_of(each, extractor, ppi)])).to(extractor.device)
        except UserError as error:
            found.refuse(str(error))
            continue
        rows.append(extractor(canvas, extractor.search_poses).cpu().numpy())
        positions.append(each.known.position)
    require(bool(rows), "none of the probes can be read; see the reasons above")
    return Probes(np.concatenate(rows), positions, found.skipped)


def find_persons(
    extractor: FingerprintExtractor,
    gallery: EnrolledPrints,
    probes: Probes,
    top: int,
    indexed: bool = False,
    person: str = "",
) -> tuple[list[FoundPerson], list[int], list[str]]:
    """Search a gallery for the persons whose fingers are most similar to several prints of one person.

    Prints that were enrolled without a person count as one person each.

    Args:
        extractor: model that filled the gallery.
        gallery: gallery to search.
        probes: prints of one person.
        top: number of persons to return.
        indexed: the first stage uses an index; see `galleries.open_index`.
        person: compare only references of this person; empty for all.

    Returns:
        The persons, best first; the finger position codes of their `fingers` (0 if unknown); and two lines of text, a
        description of the search and the reason why no decision is shown.

    Raises:
        UserError: if the gallery has no print to compare with, if `top` is below 1, or if the index cannot be built.
    """
    require(top >= 1, f"--top {top}: must be at least 1")
    index = open_index(gallery) if indexed else None
    if index and index.added:
        print(f"{index.added:,} prints added to the index", file=sys.stderr)
    started = time.perf_counter()
    hits, missing = dict[int, Hits](), list[NothingSelectedError]()
    for position in sorted(set(probes.positions)):
        rows = [row for row, each in enumerate(probes.positions) if each == position]
        try:
            among = gallery.selected(position, person) if len(gallery) else None
        except NothingSelectedError as error:
            missing.append(error)
            continue
        some = probes.embeddings[rows]
        found = (
            index.search(some, CANDIDATES, among)
            if index
            else gallery.search(some, CANDIDATES, extractor.device, among)
        )
        hits |= {row: found.of_probe(place) for place, row in enumerate(rows)}
    if not hits:
        raise missing[0]
    names, scores = _compared(gallery, probes, _shortlist(gallery, hits, probes.positions, max(SHORTLIST, 10 * top)))
    fingers, codes = by_finger(scores, probes.positions)
    total = fused_score(fingers)
    best = np.argsort(-total, kind="stable")[:top].tolist()
    milliseconds = 1000 * (time.perf_counter() - started)
    persons = [FoundPerson(names[row], float(total[row]), fingers[row]) for row in best if np.isfinite(total[row])]
    told = f"{len(probes.positions)} probes compared with {len(gallery):,} prints in {milliseconds:.0f} ms"
    told += f"; {probes.skipped} probes skipped" if probes.skipped else ""
    return persons, codes, [told, NO_DECISION]


def _shortlist(
    gallery: EnrolledPrints, hits: dict[int, Hits], probe_positions: Sequence[int], most: int
) -> tuple[list[str], list[int]]:
    """Choose the persons that are compared with all probes.

    A person is ranked by the higher of two estimates of the fused score. The first takes only the probes that have
    found the person. The second takes for every other probe the similarity of the last reference that the probe has
    found, because all other references are less similar.

    Args:
        gallery: gallery that was searched.
        hits: references that each probe has found, (k,) each, by number of the probe.
        probe_positions: finger position code of each probe; 0 if unknown.
        most: largest number of persons to return.

    Returns:
        Names of persons, and rows of prints without a person.
    """
    rows = np.unique(np.concatenate([each.row for each in hits.values()]))
    known = gallery.known(rows)
    names, persons = np.unique([_person(each) for each in known], return_inverse=True)
    found = np.full((len(names), len(probe_positions)), -np.inf, np.float32)
    estimated = np.full(found.shape, np.nan, np.float32)
    for probe, each in hits.items():
        np.maximum.at(found[:, probe], persons[np.searchsorted(rows, each.row)], each.similarity)
        estimated[:, probe] = each.similarity[-1] if len(each.row) == CANDIDATES else np.nan
    listed = np.where(found == -np.inf, np.nan, found)
    both = [listed, np.where(np.isnan(listed), estimated, listed)]
    total = np.maximum(*(fused_score(by_finger(scores, probe_positions)[0]) for scores in both))
    chosen = set(np.argsort(-total, kind="stable")[:most].tolist())
    alone = [
        int(row) for row, each, person in zip(rows, known, persons, strict=True) if not each.person and person in chosen
    ]
    return sorted(
        {each.person for each, person in zip(known, persons, strict=True) if each.person and person in chosen}
    ), alone


def _compared(
    gallery: EnrolledPrints, probes: Probes, shortlist: tuple[list[str], list[int]]
) -> tuple[list[str], np.ndarray]:
    """Compare all references of some persons with all probes.

    Args:
        gallery: gallery that was searched.
        probes: prints to search for.
        shortlist: names of persons, and rows of prints without a person.

    Returns:
        Names of P persons, and similarities (P, M) of their best references with M probes; NaN for probes that no
        reference of a person is compared with.
    """
    named, alone = shortlist
    rows = np.concatenate([gallery.of_persons(named), np.array(alone, np.int64)])
    known, vectors = gallery.known(rows), gallery.vectors(rows)
    names, persons = np.unique([_person(each) for each in known], return_inverse=True)
    poses = probes.embeddings.reshape(len(probes.positions), -1, gallery.dims)
    similarities = np.stack([masked_similarity(vectors, each, gallery.cells).max(axis=1) for each in poses])
    positions, theirs = (np.array(values) for values in ([each.position for each in known], probes.positions))
    return [name[1:] for name in names.tolist()], best_of_persons(
        similarities.clip(-1, 1), persons, positions, theirs, len(names)
    )


def _person(known: Known) -> str:
    """Return 1 and the name of the person of a print in Unicode form NFC; 0 and the name of a print without a person.

    The first character distinguishes a print from a person of the same name.
    """
    return f"1{unicodedata.normalize('NFC', known.person)}" if known.person else f"0{known.name}"


def table(persons: Sequence[FoundPerson], codes: Sequence[int]) -> str:
    """Format persons as a table with the columns rank, fused score, number of compared fingers, fingers and person.

    Fingers R1 to R5 are those of the right hand from the thumb to the little finger, L1 to L5 those of the left hand.
    Fingers of unknown position are ?1, ?2 and so on.

    Args:
        persons: persons that `find_persons` has found.
        codes: finger position codes of the fingers.
    """
    unknown = iter(range(1, len(codes) + 1))
    titles = [f"{HANDS[code > 5]}{(code - 1) % 5 + 1}" if 1 <= code <= 10 else f"?{next(unknown)}" for code in codes]
    rows, last = [("rank", "score", "fingers", *titles)], ["person"]
    for rank, each in enumerate(persons, 1):
        similarities = ["-" if np.isnan(value) else f"{value:.3f}" for value in each.fingers.tolist()]
        count = int((~np.isnan(each.fingers)).sum())
        rows.append((str(rank), f"{each.score:.3f}", str(count), *similarities))
        last.append(printable(each.person))
    return "\n".join(f"{line}  {name}" for line, name in zip(aligned(rows, words=0).splitlines(), last, strict=True))
