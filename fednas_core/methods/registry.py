"""Methods by name: each entry composes a method from its parts and says where it was published."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from fednas_core.aggregation.trimmed import TrimmedMerge
from fednas_core.aggregation.weightings import ByExamples, MaxNet, Weighting
from fednas_core.config import RunConfig
from fednas_core.errors import ConfigError
from fednas_core.methods.deepfednas import curriculum
from fednas_core.methods.efedsup import efedsup
from fednas_core.methods.fedavg import ArchSampler, Everyone, Schedule, SupernetAveraging, fixed_arch
from fednas_core.methods.fedper import PERSONAL, fedper
from fednas_core.methods.fedsup import TASK, fedsup
from fednas_core.methods.shrinking import Shrinking
from fednas_core.methods.superfednas import TrackingSandwich
from fednas_core.protocol import TrainSettings
from fednas_core.search.fitness import Fitness
from fednas_core.search.path import PathRow, budgets, pareto_path
from fednas_core.search.shrinking import Curriculum, parse_order
from fednas_core.search.within import within
from fednas_core.seeding import derive
from fednas_core.spaces.space import SearchSpace
from fednas_core.subnets.merge import DampedMerge, Merge, Merging

Parts = tuple[ArchSampler, Weighting]


@dataclass(frozen=True, slots=True)
class Entry:
    """A published system: its title and source, and how its parts are made.

    `task` is what its clients do, `personal` names the layers that stay on them unless the settings say otherwise;
    `fixed` methods train one architecture only, that of setting ``sample.arch``.
    """

    title: str
    source: str
    parts: Callable[[RunConfig, SearchSpace, Sequence[PathRow]], Parts]
    task: str = "subnet"
    personal: str = ""
    fixed: bool = False


def _fedavg(config: RunConfig, space: SearchSpace, path: Sequence[PathRow]) -> Parts:
    return Everyone(fixed_arch(config, space)), ByExamples()


def _superfednas(config: RunConfig, space: SearchSpace, path: Sequence[PathRow]) -> Parts:
    if config.sample.between not in ("auto", "uniform"):
        return curriculum(space, path, config.sample), max_net(config)
    narrow = partial(within, space)
    return TrackingSandwich(space.largest, lambda rng: space.smallest, space.sample, narrow), max_net(config)


def _deepfednas(config: RunConfig, space: SearchSpace, path: Sequence[PathRow]) -> Parts:
    return curriculum(space, path, config.sample), max_net(config)


def max_net(config: RunConfig) -> MaxNet:
    """Return MaxNet with the run's β schedule, T being a share of all rounds."""
    sample = config.sample
    decay = max(1, round(sample.beta_decay * config.rounds))
    return MaxNet(sample.beta_start, sample.beta_end, decay, sample.weigh_examples)


METHODS: dict[str, Entry] = {
    "fedavg": Entry("Federated averaging of one network", "McMahan et al., AISTATS 2017", _fedavg, fixed=True),
    "superfednas": Entry("Tracking sandwich, MaxNet weights", "Khare et al., ECCV 2024", _superfednas),
    "fedsup": Entry("Sandwich rule on every client", "Kim and Yun, arXiv 2206.01366", fedsup, task=TASK),
    "efedsup": Entry("A subnet for each tier of devices", "Kim and Yun, arXiv 2206.01366", efedsup),
    "fedper": Entry(
        "Personal layers on a shared base",
        "Arivazhagan et al., arXiv 1912.00818",
        fedper,
        personal=PERSONAL,
        fixed=True,
    ),
    "deepfednas": Entry("Pareto path as curriculum", "Khan and Daneshtalab, arXiv 2601.15127", _deepfednas),
}


def path_of(config: RunConfig, space: SearchSpace, poorest: int) -> tuple[PathRow, ...]:
    """Return the run's Pareto path, from its published lower end or `poorest`, the MACs of the poorest device."""
    return pareto_path(
        space,
        config.sample.budgets,
        Fitness(lam=config.sample.fitness_lambda),
        how=config.sample.path,
        stratify=config.sample.stratify,
        seed=derive(config.seed, "path"),
        low=max(min(poorest, budgets(space, 2)[0]), space.cost(space.smallest).macs),
    )


def make(
    config: RunConfig, space: SearchSpace, path: Sequence[PathRow], supernet: dict[str, Tensor]
) -> SupernetAveraging:
    """Return the method that the settings name; `supernet` is trained in place."""
    entry = METHODS[config.method]
    sampler, weighting = entry.parts(config, space, path)
    growing = Curriculum(space, parse_order(config.sample.shrink), config.rounds)
    if growing.order:
        sampler = Shrinking(sampler, growing)
    if config.sample.sort and (config.loop == "async" or config.wire.up == "topk"):
        raise ConfigError(
            "setting 'sample.sort' gives channels new places, and replies of loop 'async' or residuals of wire.up "
            "'topk' know the old ones: allowed are loop sync and the other ways up"
        )
    schedule = Schedule(
        rounds=config.rounds,
        settings=scheduled(config),
        seed=config.seed,
        task=entry.task,
        own=growing.complete if config.personal.arch else None,
        sorts=growing.opening if config.sample.sort else None,
    )
    return SupernetAveraging(space, supernet, sampler, weighting, schedule, merging(config, supernet))


def merging(config: RunConfig, supernet: dict[str, Tensor]) -> Merging:
    """Return how replies are put together, as setting ``merge.rule`` says."""
    if config.merge.rule == "trimmed":
        return TrimmedMerge(supernet, config.merge.trim)
    return DampedMerge(supernet) if config.merge.rule == "damped" else Merge(supernet)


def scheduled(config: RunConfig) -> Callable[[int], TrainSettings]:
    """Return how clients train in each round (from 0): the rate may rise at first, then fall along half a cosine."""
    settings, warmup = config.train.settings(), config.train.warmup

    def height(round: int) -> float:
        if round < warmup:
            return (round + 1) / (warmup + 1)
        if config.train.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (round - warmup) / max(1, config.rounds - warmup)))

    return lambda round: replace(settings, lr=settings.lr * height(round))
