"""Progressive shrinking (once-for-all, ICLR 2020) around any sampler: what it draws is raised to the round's floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fednas_core.base.values import ClientId
from fednas_core.devices.info import ClientInfo
from fednas_core.methods.fedavg import ArchSampler
from fednas_core.methods.method import Assignment
from fednas_core.search.shrinking import Curriculum


@dataclass(frozen=True, slots=True)
class Shrinking:
    """A sampler that raises what another one draws, where the client's limit allows it; roles and tiers stay."""

    sampler: ArchSampler
    curriculum: Curriculum

    def assign(self, round: int, clients: Sequence[ClientInfo], rng: np.random.Generator) -> dict[ClientId, Assignment]:
        """See `ArchSampler.assign`."""
        limits = {client.name: client.limit for client in clients}
        return {
            name: replace(drawn, arch=self.curriculum.raised(drawn.arch, round, limits[name]))
            for name, drawn in self.sampler.assign(round, clients, rng).items()
        }

    def trained(self, client: ClientId, assignment: Assignment) -> None:
        """See `ArchSampler.trained`."""
        self.sampler.trained(client, assignment)

    def state(self) -> dict[str, Any]:
        """See `ArchSampler.state`: the curriculum depends on the round alone."""
        return self.sampler.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `ArchSampler.restore`."""
        self.sampler.restore(state)
