"""What passes between server and clients: orders, answers, and the contract of whatever carries them.

A `Fleet` carries orders to clients and yields their answers as they arrive; it knows nothing of the method.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from fednas_core.base.values import Arch, ClientId
from fednas_core.devices.info import ClientInfo
from fednas_core.training.settings import TrainSettings

if TYPE_CHECKING:
    from torch import Tensor


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
