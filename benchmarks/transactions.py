"""Compare our parser of ANSI/NIST transactions with `nistitl`: the files that each reads, and their time.

pip install nistitl
python benchmarks/transactions.py FOLDER         # of .an2 files, such as the samples of NIST's biomeval
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import nistitl

from fingerprint_accel.data.ansi_nist import read_transaction

RUNS = 50
READ = "read"


def ours(data: bytes) -> str:
    """Return the number of prints that can be imported, of all images."""
    records = read_transaction(memoryview(data))
    return f"{sum(not record.reason for record in records)} of {len(records)} images"


def theirs(data: bytes) -> str:
    """Return whether `nistitl` reads the file."""
    nistitl.Message().parse(data)
    return READ


def timed(parse: Callable[[bytes], str], data: bytes) -> tuple[str, float]:
    """Return the answer of a parser, or its error, and the median time in microseconds."""
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        try:
            found = parse(data)
        except Exception as error:  # the error of a parser is its result
            found = str(error).split("\n")[0][:60]
        times.append(1e6 * (time.perf_counter() - started))
    return found, statistics.median(times)


def main() -> None:
    """Print a table of all files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    print("| file | ours | us | nistitl | us | ratio |\n|---|---|--:|---|--:|--:|")
    ratios = []
    for path in sorted(parser.parse_args().folder.glob("*.an2*")):
        data = path.read_bytes()
        (our_answer, our_time), (their_answer, their_time) = timed(ours, data), timed(theirs, data)
        ratio = their_time / our_time
        print(f"| {path.name} | {our_answer} | {our_time:.0f} | {their_answer} | {their_time:.0f} | {ratio:.1f} |")
        ratios += [ratio] if their_answer == READ else []
    print(f"ratio where both read: {min(ratios):.1f} to {max(ratios):.1f}, median {statistics.median(ratios):.1f}")


if __name__ == "__main__":
    main()
