"""What takes part in a contest and who holds it: entrants, the search on the server that makes them, and the rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from fednas_core.base.values import Arch, ClientId, State
from fednas_core.devices.info import Limit
from fednas_core.exchange.orders import Scalars
from fednas_core.search.dropping import Standing
from fednas_core.spaces.space import Elastic
from fednas_core.subnets.packing import shapes
from fednas_core.training.settings import TrainSettings

START = "start"
"""The label of the network that all others are made from."""
HOST = "host"
"""What stands before the names of a host's own tensors in a checkpoint."""
STAGES = ("start", "compete", "finish", "over")
"""What a contest goes through: training of the start network, the search, training of what is delivered."""


@dataclass(frozen=True, slots=True, eq=False)
class Entrant:
    """A network with weights of its own; `parent` is the label of the one it was made from, '' if there is none."""

    label: str
    arch: Arch
    tensors: dict[str, Tensor]
    parent: str = ""


def packed(entrants: Iterable[Entrant]) -> tuple[dict[str, Tensor], list[Any]]:
    """Return networks as a checkpoint holds them: tensors ``<label>/<name>``, and the rest as JSON."""
    all_ = list(entrants)
    tensors = {f"{one.label}/{name}": tensor for one in all_ for name, tensor in one.tensors.items()}
    return tensors, [[one.label, one.arch.to_json(), one.parent] for one in all_]


def unpacked(
    space: Elastic, tensors: Mapping[str, Tensor], described: Iterable[tuple[str, Mapping[str, Any], str]]
) -> dict[str, Entrant]:
    """Return networks by label, given what `packed` returned; raise `ValueError` where tensors are not the space's."""
    found = {}
    for label, genes, parent in described:
        arch, prefix = space.arch(genes), f"{label}/"
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        wanted = shapes(space.plan(arch))
        if {name: tuple(tensor.shape) for name, tensor in own.items()} != wanted:
            raise ValueError(f"its tensors of network '{label}' are not those of the search space")
        found[label] = Entrant(label, arch, {name: own[name] for name in wanted}, parent)
    return found


class Host(Protocol):
    """The search on the server: which candidates there are, and what becomes of their results."""

    family: list[Entrant]
    """Networks that are kept, the leading one last."""

    @property
    def iteration(self) -> int:
        """Iterations that are over."""
        ...

    def begin(self, start: Entrant, accuracy: float) -> None:
        """Take the trained start network and its accuracy on the testing clients."""
        ...

    def propose(self) -> Sequence[Entrant]:
        """Return the next iteration's candidates; none if the search is over."""
        ...

    def conclude(self, entrants: Mapping[str, Entrant], standings: Sequence[Standing]) -> None:
        """Take the results of an iteration, best first, dropped candidates last.

        Both are of candidates that were trained and tested in it, maybe none: nothing is known of others. `entrants`
        are those that are left.
        """
        ...

    def finalists(self, limits: Sequence[Limit]) -> Sequence[Entrant]:
        """Return the networks of the family that train on once the search is over, given the limits that count."""
        ...

    def story(self) -> dict[str, Any]:
        """Return what there is to tell since the last time, as JSON."""
        ...

    def state(self) -> State:
        """Return everything but the networks that a later `restore` needs."""
        ...

    def restore(self, state: State, family: list[Entrant]) -> None:
        """Continue from a state that `state` returned, with the networks that were kept."""
        ...


def _as_they_are(settings: TrainSettings) -> Scalars:
    return settings


@dataclass(frozen=True, slots=True)
class Rules:
    """How a contest is held.

    `rounds` train the start network (0: it is trained already), `contest(i)` the candidates of iteration i, `finish`
    each network that is delivered. Every `every` rounds a test drops the share `drop` of the candidates, as far as they
    are `margin` standard errors behind. A candidate has a group of clients, or with `everyone` all of them in turn;
    freed clients `join` other groups or idle. `cohort` of the training clients are drawn for each round (0: all). Every
    `testers`-th client tests, but for those of whom `sides` says whether they do. Candidates train by `task`, for which
    `params` completes the settings. `teaches`: clients learn from the start network.
    """

    rounds: int
    contest: Callable[[int], int]
    finish: int
    settings: Callable[[str, int, int], TrainSettings]
    seed: int
    task: str = "subnet"
    params: Callable[[TrainSettings], Scalars] = _as_they_are
    teaches: bool = False
    everyone: bool = False
    cohort: int = 0
    testers: int = 5
    sides: Mapping[ClientId, bool] = field(default_factory=dict)
    every: int = 0
    drop: float = 0.0
    margin: float = 0.0
    join: bool = False
