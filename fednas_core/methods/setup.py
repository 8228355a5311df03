"""What methods are made from, and how the settings say that clients train and replies are put together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import count

import numpy as np
from torch import Tensor

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ConfigError, RunError
from fednas_core.base.values import Arch, ClientId, State
from fednas_core.devices.info import Limit
from fednas_core.search.netadapt import Resource
from fednas_core.search.path import PathRow
from fednas_core.search.shrinking import Curriculum, parse_order
from fednas_core.spaces.space import Elastic
from fednas_core.subnets.merge import DampedMerge, Merge, Merging
from fednas_core.subnets.trimmed import TrimmedMerge
from fednas_core.subnets.weightings import ByExamples, Uniform
from fednas_core.training.settings import TrainSettings, train_settings


def _nobody(arch: Arch) -> float:
    raise RunError("nobody measured the latency of the run's networks: only a run that trains can tell milliseconds")


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """What a method is made from.

    `weights` are the supernet's tensors, or those of the network that a search starts from, trained in place; `path`
    is the run's Pareto path, `limits` are those for which networks are delivered, `latency_ms` measures milliseconds of
    an architecture on the run's devices, and `policy` is one that is transferred from another run. `sides` says of
    clients of the run that this one starts from whether they tested there.
    """

    config: RunConfig
    space: Elastic
    path: Sequence[PathRow]
    weights: dict[str, Tensor]
    limits: Sequence[Limit] = ()
    latency_ms: Callable[[Arch], float] = _nobody
    policy: State | None = None
    sides: Mapping[ClientId, bool] = field(default_factory=dict)


def resource_of(setup: Setup, what: str) -> Resource:
    """Return what measures a network: a cost of it by name, or ``ms``, those of the devices' own latency models."""
    if what == "ms":
        return setup.latency_ms
    return lambda arch: float(getattr(setup.space.cost(arch), what))


def averaging(config: RunConfig) -> ByExamples | Uniform:
    """Return how much replies count in methods that average by examples, unless ``sample.weigh`` says otherwise."""
    return Uniform() if config.sample.weigh == "uniform" else ByExamples()


def merging(config: RunConfig, supernet: dict[str, Tensor]) -> Merging:
    """Return how replies are put together, as setting ``merge.rule`` says."""
    if config.merge.rule == "trimmed":
        return TrimmedMerge(supernet, config.merge.trim)
    return DampedMerge(supernet) if config.merge.rule == "damped" else Merge(supernet)


def scheduled(config: RunConfig, space: Elastic | None = None) -> Callable[[int], TrainSettings]:
    """Return how clients train in each round (from 0): the rate may rise at first, then fall along half a cosine."""
    settings, warmup = train_settings(config.train), config.train.warmup

    def settled(round: int) -> TrainSettings:
        if round < warmup:
            return replace(settings, lr=settings.lr * (round + 1) / (warmup + 1))
        if config.train.schedule == "constant":
            return settings
        return annealed(settings, round - warmup, config.rounds - warmup)

    return settled


def annealed(settings: TrainSettings, index: int, of: int) -> TrainSettings:
    """Return the settings of round `index` (from 0) of `of`, over which the rate falls along half a cosine."""
    return replace(settings, lr=settings.lr * (0.5 * (1 + math.cos(math.pi * index / max(1, of)))))


def growing(config: RunConfig, space: Elastic) -> Curriculum:
    """Return the curriculum of setting ``sample.shrink``; raise `ConfigError` where a phase would have no round."""
    order = parse_order(config.sample.shrink)
    curriculum = Curriculum(space, order, closed_rounds(config))
    phases = curriculum.phases
    if curriculum.closed < phases - 1:
        enough = next(n for n in count(config.rounds) if closed_rounds(replace(config, rounds=n)) >= phases - 1)
        raise ConfigError(
            f"setting 'sample.shrink' = {config.sample.shrink!r}: these genes of space '{space.name}' open in {phases} "
            f"phases, all but the last within {config.sample.shrink_until:.0%} of the summed learning rate, a round "
            f"each at least: allowed are rounds from {enough}, a larger sample.shrink-until, or fewer genes"
        )
    return curriculum


@lru_cache(maxsize=64)
def closed_rounds(config: RunConfig) -> int:
    """Return for how many rounds progressive shrinking may hold choices back.

    They spend at most the share ``sample.shrink-until`` of the summed learning rate: networks that a round late in the
    schedule lets in for the first time would learn next to nothing.
    """
    settings = scheduled(config)
    spent = np.cumsum([settings(round).lr for round in range(config.rounds)])
    return int(np.count_nonzero(spent <= config.sample.shrink_until * spent[-1] * (1 + 1e-9)))
