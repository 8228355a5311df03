"""What passes between server and clients: orders, answers, and the contract of whatever carries them.

An order names a task and holds its parameters, which are scalars, and channels: named groups of tensors. What both must
look like says the task's schema (`fednas_core.exchange.schema`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from fednas_core.base.values import Arch, ClientId
from fednas_core.devices.info import ClientInfo

if TYPE_CHECKING:
    from torch import Tensor

Tensors = Mapping[str, "Tensor"]
"""Tensors by name, in the order in which they travel."""
WEIGHTS = "weights"
"""The channel of a network's own tensors."""


class Scalars(Protocol):
    """A frozen dataclass of text, numbers, truth values, tuples of them, and dataclasses like it."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class Result(Scalars, Protocol):
    """What a client found: scalars that say of themselves whether it can have found them."""

    def check(self, client: ClientInfo) -> None:
        """Raise `ReplyError`, naming the field, what was found and what is allowed, unless the client can have."""
        ...


@dataclass(frozen=True, slots=True)
class Order:
    """What one client is asked to do in one round.

    `channels` hold tensors that the task needs, `WEIGHTS` those of `arch`: views into the supernet where it is to be
    trained (no copy), else a network as it is used, its batch statistics included. `params` are the task's. Without
    channels and parameters it is a request of a method's, which the engine completes. `budget` is the text of the
    budget that the client must keep ('' for none), `run` the id of the run, under which a client keeps its private
    state. `trains` says whether the client trains in the run at all: one that never does tests on all its images;
    `trained` whether it did in a round before, so that it has private state of this run if clients keep any.
    """

    client: ClientId
    round: int
    task: str
    arch: Arch
    channels: Mapping[str, Tensors]
    params: Scalars | None
    seed: int
    budget: str = ""
    run: str = ""
    trains: bool = True
    trained: bool = False

    @property
    def weights(self) -> Tensors:
        """The tensors of the order's network."""
        return self.channels.get(WEIGHTS, {})


@dataclass(frozen=True, slots=True)
class Answer:
    """A client's answer to its order: what the task returns, and what it took.

    `examples` is the number of the client's training examples; `macs` counts multiply-accumulates of forward and
    backward; `bytes_down` and `bytes_up` the payload on the wire. `fresh` says that the client has lost the private
    state that its earlier rounds left.
    """

    client: ClientId
    round: int
    arch: Arch
    channels: Mapping[str, Tensors]
    result: Result
    examples: int
    macs: int
    seconds: float
    bytes_down: int = 0
    bytes_up: int = 0
    fresh: bool = False

    @property
    def weights(self) -> Tensors:
        """The trained tensors, none if the task trains nothing."""
        return self.channels.get(WEIGHTS, {})


@dataclass(frozen=True, slots=True)
class Failure:
    """A client that gave no usable answer, and why (one line, for people)."""

    client: ClientId
    reason: str


class Fleet(Protocol):
    """A way to reach clients: in process, simulated by Flower, or deployed. It knows nothing of the method."""

    def clients(self) -> Sequence[ClientInfo]:
        """Return the clients that can be called on now, sorted by name."""
        ...

    def train(self, orders: Mapping[ClientId, Order], more: deque[Order] | None = None) -> Iterator[Answer | Failure]:
        """Carry out the orders and yield one answer for each, as they arrive.

        Orders that the caller appends to `more` while it takes the answers are carried out as well; no client may
        have two orders at a time. The iterator ends when nothing is outstanding and `more` is empty.
        """
        ...

    def close(self) -> None:
        """Release processes and memory."""
        ...
