"""What passes between a method, the round loop and the fleet of clients: orders, reports and two contracts.

A `Method` decides what each client does next and what becomes of the answers; it knows nothing of the network between.
A `Fleet` carries orders to clients and yields their answers as they arrive; it knows nothing of the method.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from fednas_core.values import Arch

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

ClientId = str
"""A client's stable name: its partition in simulation, its own name in deployment; never a node id."""


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


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How a client trains: `epochs` passes in batches of `batch`, SGD with these rates.

    `clip` is the largest gradient norm and `clip_value` the largest size of a gradient's entry (0: unclipped);
    `precision` is fp32, bf16 or auto (bf16 where the processor computes it natively); `augment` names a recipe of
    `fednas_core.data.augment`.
    """

    epochs: int = 1
    batch: int = 32
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 5e-4
    clip: float = 10.0
    clip_value: float = 0.0
    label_smoothing: float = 0.0
    precision: str = "auto"
    augment: str = "none"


@dataclass(frozen=True, slots=True)
class TrainOrder:
    """One client's work in one round. `tensors` are views into the supernet (no copy): exactly those of `arch`.

    `returns` says what the answer holds: ``weights``, the same tensors trained; ``moments`` of every norm layer (see
    `fednas_core.subnets.moments`); or ``figures`` alone. Where no weights return, the order holds a network as it is
    used, its batch statistics included. `budget` is the text of the budget
    that the client must keep ('' for none), `run` the id of the run, under which a client keeps its private state.
    `trains` says whether the client trains in the run at all: one that never does tests on all its images; `trained`
    whether it did in a round before, so that it has private state of this run if clients keep any.
    """

    client: ClientId
    round: int
    task: str
    arch: Arch
    tensors: Mapping[str, Tensor]
    settings: TrainSettings
    seed: int
    budget: str = ""
    returns: str = "weights"
    run: str = ""
    trains: bool = True
    trained: bool = False


@dataclass(frozen=True, slots=True)
class Errand:
    """What a method asks of a client besides training: a task that returns figures, with a network as it is used."""

    client: ClientId
    task: str
    arch: Arch


@dataclass(frozen=True, slots=True)
class TrainReport:
    """A client's answer to its order: the trained tensors and what it took.

    `loss` and `accuracy` (0 to 1) are means over the client's training examples in the last epoch; `macs` counts
    multiply-accumulates of forward and backward; `bytes_down` and `bytes_up` the payload on the wire. `figures` holds
    whatever else a task measured, e.g. ``{"latency_ms": 3.1}``; finite numbers by name; ``fresh`` is 1.0 if
    the client has lost the private state that its earlier rounds left.
    """

    client: ClientId
    round: int
    arch: Arch
    tensors: Mapping[str, Tensor]
    examples: int
    loss: float
    accuracy: float
    macs: int
    seconds: float
    bytes_down: int
    bytes_up: int
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """A client that gave no usable answer, and why (one line, for people)."""

    client: ClientId
    reason: str


@dataclass(frozen=True, slots=True)
class RoundSummary:
    """What became of one round. `clients` lists what each client trained and cost.

    `loss` and `accuracy` are means over the clients, weighted by examples; None where nobody trained.
    """

    round: int
    loss: float | None
    accuracy: float | None
    bytes_up: int
    bytes_down: int
    client_macs: int
    clients: tuple[Mapping[str, Any], ...]
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True)
class State:
    """A method's state as a value: named tensors and a JSON object. It is what a checkpoint holds."""

    tensors: Mapping[str, Tensor]
    data: Mapping[str, Any] = field(default_factory=dict)


class Method(Protocol):
    """A federated NAS method."""

    def plan(
        self, round: int, clients: Sequence[ClientInfo], rng: np.random.Generator
    ) -> Mapping[ClientId, TrainOrder]:
        """Return at most one order per client of this round's cohort (sorted by name).

        A method whose networks compete is given all clients, and draws a cohort of those that train.
        """
        ...

    def absorb(self, round: int, reports: Iterable[TrainReport]) -> RoundSummary:
        """Merge validated reports one at a time, in whatever order they come, then close the round.

        The outcome does not depend on the order. Clients that were given an order and do not appear have failed.
        """
        ...

    def ask(self, round: int, clients: Sequence[ClientInfo]) -> Sequence[Errand]:
        """Return what clients, of all there are, are asked once the round is absorbed; several errands each if need be.

        A method that sends nobody on errands returns none.
        """
        ...

    def hear(self, round: int, reports: Sequence[TrainReport]) -> Mapping[str, Any]:
        """Take the answers to the errands, in their order; return what the round's event tells of the search, as JSON.

        It ends the round: the state after it is what a checkpoint holds.
        """
        ...

    def remind(self, clients: Sequence[ClientInfo]) -> Sequence[Errand]:
        """Return what clients are told again when a run is resumed, for they may have lost what they kept."""
        ...

    def done(self, round: int) -> bool:
        """Whether the method has finished before round number `round` (counted from 0)."""
        ...

    def weights(self) -> Mapping[str, Tensor]:
        """Return the tensors of the supernet, or of the network that all others are made from."""
        ...

    def network(self, arch: Arch) -> Mapping[str, Tensor]:
        """Return the shared tensors of a network as it is now."""
        ...

    def trains(self, client: ClientId) -> bool:
        """Whether a client trains in the run at all, as far as that is settled."""
        ...

    @property
    def networks(self) -> tuple[Arch, ...] | None:
        """Return the networks that exist, the one to follow first; None if every subnet of the supernet does."""
        ...

    def state(self) -> State:
        """Return everything that a later `restore` needs to continue identically."""
        ...

    def restore(self, state: State) -> None:
        """Continue from a state that `state` returned."""
        ...


class Fleet(Protocol):
    """A way to reach clients: in process, simulated by Flower, or deployed."""

    def clients(self) -> Sequence[ClientInfo]:
        """Return the clients that can be called on now, sorted by name."""
        ...

    def train(
        self, orders: Mapping[ClientId, TrainOrder], more: deque[TrainOrder] | None = None
    ) -> Iterator[TrainReport | Failure]:
        """Carry out the orders and yield one answer for each, as they arrive.

        Orders that the caller appends to `more` while it takes the answers are carried out as well; no client may
        have two orders at a time. The iterator ends when nothing is outstanding and `more` is empty.
        """
        ...

    def close(self) -> None:
        """Release processes and memory."""
        ...
