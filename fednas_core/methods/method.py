"""What a method is: it decides what each client does next and what becomes of the answers.

It knows nothing of the network between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from fednas_core.base.metrics import Metrics
from fednas_core.base.values import Arch, ClientId, State
from fednas_core.devices.info import ClientInfo
from fednas_core.exchange.orders import Errand, Failure, TrainOrder, TrainReport
from fednas_core.methods.story import ClientRow, Story

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class RoundSummary:
    """What became of one round. `clients` lists what each client trained and cost.

    Loss and metrics are means over the clients, weighted by examples; None where nobody trained.
    """

    round: int
    loss: float | None
    metrics: Metrics
    bytes_up: int
    bytes_down: int
    client_macs: int
    clients: tuple[ClientRow, ...]
    failures: tuple[Failure, ...] = ()


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

    def hear(self, round: int, reports: Sequence[TrainReport]) -> Story | None:
        """Take the answers to the errands, in their order; return what the round was to the search, if there is one.

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
