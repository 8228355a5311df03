"""What is known of a client and its device: what it measured of itself, and the most that a network may cost there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fednas_core.base.values import Arch, ClientId


@dataclass(frozen=True, slots=True)
class Probe:
    """The latency of one architecture as a device measured it: milliseconds of a forward pass of `batch` images.

    Median, 10th and 90th percentile over `repeats` passes.
    """

    arch: Arch
    median_ms: float
    p10_ms: float
    p90_ms: float
    repeats: int
    batch: int
    threads: int
    torch: str


@dataclass(frozen=True, slots=True)
class Profile:
    """What a device measured of itself.

    `memory_mb` are the MB (10⁶ bytes) that a process may still use, None where the system does not tell;
    `macs_per_second` is training throughput (3 × forward MACs of one image, per second, one process);
    `latency_ms` is the median time of one forward pass, batch of one, of the space's largest network; `probes` are
    those of a handful of architectures, from which a latency model is fitted; `threads` is how many a task computes
    with, `device` what it computes on, e.g. ``cpu``.
    """

    cores: int
    memory_mb: int | None
    precision: str
    macs_per_second: float
    latency_ms: float
    threads: int = 1
    device: str = "cpu"
    probes: tuple[Probe, ...] = ()


class Limit(Protocol):
    """The most that a network may cost on one device."""

    def allows(self, arch: Arch) -> bool:
        """Whether the device can be given this architecture."""
        ...


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """A client the server may call on: its name, the number of its training examples and, if measured, its profile.

    `budget` is what its device's own configuration allows (the text of a budget, '' if it says nothing); `limit` is
    what the round loop makes of it, None if there is none. `labels` are the numbers of its images of each class, if it
    discloses them, else empty. `held_out` is the number of its other images, on which it only tests; one that never
    `trains` in the run tests on all of them. `trained` says whether it did in a round before.
    """

    name: ClientId
    examples: int
    profile: Profile | None = None
    budget: str = ""
    limit: Limit | None = None
    labels: tuple[int, ...] = ()
    held_out: int = 0
    trains: bool = True
    trained: bool = False
