"""Describe the GPUs that `plan` knows, and the connections between them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fingerprint_accel.errors import UserError, require

GIB = 2**30
LAUNCH = 8.4e-6  # seconds to start a collective: `baseLat` of ring and "simple" protocol in NCCL, src/graph/tuning.cc
MOST_DEVICES = 16  # in one machine, so that the number for several machines is not taken for one machine


@dataclass(frozen=True)
class Link:
    """Connection between neighbours in a ring of processes.

    The latencies of GPUs are `hwLat` of ring and "simple" protocol in NCCL, src/graph/tuning.cc.

    Attributes:
        name: Name of the type of connection.
        bandwidth: Bytes per second that a device can send while it receives as many. `nccl-tests` calls it busbw.
        latency: Seconds until a small message has arrived.
    """

    name: str
    bandwidth: float
    latency: float


# NCCL reaches 370 GB/s of the 450 GB/s of NVLink 4 (github.com/NVIDIA/nccl-tests/issues/212).
NVLINK4 = Link("NVLink 4", 370e9, 3.4e-6)
# The data sheet says 300 GB/s. NCCL was measured at about 200 GB/s on eight A100 (same repository, issues/149).
NVLINK3 = Link("NVLink 3", 200e9, 3.4e-6)
# The data sheet says 32 GB/s. NCCL was measured at 20 GB/s between A100 without NVLink (same repository, issues/178).
PCIE4 = Link("PCIe 4.0", 20e9, 5.7e-6)


def ethernet(gigabits: float) -> Link:
    """Return the network between machines, of which NCCL is assumed to reach 80 %.

    On eight adapters of 100 Gbit/s, NCCL reached 75 % (github.com/NVIDIA/nccl/issues/495).

    Args:
        gigabits: Speed of all network adapters of a machine together in Gbit/s.
    """
    return Link(f"{gigabits:g} Gbit/s network", 0.8 * gigabits * 1e9 / 8, 14e-6)


@dataclass(frozen=True)
class Device:
    """Speed and memory of a type of GPU.

    Attributes:
        tflops: TFLOP/s of dense bf16 matrix products in the data sheet.
        memory: Memory in GiB.
        link: Connection between several GPUs of a machine.
    """

    tflops: float
    memory: float
    link: Link

    @property
    def room(self) -> float:
        """Memory that training can use, in bytes. CUDA, cuDNN and fragmentation need the rest of `memory`."""
        return 0.92 * self.memory * GIB


DEVICES = {
    "A100-40": Device(312, 40, NVLINK3),
    "A100-80": Device(312, 80, NVLINK3),
    "H100": Device(989, 80, NVLINK4),
    "H200": Device(989, 141, NVLINK4),
    "L40S": Device(362, 48, PCIE4),
    "RTX4090": Device(165, 24, PCIE4),
}


@dataclass(frozen=True)
class Cluster:
    """Machines with equally many devices each.

    Attributes:
        machines: Number of machines.
        devices: Number of devices of each machine.
        link: Connection between the devices of a machine.
        network: Connection between machines.
        launch: Seconds to start a collective.
    """

    machines: int
    devices: int
    link: Link
    network: Link
    launch: float = LAUNCH

    @property
    def processes(self) -> int:
        """Number of processes, one for each device."""
        return self.machines * self.devices

    @property
    def links(self) -> list[Link]:
        """Types of connection in the ring of all processes."""
        return [self.link] * (self.devices > 1) + [self.network] * (self.machines > 1)


def parse_devices(text: str, gigabits: float = 100) -> tuple[str, Device, Cluster]:
    """Parse text such as `8xA100-80` or `2x8xH100`, and return the GPU's name, its `Device` and the `Cluster`.

    Args:
        text: Number of machines if there are several, number of GPUs of each machine, and type of the GPUs.
        gigabits: Speed of the network of a machine in Gbit/s.

    Raises:
        UserError: If the text is malformed, or the GPU is not in `DEVICES`, or a machine has too many GPUs.
    """
    number = r"[1-9][0-9]{0,5}"
    found = re.fullmatch(rf"(?:(?:({number})x)?({number})x)?([A-Za-z0-9-]+)", text)
    if not found or found[3] not in DEVICES:
        raise UserError(
            f"--gpus {text}: give a number and a type, such as 8xA100-80, or 2x8xA100-80 for two machines; types: "
            f"{', '.join(DEVICES)}"
        )
    require(gigabits > 0, f"--network {gigabits:g}: give the Gbit/s of a machine, such as 100")
    machines, devices, device = int(found[1] or 1), int(found[2] or 1), DEVICES[found[3]]
    require(
        devices <= MOST_DEVICES,
        f"--gpus {text}: at most {MOST_DEVICES} GPUs are in one machine; for several machines with 8 GPUs each, write "
        f"{max(2, round(devices / 8))}x8x{found[3]}",
    )
    return found[3], device, Cluster(machines, devices, device.link, ethernet(gigabits))
