"""What a method is: it asks clients for work and is told what came of it; it knows nothing of the network between.

A round is as many asks as the method wants: training, then tests of candidates, or whatever else. The checkpoint comes
at the end of a round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from fednas_core.base.values import Arch, ClientId, State
from fednas_core.devices.info import ClientInfo
from fednas_core.exchange.orders import Answer, Order
from fednas_core.methods.story import ClientRow, Story

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

NO_ROOM = "no network is small enough for its budget"
"""Why a client of the cohort has no order."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one client trains in one round, and as what: ``largest``, ``smallest``, ``between`` or ``candidate``.

    `tier` names the class of devices for which it was chosen, '' if the method has none.
    """

    arch: Arch
    role: str
    tier: str = ""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Which networks can be handed out now.

    They are `these`, the one to follow first; None: any subnet of the supernet. `own` says of clients that keep to one
    architecture which that is.
    """

    these: tuple[Arch, ...] | None = None
    own: Mapping[ClientId, Assignment] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ask:
    """Orders for some clients in a round; a client with several does one after the other.

    They train, and weights return, one order a client; or they are `requests` (see `request`), which the engine
    completes. `left_out` says of other clients of the cohort why they have no order.
    """

    round: int
    orders: tuple[Order, ...]
    left_out: Mapping[ClientId, str] = field(default_factory=dict)
    requests: bool = False


@dataclass(frozen=True, slots=True)
class Told:
    """What became of an ask: a row for each client whose update was merged, and the search's story, if there is one."""

    rows: tuple[ClientRow, ...] = ()
    story: Story | None = None


class Method(Protocol):
    """A federated NAS method."""

    def ask(self, round: int, turn: int, clients: Sequence[ClientInfo], rng: np.random.Generator) -> Ask | None:
        """Return what is asked next, of the clients that were there when the round began; None if it is over.

        `turn` is the number of this round's asks that were told before. The method draws the round's cohort.
        """
        ...

    def tell(self, ask: Ask, answers: Iterable[Answer]) -> Told:
        """Take the credible answers to an ask, one at a time, in the order of its orders.

        Clients that were given an order and do not appear have failed.
        """
        ...

    def remind(self, round: int, clients: Sequence[ClientInfo]) -> Ask | None:
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
    def catalogue(self) -> Catalogue:
        """Return which networks can be handed out now."""
        ...

    def state(self) -> State:
        """Return everything that a later `restore` needs to continue identically, once a round is over."""
        ...

    def restore(self, state: State) -> None:
        """Continue from a state that `state` returned."""
        ...


def request(round: int, client: ClientId, task: str, arch: Arch) -> Order:
    """Return an order about a network as it is used; its tensors and parameters are the engine's to add."""
    return Order(client, round, task, arch, channels={}, params=None, seed=0)
