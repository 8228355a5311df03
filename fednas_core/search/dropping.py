"""Early dropping of FedNAS (arXiv 2002.06352): candidates that lose on the testing clients are trained no further.

Ours: a margin. Candidates are tested on the same images of the same clients, so what counts is the difference on each
client; a candidate is dropped only if it is behind by more than chance between clients explains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fednas_core.base.values import ClientId
from fednas_core.subnets.weightings import credible

UNTESTED = "no client trained and tested it"
"""Why nothing is known of a candidate."""
Tests = Mapping[ClientId, tuple[int, float]]
"""What one candidate's testing clients found: images and accuracy (0 to 1)."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a candidate stands: accuracy (0 to 1) over `images` test images, `gap` to the best and its standard error.

    Without images nobody tested it, and its accuracy counts as 0.
    """

    label: str
    accuracy: float
    gap: float
    se: float
    images: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """The candidates best first, the labels of those that stay (in the given order), and why each other one goes."""

    ranking: tuple[Standing, ...]
    kept: tuple[str, ...]
    dropped: Mapping[str, str]


def remaining(alive: int, share: float) -> int:
    """Return how many candidates remain when a `share` of 0 to 1 is dropped: ``⌊alive·(1 − share)⌋``, at least one."""
    return max(1, math.floor(alive * (1 - share) + 1e-9))


def alive_counts(candidates: int, rounds: int, every: int, share: float) -> tuple[int, ...]:
    """Return how many candidates train in each round when a share is dropped after every `every` rounds (0: never)."""
    counts, alive = [], candidates
    for round in range(rounds):
        if round and every and round % every == 0:
            alive = remaining(alive, share)
        counts.append(alive)
    return tuple(counts)


def keep(results: Mapping[str, Tests], share: float, margin: float) -> Verdict:
    """Return which candidates go on, given by label what their testing clients found.

    Accuracies are means over images, of the clients that tested every candidate; where there is none, of all that
    tested the one. A claimed number of images counts as far as it is `credible`. All but the best `remaining` go; with
    a `margin` c > 0, of those only the ones whose gap to the best is more than c standard errors. Of equal candidates
    the earlier one wins, and a tested one is before those that nobody tested. If nobody tested any, all stay.
    """
    ranking = _ranking(results)
    best = ranking[0]
    behind = ranking[remaining(len(ranking), share) :] if best.images else ()
    losers = [one for one in behind if margin <= 0 or (one.images and one.gap > margin * one.se)]
    dropped = {one.label: _reason(one, best) for one in losers}
    return Verdict(ranking, tuple(label for label in results if label not in dropped), dropped)


def _reason(one: Standing, best: Standing) -> str:
    if not one.images:
        return UNTESTED
    return f"{100 * one.gap:.1f} points behind {best.label} (SE {100 * one.se:.1f})"


def _ranking(results: Mapping[str, Tests]) -> tuple[Standing, ...]:
    tested = [tests for tests in results.values() if tests]
    common = [client for client in (tested[0] if tested else ()) if all(client in tests for tests in tested)]
    used = {label: {c: tests[c] for c in common if c in tests} if common else tests for label, tests in results.items()}
    accuracies = {label: _mean(tests) for label, tests in used.items()}
    best = max(results, key=lambda label: (bool(results[label]), accuracies[label]))
    standings = [
        Standing(
            label,
            accuracies[label],
            accuracies[best] - accuracies[label],
            0.0 if label == best else _error(used[best], tests, common),
            sum(images for images, _ in tests.values()),
        )
        for label, tests in used.items()
    ]
    return tuple(sorted(standings, key=lambda one: (not one.images, -one.accuracy)))


def _weights(tests: Tests) -> dict[ClientId, float]:
    counted = credible({client: images for client, (images, _) in tests.items()})
    total = sum(counted.values())
    return {client: images / total for client, images in counted.items()}


def _mean(tests: Tests) -> float:
    return sum(weight * tests[client][1] for client, weight in _weights(tests).items()) if tests else 0.0


def _error(best: Tests, other: Tests, common: Sequence[ClientId]) -> float:
    """Return the standard error of the gap: that of the weighted mean of paired differences over common clients.

    ``SE² = m/(m − 1) · Σ w_j² (d_j − d̄)²`` over m clients; with fewer than two that of two binomial shares.
    """
    if len(common) >= 2 and other:
        weights = _weights(best)
        gaps = {client: best[client][1] - other[client][1] for client in common}
        mean = sum(weights[client] * gap for client, gap in gaps.items())
        squares = sum((weights[client] * (gap - mean)) ** 2 for client, gap in gaps.items())
        return math.sqrt(squares * len(common) / (len(common) - 1))
    variances = (_mean(t) * (1 - _mean(t)) / max(1, sum(n for n, _ in t.values())) for t in (best, other))
    return math.sqrt(sum(variances))
