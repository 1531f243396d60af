"""Let parsers read many changed files, in children with bounds on time and memory.

A changed file may be accepted, with an unchanged result if the format has checksums, or refused in one line that names
it. Everything else is a failure: another result, another exception, a crash, 2 s of processor time, 512 MB.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .children import Child, resident
from .documents import sign
from .lab import Lab
from .parsers import Parser, Read, Refused
from .results import Outcome, Trial

SECONDS, MEGABYTES = 2.0, 512.0  # budget of an input
PATIENCE = 8.0  # seconds after which an input counts as hanging
MOST_MEMORY = 3 * 2**29  # bytes above those of this process after which a child is killed
SPACE = 2**33  # bytes of address space that an input may add
KINDS = ("recovered", "named", "silent", "traceback", "beyond budget", "crash")
STATE = struct.Struct("qddd")  # current input, start of the input, most seconds, most megabytes


class Change(NamedTuple):
    """Change of a file.

    Attributes:
        apply: Function that changes the file at a path.
        signed: Whether the checksums in the folder are made to fit the changed file.
    """

    apply: Callable[[Path], object]
    signed: bool = False


class Batch:
    """One batch of inputs of a parser.

    Args:
        lab: The lab.
        trial: The trial.
        parser: The parser.
        count: Number of inputs.
        change: Function that returns the change that makes input `number`.
    """

    def __init__(self, lab: Lab, trial: Trial, parser: Parser, count: int, change: Callable[[int], Change]) -> None:
        self.lab, self.trial, self.count = lab, trial, count
        self.parser, self.change = parser, change
        self.shared = mmap.mmap(-1, STATE.size + count)
        self.details: dict[int, str] = {}
        self.place = lab.work / "input"
        self.notes = lab.work / "notes.jsonl"

    def run(self) -> Outcome:
        """Give all inputs to the parser."""
        start, outcome = 0, Outcome()
        while start < self.count:
            start = self._work_from(start)
        for number, code in enumerate(self.codes):
            outcome.note(KINDS[code], "" if code < 2 else self._detail(number))
        _, _, seconds, megabytes = STATE.unpack(self.shared[: STATE.size])
        outcome.measure(seconds, megabytes)
        return outcome

    @property
    def codes(self) -> bytes:
        """Outcome of each input, as an index into `KINDS`."""
        return self.shared[STATE.size :]

    def _detail(self, number: int) -> str:
        """Return what was wrong with an input."""
        return f"input {number} (failures/{self._name(number)}): {self.details.get(number, '')}"

    def _work_from(self, start: int) -> int:
        """Work on the inputs from `start` in a child; return the first input that is still to do."""
        self.notes.write_text("")
        self._set(start, time.monotonic())
        child = Child(lambda: self._serve(start), self.lab.work, environment={"TMPDIR": str(self.lab.work)})
        exceeds = ""
        while child.runs(0.02):
            _, began, *_ = STATE.unpack(self.shared[: STATE.size])
            if time.monotonic() - began > PATIENCE:
                exceeds = f"no answer in {PATIENCE:.0f} s"
            elif (memory := child.resident() - resident()) > MOST_MEMORY:
                exceeds = f"{memory / 2**20:.0f} MB"
            if exceeds:
                child.kill_group()
        ended = child.wait()
        for line in self.notes.read_text().splitlines():
            note = json.loads(line)
            self.details[note["input"]] = note["detail"]
        current = STATE.unpack(self.shared[: STATE.size])[0]
        if ended.code == 0:
            return self.count
        if current < 0:
            raise RuntimeError(f"{self.parser.name}: the valid file cannot be read: {ended.err[-2000:]}")
        if ended.code == 1:
            raise RuntimeError(f"{self.trial.key}, input {current}: {ended.err[-3000:]}")
        text = exceeds or f"exit code {ended.code}, {ended.err[-300:]}"
        self._finish(current, "beyond budget" if exceeds else "crash", text)
        self._keep(current)
        return current + 1

    def _set(self, current: int, began: float) -> None:
        _, _, seconds, megabytes = STATE.unpack(self.shared[: STATE.size])
        self.shared[: STATE.size] = STATE.pack(current, began, seconds, megabytes)

    def _finish(self, number: int, kind: str, detail: str = "") -> None:
        self.shared[STATE.size + number] = KINDS.index(kind)
        self.details[number] = detail

    def _keep(self, number: int) -> None:
        """Keep an input that failed."""
        folder = self.lab.folder / "failures"
        folder.mkdir(exist_ok=True)
        file = self._copy(self.change(number))
        if file.is_file() and file.stat().st_size < 2**20:
            shutil.copyfile(file, folder / self._name(number))

    def _name(self, number: int) -> str:
        words = f"{self.trial.fault} {self.parser.name}" if self.trial.fault != self.parser.name else self.parser.name
        plain = "".join(letter if letter.isalnum() else "-" for letter in words)
        return f"{plain}-{self.trial.number}-{number}"

    def _serve(self, start: int) -> None:
        """Read the inputs from `start`; in a child."""
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        self._set(-1, time.monotonic())
        read = self.parser.begin(self.lab.material)
        for _ in range(2):  # the first read imports modules and fills caches
            kind, expected = self._attempt(read, self._copy(None), "")
            if kind != ("recovered" if self.parser.accepts else "named"):
                raise RuntimeError(expected)
        space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (space + SPACE, resource.RLIM_INFINITY))
        for number in range(start, self.count):
            change = self.change(number)
            file = self._copy(change)
            self._set(number, time.monotonic())
            usage = Usage()
            kind, detail = self._attempt(read, file, "" if change.signed or not self.parser.kept else expected)
            seconds, megabytes = usage.measured()
            if seconds > SECONDS or megabytes > MEGABYTES:
                kind, detail = "beyond budget", f"{seconds:.1f} s, {megabytes:.0f} MB; {kind} {detail}"
            self._note(number, kind, detail, seconds, megabytes)

    def _note(self, number: int, kind: str, detail: str, seconds: float, megabytes: float) -> None:
        current, began, most_seconds, most_megabytes = STATE.unpack(self.shared[: STATE.size])
        most = max(seconds, most_seconds), max(megabytes, most_megabytes)
        self.shared[: STATE.size] = STATE.pack(current, began, *most)
        self.shared[STATE.size + number] = KINDS.index(kind)
        if kind not in ("recovered", "named"):
            with self.notes.open("a") as file:
                file.write(json.dumps({"input": number, "detail": detail[:600]}) + "\n")
            self._keep(number)

    def _copy(self, change: Change | None) -> Path:
        """Copy the folder of the parser, and change its file; return the file."""
        shutil.rmtree(self.place, ignore_errors=True)
        assert not self.place.exists(), self.place
        source = self.lab.material / self.parser.folder
        if self.parser.folder == "files":  # one file of many
            self.place.mkdir()
            for name in {self.parser.file, "image.png"}:
                shutil.copy(source / name, self.place / name)
        else:
            shutil.copytree(source, self.place)
        file = next(self.place.glob(self.parser.file))
        if change is not None:
            change.apply(file)
            if change.signed:
                sign(self.place, file)
        return file

    def _attempt(self, read: Read, file: Path, expected: str) -> tuple[str, str]:
        """Read the folder; return the kind of outcome, and the result or the reason."""
        from fingerprint_accel.errors import UserError

        try:
            found = read(self.place)
        except Refused as error:
            return "named", str(error)
        except UserError as error:
            text = str(error)
            if "\n" in text or len(text) > 1000:
                return "traceback", f"the message has several lines or is long: {text[:200]!r}"
            named = any(str(place) in text for place in (self.place, file))
            return ("named", text) if named else ("traceback", f"the message does not name the file: {text}")
        except Exception as error:
            return "traceback", f"{type(error).__name__}: {str(error)[:200]} {_where(error)}"
        if expected and not expected.startswith(found) and not self._edited(file):
            return "silent", f"accepted, and the result differs ({found} instead of {expected})"
        return "recovered", found

    def _edited(self, file: Path) -> bool:
        """Return whether the checksum was removed from a JSON file, as from a file that was edited on purpose."""
        source = self.lab.material / self.parser.folder / file.relative_to(self.place)
        try:
            before, after = (json.loads(path.read_bytes()) for path in (source, file))
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(after, dict) and "checksum" in before and "checksum" not in after


class Usage:
    """Processor time and memory of this process and its children since the start of an input."""

    def __init__(self) -> None:
        with Path("/proc/self/clear_refs").open("w") as file:
            file.write("5")  # resets the peak of the resident memory
        self._memory, self._seconds = resident(), _processor_time()

    def measured(self) -> tuple[float, float]:
        """Return the seconds and megabytes that were used."""
        status = Path("/proc/self/status").read_text()
        peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
        return _processor_time() - self._seconds, max(0.0, (peak - self._memory) / 2**20)


def _processor_time() -> float:
    """Return the processor time of this process and its children, in seconds."""
    seconds = time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    for thread in Path("/proc/self/task").iterdir():
        for number in _text(thread / "children").split():
            fields = _text(Path(f"/proc/{number}/stat")).rpartition(")")[2].split()
            if fields:
                seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def _text(path: Path) -> str:
    """Return the content of a file in /proc; empty if its process or thread has ended."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _where(error: BaseException) -> str:
    """Return the place in the package where an exception was raised."""
    place, found = error.__traceback__, ""
    while place is not None:
        name = place.tb_frame.f_code.co_filename
        if "fingerprint_accel" in name:
            found = f"({Path(name).name}:{place.tb_lineno})"
        place = place.tb_next
    return found
