"""How much each client's reply counts in the merge."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from fednas_core.base.values import ClientId

HEAVIEST = 10
"""How many times the cohort's median a client's number of examples may count: it is a claim that nobody can check."""


def credible(examples: Mapping[ClientId, int]) -> dict[ClientId, int]:
    """Return the numbers of examples that weights are made of: from 1 to `HEAVIEST` times the cohort's median.

    Two clients have no median that says anything: theirs count as they are.
    """
    most = HEAVIEST * statistics.median_low(examples.values()) if len(examples) > 2 else max(examples.values())
    return {client: max(1, min(n, most)) for client, n in examples.items()}


class Weighting(Protocol):
    """A rule that weighs one round's replies; weights are above zero and add up to one."""

    def weights(self, round: int, examples: Mapping[ClientId, int], largest: ClientId | None) -> dict[ClientId, float]:
        """Weigh the cohort, given each client's number of examples and who trains the largest network, if anyone."""
        ...


@dataclass(frozen=True, slots=True)
class ByExamples:
    """Federated averaging (McMahan et al., 2017): ``n_k / Σ n``, n_k as far as it is `credible`."""

    def weights(self, round: int, examples: Mapping[ClientId, int], largest: ClientId | None) -> dict[ClientId, float]:
        """See `Weighting.weights`."""
        counted = credible(examples)
        total = sum(counted.values())
        return {client: n / total for client, n in counted.items()}


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every reply counts the same, ``1/K``, as in the code of FedSup (arXiv 2206.01366)."""

    def weights(self, round: int, examples: Mapping[ClientId, int], largest: ClientId | None) -> dict[ClientId, float]:
        """See `Weighting.weights`."""
        return dict.fromkeys(examples, 1 / len(examples))


@dataclass(frozen=True, slots=True)
class MaxNet:
    """MaxNet (SuperFedNAS, ECCV 2024): β_t for the largest network, ``(1 − β_t)/(K − 1)`` for every other client.

    ``β_t = β_f + (β_0 − β_f)·½·(1 + cos(π·min(t, T)/T))`` with `start` β_0, `end` β_f (0: one over the cohort's size)
    and `decay_rounds` T. `by_examples` multiplies by n_k as well, as far as it is `credible`.
    """

    start: float
    end: float
    decay_rounds: int
    by_examples: bool = False

    def beta(self, round: int, cohort: int) -> float:
        """Return β_t for round t (from 0) of a cohort of K clients."""
        end = self.end or 1 / cohort
        passed = min(round, self.decay_rounds) / self.decay_rounds
        return end + (self.start - end) * 0.5 * (1 + math.cos(math.pi * passed))

    def weights(self, round: int, examples: Mapping[ClientId, int], largest: ClientId | None) -> dict[ClientId, float]:
        """See `Weighting.weights`."""
        cohort = len(examples)
        if cohort == 1 or largest is None:
            weights = dict.fromkeys(examples, 1 / cohort)
        else:
            beta = min(max(self.beta(round, cohort), 1e-6), 1 - 1e-6)
            weights = {c: beta if c == largest else (1 - beta) / (cohort - 1) for c in examples}
        if self.by_examples:
            counted = credible(examples)
            weights = {c: w * counted[c] for c, w in weights.items()}
            total = sum(weights.values())
            weights = {c: w / total for c, w in weights.items()}
        return weights
