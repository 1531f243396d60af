"""Measure identity heads of many fingers: time per step, memory, and traffic between processes.

python benchmarks/heads.py --out heads.json
python benchmarks/heads.py --classes 10000000 --optimizer sgd                      # on a GPU
python benchmarks/heads.py --cases "data parallel" sharded --classes 150000

A step is forward, backward and update of a CosFace head on random embeddings of unit length, without a network. Every
case runs in its own processes, on GPUs if there are any.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
import tyro
from machine import machine, versions
from results_file import check_results, write_results
from timing import synchronize
from torch import nn
from tqdm import tqdm
from traffic import Traffic

from fingerprint_accel.errors import UserError, one_line_errors
from fingerprint_accel.losses.exchange import rank_and_world_size, reduce
from fingerprint_accel.losses.margin import IdentityHead
from fingerprint_accel.losses.sharded import ShardedHead
from fingerprint_accel.text import aligned
from fingerprint_accel.training.meters import peak_memory_mb

Name = Literal["data parallel", "whole", "full", "sampled", "sharded", "sharded, sampled"]
SCALE, MARGIN = 32.0, 0.2
BY_ITSELF = ("unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$0" "$@"')  # a loopback without other traffic
MEANING = {
    "data parallel": "every process holds the whole head; DDP sends its gradients",
    "whole": "one process, unsharded head",
    "full": "one process, sharded head, all classes",
    "sampled": "one process, sharded head, a share of the classes in each step",
    "sharded": "several processes with one slice each",
    "sharded, sampled": "several processes with one slice each, a share of it in each step",
}


@dataclass(frozen=True)
class Case:
    """Settings of one measurement."""

    name: Name
    classes: int
    dim: int
    batch_size: int
    sampling: float
    optimizer: Literal["adamw", "sgd"]
    steps: int
    processes: int


class HeadLoss(nn.Module):
    """An identity head as a loss: embeddings (B, D) and fingers (B,) to a loss ()."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.head: IdentityHead | ShardedHead
        if case.name in ("whole", "data parallel"):
            self.head = IdentityHead(case.dim, case.classes, "cosface", SCALE, MARGIN)
        else:
            share = case.sampling if "sampled" in case.name else 1.0
            self.head = ShardedHead(case.dim, case.classes, "cosface", SCALE, MARGIN, sampling=share)

    def forward(self, embedding: torch.Tensor, finger: torch.Tensor) -> torch.Tensor:
        """Return the loss ()."""
        return self.head([embedding], finger)


def loopback_bytes() -> int:
    """Return the bytes sent over the loopback of this network namespace, with headers and acknowledgements."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def measure(case: Case, device: torch.device) -> dict[str, Any]:
    """Measure a case in the present process."""
    rank, processes = rank_and_world_size()
    torch.manual_seed(0)
    with device:  # ten million class vectors take half a minute to draw on a CPU
        module = HeadLoss(case)
    head, traffic = module.head, Traffic()
    wrapped: nn.Module = module
    sliced = head if isinstance(head, ShardedHead) else None
    parameters = list(module.parameters()) + (list(sliced.drawn.values()) if sliced else [])
    make = torch.optim.AdamW if case.optimizer == "adamw" else partial(torch.optim.SGD, momentum=0.9)
    optimizer = make(parameters, lr=1e-3, fused=True)
    if case.name == "data parallel":
        parallel = nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True)
        parallel.register_comm_hook(None, traffic.hook)
        wrapped = parallel
    everyone = F.normalize(torch.randn(case.batch_size, case.dim), dim=1).tensor_split(processes)[rank].to(device)
    fingers = torch.randint(case.classes, (case.batch_size,)).to(device)

    def step() -> None:
        if sliced:
            sliced.draw(fingers, optimizer)
        wrapped(everyone.requires_grad_(), fingers.tensor_split(processes)[rank]).backward()
        optimizer.step()
        optimizer.zero_grad()
        everyone.grad = None
        if sliced:
            sliced.put_back(optimizer)

    step()
    traffic.collectives.clear()
    seconds, processor, before = [], time.process_time(), 0
    for number in range(case.steps):
        synchronize(device)
        if number == 0 and processes > 1:
            dist.barrier()
            before = loopback_bytes()
        started = time.perf_counter()
        step()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    processor = time.process_time() - processor
    collectives = {name: count // case.steps for name, count in traffic.sent().items()}
    if processes > 1:
        dist.barrier()
    over_loopback = (loopback_bytes() - before) // case.steps // processes if processes > 1 else 0
    peak = reduce(torch.tensor([peak_memory_mb(device), *seconds], device=device), largest=True).tolist()
    used = float(reduce(torch.tensor(processor, device=device)))
    return {
        "seconds": statistics.median(peak[1:]),
        "rounds": peak[1:],
        "samples_per_second": case.batch_size / statistics.median(peak[1:]),
        "core_seconds": used / case.steps,
        "peak_memory_mb": peak[0],
        "sent_per_process": sum(collectives.values()),
        "sent_by_collective": collectives,
        "over_loopback_per_process": over_loopback,
    }


def run_case(case: Case) -> None:
    """Join the other processes of a case and measure. Rank 0 prints the row."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    if case.processes > 1:
        dist.init_process_group("nccl" if cuda else "gloo")
    row = measure(case, device)
    if rank_and_world_size()[0] == 0:
        print(json.dumps(row))
    if case.processes > 1:
        dist.destroy_process_group()


def in_processes(case: Case) -> dict[str, Any]:
    """Start the processes of a case, and return its row or its error."""
    command = [sys.executable]
    environment = dict(os.environ)
    if case.processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={case.processes}"]
        if not torch.cuda.is_available():
            environment |= {"GLOO_SOCKET_IFNAME": "lo"}
            environment.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // case.processes)))
            command = [*(BY_ITSELF if _may_be_by_itself() else ()), *command]
    command += [__file__, "--case", json.dumps(asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    row: dict[str, Any] = {**asdict(case), "meaning": MEANING[case.name]}
    if done.returncode:
        wrong = [line for line in done.stderr.splitlines() if "Error" in line]
        return {**row, "failed": (wrong or [f"exit code {done.returncode}"])[0][:200]}
    return {**row, **json.loads(done.stdout.splitlines()[-1])}


def _may_be_by_itself() -> bool:
    """Return whether this machine allows a network namespace of its own."""
    try:
        return subprocess.run([*BY_ITSELF, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def table(rows: list[dict[str, Any]]) -> str:
    """Format the rows of cases as text."""
    cells = [
        ("case", "classes", "processes", "s/step", "samples/s", "core-s/step", "peak MB", "sent MB", "loopback MB")
    ]
    failed = []
    for row in rows:
        name = (row["name"], f"{row['classes']:,}", str(row["processes"]))
        if "failed" in row:
            cells.append((*name, *"------"))
            failed.append(f"\n{row['name']}: {row['failed']}")
            continue
        sent = (row["sent_per_process"] / 1e6, row["over_loopback_per_process"] / 1e6)
        rates = (f"{row['seconds']:.3f}", f"{row['samples_per_second']:,.0f}", f"{row['core_seconds']:.2f}")
        cells.append((*name, *rates, f"{row['peak_memory_mb']:,.0f}", *(f"{value:.2f}" for value in sent)))
    return aligned(cells, words=1) + "".join(failed)


def main(
    cases: tuple[Name, ...] = ("full", "sharded", "sampled", "sharded, sampled"),
    classes: int = 1_000_000,
    dim: int = 512,
    batch_size: int = 256,
    sampling: float = 0.1,
    optimizer: Literal["adamw", "sgd"] = "adamw",
    steps: int = 5,
    processes: int = 0,
    traffic_classes: int = 150_000,
    out: Path | None = None,
) -> None:
    """Measure identity heads of many fingers.

    Args:
        cases: Cases to measure.
        classes: Number of fingers.
        dim: Length of an embedding.
        batch_size: Prints of all processes together.
        sampling: Share of the classes in a step, for sampled cases.
        optimizer: Optimizer of the head.
        steps: Timed steps, after one that is not timed.
        processes: Processes of the cases with several. 0: one for each GPU, two on a CPU.
        traffic_classes: Fingers for which the traffic is compared with data parallel; 0 leaves this out.
        out: JSON file to write.
    """
    check_results(out)
    several = processes or (torch.cuda.device_count() if torch.cuda.is_available() else 2)
    plan: list[tuple[Name, int]] = [(name, classes) for name in cases]
    if traffic_classes:
        plan += [("data parallel", traffic_classes), ("sharded", traffic_classes)]
    rows = []
    for name, count in tqdm(plan, unit="case"):
        here = 1 if name in ("whole", "full", "sampled") else several
        if here == 1 and name not in ("whole", "full", "sampled"):
            continue  # one GPU: nothing to distribute
        rows.append(in_processes(Case(name, count, dim, batch_size, sampling, optimizer, steps, here)))
    if not rows:
        raise UserError("--cases: these need several processes; give --processes, or other cases")
    print(table(rows))
    if out:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        setting = {**machine(device), **versions(), "command": " ".join(["python", *sys.argv])}
        write_results(out, {"results": rows, "setting": setting})
        print(f"written to {out}")


if __name__ == "__main__":
    with one_line_errors():
        if sys.argv[1:2] == ["--case"]:
            run_case(Case(**json.loads(sys.argv[2])))
            sys.stdout.flush()
            os._exit(0)  # a thread of gloo sometimes aborts the usual end of the interpreter
        else:
            tyro.cli(main)
