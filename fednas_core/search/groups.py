"""Groups of clients, one for each candidate of FedNAS (arXiv 2002.06352): equal in size and alike in their labels.

Candidates are compared after little training, each by a group of its own. That is fair only if no group has more
examples or easier labels than another. The server knows sizes and those label histograms that clients choose to
disclose. Other draws make other groups, so that no candidate is tied to one slice of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fednas_core.base.values import ClientId
from fednas_core.spaces.space import Ints
from fednas_core.subnets.weightings import credible

Floats = np.ndarray[Any, np.dtype[np.float64]]

BALANCE = 30.0
"""Weight of size against label mix: a group a tenth too large counts as a divergence of 0.3 nats."""
PASSES = 3
"""Passes of exchanges between groups."""
PAIRS = 30_000
"""Exchanges that a pass looks at: with many clients chance alone balances the groups."""
_TINY = 1e-12


def groups(
    examples: Mapping[ClientId, int],
    labels: Mapping[ClientId, Sequence[int]],
    count: int,
    rng: np.random.Generator,
    allowed: Callable[[ClientId, int], bool] | None = None,
) -> tuple[tuple[ClientId, ...], ...]:
    """Deal all clients into `count` groups of near-equal numbers of examples and of label mixes near everyone's.

    Minimises ``Σ_g KL(p_g ‖ p) + BALANCE·(n_g/n̄ − 1)²``: clients are placed one after the other where that rises
    least, then exchanged between groups where that falls. `examples` are claims and count as far as they are
    `credible`; `labels` holds histograms of one length, of clients that disclose theirs: all others count as having
    everyone's mix. `allowed` says which groups a client can serve: one that can serve none is left out, and a group is
    empty only if no arrangement fills it. Each group is sorted by name. Raises ValueError for fewer clients than
    groups.
    """
    if not 1 <= count <= len(examples):
        raise ValueError(f"{len(examples)} clients cannot make {count} groups: allowed are 1 to {len(examples)} groups")
    names = sorted(examples)
    may = np.array([[allowed is None or allowed(name, g) for g in range(count)] for name in names])
    serving = np.flatnonzero(may.any(1))
    names, may = [names[i] for i in serving], may[serving]
    if not names:
        return ((),) * count
    sizes = credible(examples)
    deal = _Deal.start(_mixes([sizes[name] for name in names], [labels.get(name) for name in names]), may)
    deal.place(rng)
    for group in range(count):
        if deal.counts[group] == 0:
            deal.fill(group)
    for _ in range(PASSES):
        tried = rng.permutation(len(names))[: max(1, PAIRS // len(names))]
        if not any([deal.exchange(client) for client in tried]):
            break
    return tuple(tuple(names[i] for i in np.flatnonzero(deal.group == g)) for g in range(count))


def _mixes(sizes: Sequence[int], labels: Sequence[Sequence[int] | None]) -> Floats:
    """Return each client's examples by class, shape (clients, classes), as its histogram or else everyone's has it."""
    classes = max((len(histogram) for histogram in labels if histogram is not None), default=1)
    known = np.array([np.zeros(classes) if histogram is None else histogram for histogram in labels], dtype=np.float64)
    known = np.maximum(known.reshape(len(sizes), classes), 0)
    known *= np.array(sizes)[:, None] / np.maximum(known.sum(1, keepdims=True), _TINY)
    silent = known.sum(1) == 0
    known[silent] = np.array(sizes)[silent, None] * (_shares(known.sum(0)) if not silent.all() else 1 / classes)
    return known


def _shares(examples: Floats) -> Floats:
    shares: Floats = examples / np.maximum(examples.sum(-1, keepdims=True), _TINY)
    return shares


@dataclass
class _Deal:
    """Who is in which group. Shapes: `mixes` (clients, classes), `may` (clients, groups), `totals` (groups, classes).

    `group` holds each client's group, `counts` the clients of each group.
    """

    mixes: Floats
    may: np.ndarray[Any, np.dtype[np.bool_]]
    group: Ints
    counts: Ints
    totals: Floats

    @classmethod
    def start(cls, mixes: Floats, may: np.ndarray[Any, np.dtype[np.bool_]]) -> _Deal:
        """Nobody is in a group."""
        clients, count = may.shape
        nobody = np.full(clients, -1), np.zeros(count, dtype=np.int64)
        return cls(mixes, may, *nobody, np.zeros((count, mixes.shape[1])))

    def misfit(self, totals: Floats) -> Floats:
        """Return what groups of these examples, shape (…, classes), add to the sum that is minimised, shape (…)."""
        everyone = self.mixes.sum(0)
        shares = _shares(totals)
        divergence = (shares * np.log(np.maximum(shares, _TINY) / np.maximum(_shares(everyone), _TINY))).sum(-1)
        sizes = totals.sum(-1) * len(self.totals) / everyone.sum()
        misfit: Floats = divergence + BALANCE * (sizes - 1) ** 2
        return misfit

    def move(self, client: int, group: int) -> None:
        """Put a client into a group, out of the one that it is in, if any."""
        before = self.group[client]
        if before >= 0:
            self.totals[before] -= self.mixes[client]
            self.counts[before] -= 1
        self.group[client] = group
        self.totals[group] += self.mixes[client]
        self.counts[group] += 1

    def place(self, rng: np.random.Generator) -> None:
        """Put each client where it fits best: those of least choice first, and by luck the larger ones earlier."""
        luck = self.mixes.sum(1) * rng.uniform(0.5, 1, len(self.mixes))
        ties = _TINY * rng.random(len(self.totals))
        now = self.misfit(self.totals)
        for client in np.lexsort((-luck, self.may.sum(1))):
            after = self.misfit(self.totals + self.mixes[client])
            best = np.argmin(np.where(self.may[client], after - now + ties, np.inf))
            self.move(client, int(best))
            now[best] = after[best]

    def fill(self, empty: int) -> None:
        """Fill an empty group by a shortest chain of moves from a group that has a client to spare, if there is one."""
        taken: dict[int, tuple[int, int]] = {}
        queue = [empty]
        for group in queue:
            for client in np.flatnonzero(self.may[:, group]).tolist():
                giver = int(self.group[client])
                if giver == empty or giver in taken:
                    continue
                taken[giver] = (client, group)
                queue.append(giver)
                if self.counts[giver] > 1:
                    while giver != empty:
                        mover, to = taken[giver]
                        self.move(mover, to)
                        giver = to
                    return

    def exchange(self, client: int) -> bool:
        """Swap a client with the best of all others, or move it, if that improves the sum; no group is left empty."""
        home, clients = int(self.group[client]), len(self.mixes)
        groups = np.concatenate([self.group, np.arange(len(self.totals))])
        others = np.concatenate([self.mixes, np.zeros_like(self.totals)])
        swaps = np.concatenate([self.may[:, home], np.full(len(self.totals), self.counts[home] > 1)])
        partners = np.flatnonzero(swaps & self.may[client, groups] & (groups != home))
        if len(partners) == 0:
            return False
        there, change = groups[partners], others[partners] - self.mixes[client]
        now = self.misfit(self.totals)
        rise = self.misfit(self.totals[home] + change) + self.misfit(self.totals[there] - change)
        rise -= now[home] + now[there]
        best = int(np.argmin(rise))
        if rise[best] > -1e-9:
            return False
        self.move(client, int(there[best]))
        if partners[best] < clients:
            self.move(int(partners[best]), home)
        return True
