"""The closed-form fitness of DeepFedNAS (arXiv 2601.15127), evaluated on whole populations by table look-up.

An architecture is a sum of blocks and every block depends on three genes at most, so `tables` holds the MACs,
parameters and log-widths of every possible block once, and `evaluate` only gathers and adds. It agrees with
``space.cost`` to the last integer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from fednas_core.base.errors import ArchError, ConfigError
from fednas_core.spaces.capabilities import Staged
from fednas_core.spaces.layers import VECTORS

Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]

REFUSED = -1e8
"""Fitness of an architecture whose effectiveness exceeds `Fitness.rho_max`, as published."""
MACS, PARAMS, LOG_WIDTH = 0, 1, 2
"""Columns of the last axis of `Tables`."""


@dataclass(frozen=True, slots=True)
class Fitness:
    """The constants of F = Σ H − ω·Q + λ·ρ − γ·V, subject to ρ ≤ `rho_max` (section "Phase 1" of the paper).

    λ is 1000 where the published code makes its cache and 100 in its search script; ρ ≤ 0.51, also published, never
    binds in the published space, so the bound is off by default.
    """

    omega: float = 10.0
    lam: float = 1000.0
    gamma: float = 1.0
    rho_max: float = math.inf

    def __post_init__(self) -> None:
        """Refuse constants under which the formula means nothing."""
        for name, symbol in (("omega", "ω"), ("lam", "λ"), ("gamma", "γ")):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"fitness: {symbol} ({name}) = {value!r}, allowed: a finite number of at least 0")
        if not self.rho_max > 0:
            raise ConfigError(f"fitness: rho_max = {self.rho_max!r}, allowed: a positive number or inf")


PUBLISHED = Fitness()
"""The constants with which the published path was made."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What `evaluate` finds, one entry per architecture; all arrays have shape (n,).

    `macs` and `params` are those of ``space.cost``; `layers` counts L; `rho` is the effectiveness L / (geometric mean
    of the layer widths); `entropy` is Σ H; `balance` is Q = exp(variance of the depths), at least 1; `violation` is V,
    the channels lost from one stage to the next.
    """

    macs: Ints
    params: Ints
    layers: Ints
    rho: Floats
    entropy: Floats
    balance: Floats
    violation: Ints

    def fitness(self, constants: Fitness) -> Floats:
        """Return F of every architecture, shape (n,); `REFUSED` where ρ exceeds its bound."""
        value = self.entropy - constants.omega * self.balance + constants.lam * self.rho
        value -= constants.gamma * self.violation
        return np.where(self.rho <= constants.rho_max, value, REFUSED)


@dataclass(frozen=True, slots=True)
class Tables:
    """What every block of a space costs; the last axis is (MACs, parameters, sum of the layers' log-widths).

    With W widths, E expansions and S stages: `stem` (W, 3); `first` (S, W, W, E, 3), the first block of a stage by
    incoming width, stage width and expansion; `later` (S, W, E + 1, 3), any further block, expansion index E meaning
    that the block is absent; `head` (W, 3); `weight` (S, W), the stage's factor ln(r²·c) of the entropy; `loss`
    (S, W, W), channels lost from incoming to stage width (0 in the first stage: the stem is not compared).
    """

    stem: Floats
    first: Floats
    later: Floats
    head: Floats
    weight: Floats
    loss: Ints


@lru_cache(maxsize=16)
def tables(space: Staged) -> Tables:
    """Return the tables of a space."""
    normed = len(VECTORS[space.norm])
    c0, c = space.channels[0], space.channels[1:]
    mid = space.inner[1:, None, :, :]
    area = np.array(space.sizes[1:], dtype=np.int64)[:, None] ** 2
    c_in = space.channels[:-1, :, None, None]
    out = c[:, None, :, None]

    stem = [9 * space.in_channels * c0 * space.sizes[0] ** 2, (9 * space.in_channels + normed) * c0]
    first_weights = 9 * c_in * mid + 9 * mid * out + c_in * out
    first_logs = np.log(9.0 * c_in) + np.log(9.0 * mid) + np.log(c_in)
    first = [first_weights * area[:, :, None, None], first_weights + normed * (mid + 2 * out), first_logs]
    inner, stage = space.inner[1:], c[:, :, None]
    later_weights = 18 * stage * inner
    later_logs = np.log(9.0 * stage) + np.log(9.0 * inner)
    later = [later_weights * area[:, :, None], later_weights + normed * (inner + stage), later_logs]
    head = [c[-1] * space.classes, (c[-1] + 1) * space.classes]

    loss = np.maximum(0, space.channels[:-1, :, None] - c[:, None, :])
    loss[0] = 0
    return Tables(
        stem=np.stack([*stem, np.full(len(c0), math.log(9 * space.in_channels))], axis=-1).astype(np.float64),
        first=np.stack(first, axis=-1).astype(np.float64),
        later=np.pad(np.stack(later, axis=-1).astype(np.float64), ((0, 0), (0, 0), (0, 1), (0, 0))),
        head=np.stack([*head, np.zeros(len(c0))], axis=-1).astype(np.float64),
        weight=np.log(area * c),
        loss=loss,
    )


def layers(space: Staged, depths: Ints) -> Ints:
    """Return L of depth genes, shape (…, stages): the stem, three layers a stage and two a further block."""
    count: Ints = 1 + np.sum(3 + 2 * np.asarray(depths, dtype=np.int64), axis=-1)
    return count


def balance(depths: Ints) -> Floats:
    """Return Q of depth genes, shape (…, stages): e to the population variance, 1 if all stages are equally deep."""
    value: Floats = np.exp(np.var(np.asarray(depths, dtype=np.float64), axis=-1))
    return value


def evaluate(space: Staged, population: Ints) -> Scores:
    """Return the scores of a population, shape (n, genes), rows as from ``space.encode``.

    Raises `ArchError` if the array has another shape or a gene is out of its range.
    Takes well under 1 µs an architecture.
    """
    population = np.asarray(population, dtype=np.int64)
    if population.ndim != 2 or population.shape[1] != len(space.gene_choices):
        needed = f"(n, {len(space.gene_choices)})"
        raise ArchError(f"population of space '{space.name}' has shape {population.shape}, needed is {needed}")
    genes = np.ascontiguousarray(population.T)
    if population.size and (genes.min() < 0 or (genes.max(axis=1) >= space.gene_choices).any()):
        raise ArchError(f"population of space '{space.name}' has a gene outside 0 to its number of choices − 1")
    stages, blocks = len(space.stages), space.most_blocks
    d, e, w = genes[:stages], genes[stages : stages * (1 + blocks)], genes[stages * (1 + blocks) :]
    table = tables(space)
    n_widths, absent = len(space.widths), len(space.expansions)

    total = table.stem[w[0]] + table.head[w[-1]]
    entropy = np.zeros(len(population))
    violation = np.zeros(len(population), dtype=np.int64)
    for j in range(stages):
        path = w[j] * n_widths + w[j + 1]
        stage = table.first[j].reshape(-1, 3)[path * absent + e[j * blocks]]
        later, at = table.later[j].reshape(-1, 3), w[j + 1] * (absent + 1)
        for b in range(1, blocks):
            stage += later[at + np.where(b <= d[j], e[j * blocks + b], absent)]
        entropy += table.weight[j][w[j + 1]] * stage[:, LOG_WIDTH]
        violation += table.loss[j].ravel()[path]
        total += stage
    depths = d.T
    count = layers(space, depths)
    return Scores(
        macs=total[:, MACS].astype(np.int64),
        params=total[:, PARAMS].astype(np.int64),
        layers=count,
        rho=count / np.exp(total[:, LOG_WIDTH] / count),
        entropy=entropy,
        balance=balance(depths),
        violation=violation,
    )
