"""Processes that share a piece of work over a folder that all of them see, as a launcher has started them.

`accelerate launch` and `torchrun` say in the environment which process this is. The main process makes the folder ready
and says what is missing, each process makes its share, and the main one waits for all and joins them. What counts is
what lies in the folder; over the launcher's key-value store they tell each other how they fare, so that one that fails
or is lost ends the others. A process that was started by itself loads and does nothing for all this.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from fingerprint_accel.errors import LostProcessError, UserError, exit_code

T = TypeVar("T")
JOINING = 300.0  # seconds for all processes to start
SILENCE = 120.0  # seconds without a sign of life after which a process counts as lost
BEAT, CHECK, LOOK_AGAIN = 5.0, 1.0, 0.2  # seconds between two signs, between two looks at those of others, at a folder
UNSEEN = 90.0  # seconds for a network file system to show a new file
FAREWELL = 5.0  # seconds for the others to hear the last words, where the store ends with this process
GO_ON = "the same command goes on from what is made"
VARIABLES = {  # as accelerate reads them: torchrun, Intel MPI or MPICH, Open MPI, MVAPICH
    "rank": ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"),
    "size": ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"),
    "local_rank": ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
    "local_size": ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"),
}


def place_in_launch() -> dict[str, int]:
    """Rank, size, local rank and local size, as the environment has them; 0 of 1 where it names no rank."""
    if not any(os.environ.get(variable) for variable in VARIABLES["rank"]):  # scripts for SLURM may set the size alone
        return {"rank": 0, "size": 1, "local_rank": 0, "local_size": 1}
    found = {}
    for name, variables in VARIABLES.items():
        values = [os.environ[variable] for variable in variables if os.environ.get(variable)]
        found[name] = int(values[0]) if values else int(name.endswith("size"))
    return found


class Launch:
    """The processes of a launch, as one of them sees them; by default one alone.

    Args:
        rank: of this process, from 0.
        size: number of processes.
        local_rank, local_size: the same among those on this machine.
        store: torch's key-value store that all of them reach.
        silence: seconds without a sign of life after which a process counts as lost.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        local_rank: int = 0,
        local_size: int = 1,
        store: Any = None,
        silence: float = SILENCE,
    ) -> None:
        self.rank, self.size, self.local_rank, self.local_size = rank, size, local_rank, local_size
        self.silence = silence
        self._store = store
        self._turn = 0
        self._next_check = 0.0
        self._heard: dict[int, tuple[int, float]] = {}  # by rank: signs of life, and when the last one came
        self._leaving = threading.Event()

    @property
    def main(self) -> bool:
        """Whether this is the process that prepares, joins, and talks."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """What this process is to do of `items`, which are the same on all."""
        return items[self.rank :: self.size]

    def first(self, work: Callable[[], T]) -> T:
        """What `work` returns on the main process, which does it before any goes on; it travels as JSON."""
        if self.size == 1:
            return work()
        self._turn += 1
        key = f"first/{self._turn}"
        if self.main:
            result = work()
            self._ask("set", key, json.dumps(result))
            return result
        self.wait(lambda: self._ask("check", [key]))
        found: T = json.loads(self._ask("get", key))
        return found

    def see(self, stored: Callable[[], dict[str, Any] | None], ours: dict[str, Any], folder: Path) -> None:
        """Waits until this process reads in `folder` what the main one has written there: `ours`.

        Raises:
            UserError: it never does.
        """
        deadline = time.monotonic() + UNSEEN
        while not self.main and (there := stored()) != ours:
            if time.monotonic() > deadline:
                raise UserError(f"{folder}: process {self.rank} of {self.size} {_difference(there, ours)}")
            self.check()
            time.sleep(LOOK_AGAIN)

    def wait(self, done: Callable[[], bool], meanwhile: Callable[[], object] = lambda: None) -> None:
        """Waits until `done`, or for the end of the launch."""
        while not done():
            self.check()
            meanwhile()
            time.sleep(LOOK_AGAIN)

    def wait_for_all(self, missing: Callable[[], list[int]], folder: Path, meanwhile: Callable[[], object]) -> None:
        """On the main process, waits until nothing is missing in `folder`.

        Raises:
            UserError: the others have made their shares, but what they made does not appear.
        """
        made: list[float] = []  # when the others were found to have left

        def done() -> bool:
            if not missing():
                return True
            if self.size == 1 or self._left():
                made.append(time.monotonic())
                if self.size == 1 or made[-1] - made[0] > UNSEEN:
                    raise UserError(f"{folder}: parts that were made do not appear there; {GO_ON}")
            return False

        self.wait(done, meanwhile)

    def check(self) -> None:
        """Ends this process where another has failed or is lost; asks at most once a second.

        Raises:
            SystemExit: another has said what the user did wrong.
            LostProcessError: another has failed otherwise, or gives no sign of life.
        """
        now = time.monotonic()
        if self.size == 1 or now < self._next_check:
            return
        self._next_check = now + CHECK
        if self._ask("check", ["failed"]):
            rank, code, text = json.loads(self._ask("get", "failed"))
            if code is not None:
                raise SystemExit(code)
            raise LostProcessError(f"process {rank} of {self.size} has failed ({text}); {GO_ON}")
        for other in range(1, self.size) if self.main else [0]:
            signs = self._ask("add", f"signs/{other}", 0)
            before, when = self._heard.get(other, (-1, now))
            if signs != before:
                self._heard[other] = signs, now
            elif now - when > self.silence and not self._ask("check", [f"left/{other}"]):
                raise LostProcessError(f"process {other} of {self.size} gives no sign of life; {GO_ON}")

    @contextlib.contextmanager
    def counting(self, label: str, total: int, there: int, progress: bool) -> Iterator[Callable[[int], None]]:
        """Yields a function to be told of prints that were made; the main process shows the sum of all processes.

        Args:
            label: of the progress bar.
            total: prints of the whole work.
            there: prints that an earlier run has made.
            progress: whether the main process shows a bar.
        """
        from tqdm import tqdm  # only here: every command loads this module

        key, lock = f"made/{self._turn}", threading.Lock()
        with tqdm(total=total, initial=there, desc=label, unit="print", disable=not (progress and self.main)) as bar:

            def made(prints: int) -> None:
                with lock:
                    self.check()
                    bar.update(prints if self.size == 1 else there + self._ask("add", key, prints) - bar.n)

            yield made

    @contextlib.contextmanager
    def taking_part(self) -> Iterator[Launch]:
        """Gives signs of life, and tells the others how it ends; of errors of one line, only the first is raised."""
        threading.Thread(target=self._live, name="launch", daemon=True).start()
        try:
            yield self
        except BaseException as error:
            code = exit_code(error)
            if isinstance(error, SystemExit) or self._first_to_fail(error, code) or code is None:
                raise
            raise SystemExit(code) from None
        finally:
            self._leaving.set()
            with contextlib.suppress(RuntimeError):
                self._store.set(f"left/{self.rank}", "")

    def linger(self) -> None:
        """On the main process, whose end may be that of the store: gives the others time to leave."""
        until = time.monotonic() + FAREWELL
        with contextlib.suppress(LostProcessError):
            while self.main and not self._left() and time.monotonic() < until:
                time.sleep(0.05)

    def _live(self) -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone, and with it who would listen
            while not self._leaving.wait(BEAT):
                self._store.add(f"signs/{self.rank}", 1)

    def _left(self) -> bool:
        """Whether all other processes have made their shares, or failed."""
        return all(self._ask("check", [f"left/{other}"]) for other in range(self.size) if other != self.rank)

    def _first_to_fail(self, error: BaseException, code: int | None) -> bool:
        word = json.dumps([self.rank, code, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"])
        try:
            return bool(self._store.compare_set("failed", "", word).decode() == word)
        except RuntimeError:
            return True

    def _ask(self, what: str, *arguments: Any) -> Any:
        try:
            return getattr(self._store, what)(*arguments)
        except RuntimeError as error:
            raise LostProcessError(f"process {self.rank} of {self.size}: the main one is gone; {GO_ON}") from error


ALONE = Launch()
_COMMANDS = itertools.count()  # of this process, and in the same order of the others: none reads another's words


def _difference(there: dict[str, Any] | None, ours: dict[str, Any]) -> str:
    if there is None:
        return "does not see it; it must lie on a disk that all machines share"
    names = [f"{name} {there.get(name)} not {ours[name]}" for name in ours if there.get(name) != ours[name]]
    return f"has other work ({', '.join(names)}); all need the same arguments, data and versions"


@contextlib.contextmanager
def launched() -> Iterator[Launch]:
    """The launch that this process belongs to, as the environment says; for the command line, around all of a command.

    Raises:
        UserError: it belongs to one, but cannot find the others.
    """
    place = place_in_launch()
    if place["size"] == 1:
        yield ALONE
        return
    from torch.distributed import PrefixStore, rendezvous  # only here: it takes a while

    if place["local_size"] == place["size"]:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")
    try:
        store, *_ = next(rendezvous("env://", place["rank"], place["size"], timeout=timedelta(seconds=JOINING)))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"process {place['rank']} of {place['size']} cannot find the main one ({error})") from error
    launch = Launch(**place, store=PrefixStore(f"command/{next(_COMMANDS)}", store))
    atexit.register(launch.linger)
    with launch.taking_part():
        yield launch
