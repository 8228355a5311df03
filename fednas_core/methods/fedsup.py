"""FedSup (Kim and Yun, arXiv 2206.01366, algorithm 1): the whole supernet goes to every client and trains there.

Server, in each round: broadcast the supernet W; receive W_k; merge. Client: the sandwich rule with in-place
distillation, `fednas_core.training.sandwich`. A device whose limit does not allow the supernet gets the largest network
that it does, and trains the subnets of that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ConfigError
from fednas_core.base.values import Arch, ClientId
from fednas_core.devices.info import ClientInfo
from fednas_core.methods.fedavg import Forgetful
from fednas_core.methods.method import Assignment
from fednas_core.methods.setup import averaging, growing, scheduled
from fednas_core.search.path import PathRow
from fednas_core.search.within import within
from fednas_core.spaces.space import Elastic
from fednas_core.subnets.weightings import Weighting
from fednas_core.training.settings import SandwichSettings


@dataclass(frozen=True, slots=True)
class Broadcast(Forgetful):
    """Every client gets the largest network that its limit allows: the supernet itself where there is none."""

    space: Elastic

    def assign(self, round: int, clients: Sequence[ClientInfo], rng: np.random.Generator) -> dict[ClientId, Assignment]:
        """See `ArchSampler.assign`."""
        fitting = {client.name: within(self.space, self.space.largest, client.limit) for client in clients}
        return {name: Assignment(arch, role_of(self.space, arch)) for name, arch in fitting.items() if arch}


def fedsup(config: RunConfig, space: Elastic, path: Sequence[PathRow]) -> tuple[Broadcast, Weighting]:
    """Return the parts of the method: broadcast, weighed by examples by default; `ConfigError` if none would train."""
    if not (config.sample.inner or config.sample.sandwich):
        raise ConfigError("settings 'sample.inner' = 0 and 'sample.sandwich' = false leave no network to train")
    return Broadcast(space), averaging(config)


def sandwiches(config: RunConfig, space: Elastic) -> Callable[[int], SandwichSettings]:
    """Return how clients train in each round (from 0): by the sandwich rule, over what progressive shrinking opened."""
    settings, curriculum, sample = scheduled(config), growing(config, space), config.sample

    def sandwich(round: int) -> SandwichSettings:
        floor = tuple(map(int, curriculum.floor(round)))
        return SandwichSettings(settings(round), sample.inner, sample.sandwich, sample.distill, floor)

    return sandwich


def role_of(space: Elastic, arch: Arch) -> str:
    """Return the role of an architecture by its size: ``largest``, ``smallest`` or ``between``."""
    return {space.largest: "largest", space.smallest: "smallest"}.get(arch, "between")
