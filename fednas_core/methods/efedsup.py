"""E-FedSup (Kim and Yun, arXiv 2206.01366): as FedSup, but each client gets one subnet, cut out on the way down.

Server, in each round: choose for each client a network of its device's capability tier; send that slice of the
supernet; merge what comes back. Client: plain cross-entropy for E epochs, task ``subnet``.

The published tiers are the smallest network, parameters in [0.75, 1.0] M and in [2.0, 2.75] M of 2.99 M, and the
largest: here the settings name them as shares of the supernet's parameters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fednas_core.aggregation.weightings import Weighting
from fednas_core.config import RunConfig
from fednas_core.devices.limits import number_of
from fednas_core.errors import ConfigError
from fednas_core.methods.fedavg import Assignment, Forgetful
from fednas_core.methods.fedsup import role_of
from fednas_core.methods.setup import averaging
from fednas_core.protocol import ClientId, ClientInfo, Limit
from fednas_core.search.path import PathRow
from fednas_core.search.sized import sized
from fednas_core.search.within import within
from fednas_core.spaces.space import SearchSpace
from fednas_core.values import Arch

BREADTH = 0.75
"""A tier holds networks from this share of its parameters up to all of them."""


@dataclass(frozen=True, slots=True)
class Tier:
    """A class of devices: its name in the settings, the most parameters of its networks, its only network."""

    name: str
    params: float
    only: Arch | None = None

    @property
    def least(self) -> float:
        """The least parameters of its networks."""
        return self.params if self.only else BREADTH * self.params


@dataclass(frozen=True, slots=True)
class Tiers(Forgetful):
    """One network for each client by its tier: the one its limit allows, or dealt in turn where it has no limit."""

    space: SearchSpace
    tiers: tuple[Tier, ...]

    def assign(self, round: int, clients: Sequence[ClientInfo], rng: np.random.Generator) -> dict[ClientId, Assignment]:
        """See `ArchSampler.assign`."""
        chosen = {}
        for position, client in enumerate(clients):
            tier = self._tier(client, position)
            arch = self._drawn(tier, client.limit, rng)
            if arch:
                chosen[client.name] = Assignment(arch, role_of(self.space, arch), tier.name)
        return chosen

    def _drawn(self, tier: Tier, limit: Limit | None, rng: np.random.Generator) -> Arch | None:
        if tier.only:
            return within(self.space, tier.only, limit)
        return sized(self.space, tier.least, tier.params, limit, rng)

    def _tier(self, client: ClientInfo, position: int) -> Tier:
        if client.limit is None:
            return self.tiers[number_of(client.name, position) % len(self.tiers)]
        most = within(self.space, self.space.largest, client.limit)
        cap = self.space.cost(most).params if most else 0
        allowed = [tier for tier in self.tiers if tier.least <= cap] or [min(self.tiers, key=lambda tier: tier.least)]
        return max(allowed, key=lambda tier: tier.params)


def parse_tiers(text: str, space: SearchSpace) -> tuple[Tier, ...]:
    """Return the tiers of setting ``sample.tiers``: min, max, or shares of the supernet's parameters, e.g. 30%.

    A share below that of the smallest network means the smallest network.
    """
    least, most = (space.cost(arch).params for arch in (space.smallest, space.largest))
    ends = {"min": Tier("min", least, space.smallest), "max": Tier("max", most, space.largest)}
    tiers = []
    for name in map(str.strip, text.split(",")):
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)%", name)
        share = float(found[1]) / 100 if found else 0.0
        if name not in ends and not 0 < share <= 1:
            raise ConfigError(
                f"setting 'sample.tiers' = {text!r}: tier {name!r}: allowed are min, max and shares of the supernet's "
                "parameters above 0% and up to 100%, e.g. min,30%,70%,max"
            )
        small = Tier(name, least, space.smallest)
        tiers.append(ends.get(name) or (Tier(name, most * share) if most * share > least else small))
    return tuple(tiers)


def efedsup(config: RunConfig, space: SearchSpace, path: Sequence[PathRow]) -> tuple[Tiers, Weighting]:
    """Return the parts of the method: a network for each tier, weighed by examples by default."""
    return Tiers(space, parse_tiers(config.sample.tiers, space)), averaging(config)
