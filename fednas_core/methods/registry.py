"""Methods by name: each is composed from the parts that its entry in the catalogue names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pkgutil import resolve_name

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ConfigError
from fednas_core.base.seeding import derive
from fednas_core.devices.info import ClientInfo
from fednas_core.exchange.orders import Scalars
from fednas_core.methods.catalogue import METHODS, Entry, Search
from fednas_core.methods.contest import Contest
from fednas_core.methods.deepfednas import curriculum
from fednas_core.methods.fedavg import ArchSampler, Everyone, Schedule, SupernetAveraging, fixed_arch
from fednas_core.methods.setup import Setup, averaging, growing, merging
from fednas_core.methods.shrinking import Shrinking
from fednas_core.methods.superfednas import TrackingSandwich
from fednas_core.search.fitness import Fitness
from fednas_core.search.path import PathRow, budgets, pareto_path
from fednas_core.search.within import within
from fednas_core.spaces.space import Elastic
from fednas_core.subnets.weightings import MaxNet, Weighting

Parts = tuple[ArchSampler, Weighting]


def fedavg(config: RunConfig, space: Elastic, path: Sequence[PathRow]) -> Parts:
    """Return the parts of federated averaging."""
    return Everyone(fixed_arch(config, space)), averaging(config)


def superfednas(config: RunConfig, space: Elastic, path: Sequence[PathRow]) -> Parts:
    """Return the parts of SuperFedNAS, or of a control that samples otherwise."""
    if config.sample.between not in ("auto", "uniform"):
        return curriculum(space, path, config.sample), max_net(config)
    narrow = partial(within, space)
    return TrackingSandwich(space.largest, lambda rng: space.smallest, space.sample, narrow), max_net(config)


def deepfednas(config: RunConfig, space: Elastic, path: Sequence[PathRow]) -> Parts:
    """Return the parts of DeepFedNAS."""
    return curriculum(space, path, config.sample), max_net(config)


def max_net(config: RunConfig) -> MaxNet:
    """Return MaxNet with the run's β schedule, T being a share of all rounds."""
    sample = config.sample
    decay = max(1, round(sample.beta_decay * config.rounds))
    return MaxNet(sample.beta_start, sample.beta_end, decay, sample.weigh == "examples")


def path_of(config: RunConfig, space: Elastic, poorest: int) -> tuple[PathRow, ...]:
    """Return the run's Pareto path, from its published lower end or `poorest`, the MACs of the poorest device."""
    return pareto_path(
        space,
        config.sample.budgets,
        Fitness(lam=config.sample.fitness_lambda),
        how=config.sample.path,
        stratify=config.sample.stratify,
        seed=derive(config.seed, "path"),
        low=max(min(poorest, budgets(space, 2)[0]), space.cost(space.smallest).macs),
        population=config.sample.population,
        generations=config.sample.generations,
    )


def searched_by(config: RunConfig, space: Elastic) -> Search | None:
    """Return what the networks of a trained supernet are searched by; None where there is nothing to search.

    Raises `ConfigError` if the settings ask for measured accuracy where there is nothing to search, or where the server
    has no complete network to measure.
    """
    entry, by = METHODS[config.method], config.search.by
    reasons = {
        "its networks compete while they train": bool(entry.contest),
        "it trains one network only": entry.fixed,
        "each client keeps to a network of its own": config.personal.arch,
    }
    nothing = next((reason for reason, holds in reasons.items() if holds), "")
    private = "layers are personal, so the server has no complete network to measure" if space.personal else ""
    if by == "accuracy" and (nothing or private):
        raise ConfigError(
            f"setting 'search.by' = 'accuracy' does not go with method '{config.method}' here: {nothing or private}; "
            "allowed are auto and fitness"
        )
    if nothing:
        return None
    if by == "auto":
        return "fitness" if private else entry.search
    return "accuracy" if by == "accuracy" else "fitness"


def make(setup: Setup) -> SupernetAveraging | Contest:
    """Return the method that the settings name; its weights are trained in place."""
    entry = METHODS[setup.config.method]
    searched_by(setup.config, setup.space)
    if entry.contest:
        _refuse_what_no_contest_can_do(setup)
        contest: Callable[[Setup], Contest] = resolve_name(entry.contest)
        return contest(setup)
    parts: Callable[[RunConfig, Elastic, Sequence[PathRow]], Parts] = resolve_name(entry.parts)
    return _averaging(setup, entry, *parts(setup.config, setup.space, setup.path))


def cautions(config: RunConfig, space: Elastic, clients: Sequence[ClientInfo]) -> Sequence[str]:
    """Return what a run's clients and settings make of its method that its user should know."""
    told = METHODS[config.method].cautions
    return resolve_name(told)(config, space, clients) if told else ()


def _averaging(setup: Setup, entry: Entry, sampler: ArchSampler, weighting: Weighting) -> SupernetAveraging:
    config, space = setup.config, setup.space
    shrinking = growing(config, space)
    if shrinking.order:
        sampler = Shrinking(sampler, shrinking)
    if config.sample.sort and (config.loop == "async" or config.wire.up == "topk"):
        raise ConfigError(
            "setting 'sample.sort' gives channels new places, and replies of loop 'async' or residuals of wire.up "
            "'topk' know the old ones: allowed are loop sync and the other ways up"
        )
    params: Callable[[RunConfig, Elastic], Callable[[int], Scalars]] = resolve_name(entry.params)
    schedule = Schedule(
        rounds=config.rounds,
        params=params(config, space),
        seed=config.seed,
        task=entry.task,
        cohort=config.cohort,
        own=shrinking.complete if config.personal.arch else None,
        sorts=shrinking.opening if config.sample.sort else None,
    )
    return SupernetAveraging(space, setup.weights, sampler, weighting, schedule, merging(config, setup.weights))


def _refuse_what_no_contest_can_do(setup: Setup) -> None:
    """Raise `ConfigError` for settings that have no meaning where networks compete with weights of their own."""
    config = setup.config
    reasons = {
        "loop = 'async'": (config.loop == "async", "candidates are compared after the same rounds", "sync"),
        "wire.up = 'topk'": (config.wire.up == "topk", "what is left out belongs to another candidate", "int8 or bf16"),
        "personal.layers": (bool(setup.space.personal), "candidates are tested by clients that never train", "''"),
        "contest.own": (
            config.contest.own and not config.data.holdout,
            "clients would choose by images that they trained on",
            "false, or data.holdout above 0 with it",
        ),
        "personal.arch": (config.personal.arch, "every client trains other candidates each round", "false"),
        "sample.weigh = 'uniform'": (config.sample.weigh == "uniform", "groups are balanced by examples", "auto"),
    }
    for setting, (given, why, allowed) in reasons.items():
        if given:
            raise ConfigError(
                f"setting {setting} does not go with method '{config.method}': {why}; allowed is {allowed}"
            )
