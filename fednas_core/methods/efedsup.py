"""E-FedSup (Kim and Yun, arXiv 2206.01366): as FedSup, but each client gets one subnet, cut out on the way down.

Server, in each round: choose for each client a network of a tier; send that slice of the supernet; merge what comes
back. Client: plain cross-entropy for E epochs, task ``subnet``.

The published tiers are the smallest network, parameters in [0.75, 1.0] M and in [2.0, 2.75] M of 2.99 M, and the
largest: here the settings name them as shares of the supernet's parameters. A device whose limit allows no more keeps
to its tier. Where nothing binds a client to one, tiers go round, so that each is trained on everybody's images; bound
to clients by their numbers, as published, a tier sees no images but those of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fednas_core.base.config import RunConfig
from fednas_core.base.values import Arch, ClientId
from fednas_core.devices.info import ClientInfo, Limit
from fednas_core.devices.limits import number_of
from fednas_core.methods.fedavg import Forgetful
from fednas_core.methods.fedsup import role_of
from fednas_core.methods.method import Assignment
from fednas_core.methods.setup import averaging
from fednas_core.methods.tiers import FEW, Tier, parse_tiers
from fednas_core.search.path import PathRow
from fednas_core.search.sized import sized
from fednas_core.search.within import within
from fednas_core.spaces.space import Elastic
from fednas_core.subnets.weightings import Weighting


@dataclass(frozen=True, slots=True)
class Tiers(Forgetful):
    """One network for each client, of the tier that its limit allows.

    Clients without a limit are dealt the tiers anew in each round, where those of the round before left off, so that
    each tier is dealt as often as any other; or, if tiers do not `rotate`, once and for all by their numbers.
    """

    space: Elastic
    tiers: tuple[Tier, ...]
    rotate: bool = True

    def assign(self, round: int, clients: Sequence[ClientInfo], rng: np.random.Generator) -> dict[ClientId, Assignment]:
        """See `ArchSampler.assign`."""
        dealt = self._dealt(round, clients, rng)
        chosen = {}
        for client in clients:
            tier = dealt.get(client.name) or self._held(client.limit)
            arch = self._drawn(tier, client.limit, rng)
            if arch:
                chosen[client.name] = Assignment(arch, role_of(self.space, arch), tier.name)
        return chosen

    def trainers(self, clients: Sequence[ClientInfo]) -> dict[str, int]:
        """Return of how many clients each tier's networks are trained, sooner or later."""
        found = dict.fromkeys((tier.name for tier in self.tiers), 0)
        for position, client in enumerate(clients):
            if client.limit is not None:
                found[self._held(client.limit).name] += 1
            elif self.rotate:
                found = {name: n + 1 for name, n in found.items()}
            else:
                found[self._numbered(client.name, position).name] += 1
        return found

    def _drawn(self, tier: Tier, limit: Limit | None, rng: np.random.Generator) -> Arch | None:
        if tier.only:
            return within(self.space, tier.only, limit)
        return sized(self.space, tier.least, tier.most, limit, rng)

    def _dealt(self, round: int, clients: Sequence[ClientInfo], rng: np.random.Generator) -> dict[ClientId, Tier]:
        """Return the tier of each client that has no limit."""
        free = [(position, client.name) for position, client in enumerate(clients) if client.limit is None]
        if not self.rotate:
            return {name: self._numbered(name, position) for position, name in free}
        turn = round * len(free)
        return {free[i][1]: self.tiers[(turn + k) % len(self.tiers)] for k, i in enumerate(rng.permutation(len(free)))}

    def _numbered(self, client: ClientId, position: int) -> Tier:
        return self.tiers[number_of(client, position) % len(self.tiers)]

    def _held(self, limit: Limit | None) -> Tier:
        """Return the tier of a device: the largest that its limit lets it enter."""
        most = within(self.space, self.space.largest, limit)
        cap = self.space.cost(most).params if most else 0
        allowed = [tier for tier in self.tiers if tier.entry <= cap] or [min(self.tiers, key=lambda tier: tier.entry)]
        return max(allowed, key=lambda tier: tier.most)


def efedsup(config: RunConfig, space: Elastic, path: Sequence[PathRow]) -> tuple[Tiers, Weighting]:
    """Return the parts of the method: a network for each tier, weighed by examples by default."""
    return tiers_of(config, space), averaging(config)


def tiers_of(config: RunConfig, space: Elastic) -> Tiers:
    """Return who trains which tier's networks, as the settings say."""
    return Tiers(space, parse_tiers(config.sample.tiers, space), config.sample.deal == "rotate")


def cautions(config: RunConfig, space: Elastic, clients: Sequence[ClientInfo]) -> list[str]:
    """Return a warning for each tier that fewer than `FEW` of the clients train, if others do not train it."""
    tiers = tiers_of(config, space)
    found = tiers.trainers(clients).items()
    return [sparse(name, n, tiers.rotate) for name, n in found if n < min(FEW, len(clients))]


def sparse(tier: str, trainers: int, rotate: bool) -> str:
    """Return the warning that few clients train a tier, and what helps besides letting tiers `rotate`."""
    who = {0: "no client trains", 1: "one client trains"}.get(trainers, f"{trainers} clients train")
    help = "Name" if rotate else "Let tiers go round (sample.deal = rotate), name"
    return (
        f"tier '{tier}': {who} its networks: what these do not share with those of other tiers learns from no other "
        f"images. {help} fewer (sample.tiers) or raise budgets, until {FEW} do"
    )
