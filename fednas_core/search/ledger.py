"""What FedNAS (arXiv 2002.06352) costs its clients, in closed form: known before a run, and checked after it.

One unit of work is one client training one candidate for one round. `Design` counts units of a search from its
settings alone; `work` adds up MACs and bytes of given candidates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from fednas_core.base.values import TRAINING_FACTOR
from fednas_core.search.dropping import alive_counts


def dynamic_rounds(low: int, high: int, iterations: int) -> tuple[int, ...]:
    """Return the rounds of each iteration, ``round(low + (high − low)·i/(I − 1))``, halves up; a single one has `high`.

    Early candidates differ coarsely and can be ranked after little training, late ones are alike.
    """
    if iterations == 1:
        return (high,)
    steps = iterations - 1
    return tuple(low + (2 * (high - low) * i + steps) // (2 * steps) for i in range(iterations))


@dataclass(frozen=True, slots=True)
class Design:
    """How a search spends its clients; candidates of equal size, and clients of dropped candidates are idle.

    `candidates` is their number in every iteration, or a number for each; `rounds` those of each iteration. After every
    `every` rounds (0: never) a `share` of the candidates is dropped. `clients` train in each round: in `parts`, one for
    each of an iteration's candidates, or else all of them every candidate. Parts differ by one client at most; larger
    ones are counted as those of the candidates that stay. Raises ValueError if the iterations are not as many.
    """

    candidates: int | tuple[int, ...]
    clients: int
    rounds: tuple[int, ...]
    every: int
    share: float
    parts: bool

    def __post_init__(self) -> None:
        """Refuse numbers of candidates for other iterations than those that have rounds."""
        if isinstance(self.candidates, tuple) and len(self.candidates) != len(self.rounds):
            raise ValueError(f"{len(self.candidates)} numbers of candidates for {len(self.rounds)} iterations")

    @property
    def client_rounds(self) -> int:
        """Units of work of the whole search."""
        numbers = self.candidates if isinstance(self.candidates, tuple) else (self.candidates,) * len(self.rounds)
        return sum(self._iteration(k, rounds) for k, rounds in zip(numbers, self.rounds, strict=True))

    @property
    def straightforward(self) -> Design:
        """The design without savings: every client trains every candidate, for the most rounds of any iteration."""
        return replace(self, rounds=(max(self.rounds),) * len(self.rounds), share=0.0, parts=False)

    def saving(self, other: Design) -> float:
        """Return how many times less work this design is than another."""
        return other.client_rounds / self.client_rounds

    def _iteration(self, candidates: int, rounds: int) -> int:
        size, larger = divmod(self.clients, candidates) if self.parts else (self.clients, 0)
        alive = alive_counts(candidates, rounds, self.every, self.share)
        return sum(count * size + min(count, larger) for count in alive)


def candidates_for(saving: float, design: Design) -> int | None:
    """Return the least number of candidates with which a design needs `saving` times less than the straightforward one.

    None if no number does, up to one candidate for each client.
    """
    for candidates in range(1, design.clients + 1):
        wider = replace(design, candidates=candidates)
        if wider.saving(wider.straightforward) >= saving:
            return candidates
    return None


@dataclass(frozen=True, slots=True)
class Job:
    """One candidate in one round: how many clients train it, their training examples in all, and what it takes.

    `macs` are those of one forward pass of one image, `bytes` those of its tensors as they travel, one way.
    """

    clients: int
    examples: int
    macs: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Work:
    """What clients do: units of work, multiply-accumulates of training, and bytes sent and received."""

    client_rounds: int
    macs: int
    bytes: int


def work(iterations: Iterable[Iterable[Iterable[Job]]], epochs: int) -> Work:
    """Add up ``Σ_i Σ_r Σ_k |clients(k)|·(3·E·n·MACs_k + 2·bytes_k)``, MACs and bytes apart, E = `epochs`.

    The jobs are those of the candidates alive in each round of each iteration; their examples are ``|clients(k)|·n``.
    """
    jobs = [job for iteration in iterations for alive in iteration for job in alive]
    return Work(
        sum(job.clients for job in jobs),
        sum(TRAINING_FACTOR * epochs * job.examples * job.macs for job in jobs),
        sum(2 * job.clients * job.bytes for job in jobs),
    )
