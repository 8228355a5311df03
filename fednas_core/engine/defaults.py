"""What settings that a user leaves open come to, once the images are known: one rule for each, said in a line.

Everything here is settled before a run has a folder, so that its ``config.toml`` and what travels to clients name what
really runs. With the digits and no other setting the rules come to the run that the README shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fednas_core.base.config import COMPETING, DataConfig, RunConfig
from fednas_core.base.errors import DataError, InfeasibleError
from fednas_core.base.settings import Scalar, flatten
from fednas_core.data.sources import OWN, Dataset, load, shortest_side, source_of
from fednas_core.devices.budgets import parse_budgets
from fednas_core.methods import ddc, fednas
from fednas_core.methods.catalogue import METHODS
from fednas_core.methods.registry import searched_by
from fednas_core.tasks.bench import dataset_of, facts_of, space_of, split_of, testers

SIDE, LEAST_SIDE = 32, 8
"""Pixels a side to which users' images are brought, and the fewest that they have without being asked."""
CLIENTS, EXAMPLES_EACH = 10, 10
"""Clients of a run, and the training images of each, on average, below which there are fewer clients."""
EPOCHS, IMAGES_A_ROUND = 5, 7_500
"""Local epochs, and the images that all clients together train on in a round, above which there are fewer epochs."""
SMALL_SIDE, LARGER = 16, {"small": "cifar-light"}
"""The largest images in pixels of a space, and the space of larger ones."""
BUDGETS, ROOM = "phone=1M,tablet=2M,workstation=max", 500_000
"""Budgets, and the most MACs that the smallest network of a space may take for them to leave a choice."""
PHONE, TABLET = 15, 35
"""Budgets otherwise, in % of the largest network's MACs."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A setting that was left open, what it came to, and why in a few words ('' : that is the usual)."""

    key: str
    value: Scalar
    why: str


@dataclass(frozen=True, slots=True)
class Settled:
    """Settings of which none that follows from the images or the method is left open, and what was chosen so."""

    config: RunConfig
    choices: tuple[Choice, ...]

    def told(self) -> str:
        """Return what is not as usual, a line for each choice, or ''."""
        lines = [f"{choice.key} = {choice.value}: {choice.why}" for choice in self.choices if choice.why]
        return "\n".join(f"{'' if index else 'settled':<10}{line}" for index, line in enumerate(lines))


def settled(config: RunConfig) -> Settled:
    """Return the settings with every ``auto``, and every 0 of that meaning, replaced by what it comes to.

    What each device must find out for itself stays open: device, train.precision and workers. The images are read. They
    and a setting that cannot go with them are refused by a `FednasError`.
    """
    before, reasons = flatten(config), dict[str, str]()
    for rule in (_source, _side, _clients, _epochs, _space, _budgets, _of_method):
        config, why = rule(config)
        reasons |= why
    _refuse_what_cannot_be(config)
    after = flatten(config)
    changed = [key for key in [*reasons, *sorted(set(after) - set(reasons))] if after[key] != before[key]]
    return Settled(config, tuple(Choice(key, after[key], reasons.get(key, "")) for key in changed))


Step = tuple[RunConfig, dict[str, str]]
"""Settings after a rule, and why they are so, by key."""


def _whole(config: DataConfig) -> Dataset:
    """Return the data set with all its classes."""
    return load(replace(config, only=""))


def _data(config: RunConfig, **changes: Any) -> RunConfig:
    return replace(config, data=replace(config.data, **changes))


def _source(config: RunConfig) -> Step:
    """A file is an archive of arrays, a folder one of images; without a path, the digits."""
    source = source_of(config.data)
    return _data(config, source=source), {"data.source": "as data.path says"} if config.data.path else {}


def _side(config: RunConfig) -> Step:
    """Users' images have 32 pixels a side, or those of the smallest one if that has fewer."""
    if config.data.image_size or config.data.source not in OWN:
        return config, {}
    side, whose = shortest_side(config.data)
    if side < LEAST_SIDE:
        raise DataError(
            f"{whose} has {side} pixels a side, and all others would be brought to that: replace or remove images of "
            f"fewer than {LEAST_SIDE} pixels, or set data.image-size = {side} if that is meant"
        )
    why = f"that is the side of {whose}" if side <= SIDE else f"their {side} pixels or more are averaged down"
    return _data(config, image_size=min(side, SIDE)), {"data.image-size": why}


def _clients(config: RunConfig) -> Step:
    """Ten clients, or as many as can have ten images each, but two; or those whom a column of the data names."""
    if config.data.clients:
        return config, {}
    if config.data.partition == "column":
        groups = _whole(config.data).train.groups
        count = CLIENTS if groups is None else len(np.unique(groups))
        return _data(config, clients=count), {"data.clients": f"as many as data.column '{config.data.column}' names"}
    examples = len(_whole(config.data).train.y)
    examples -= max(1, round(config.data.validation * examples))
    count = min(CLIENTS, max(2, examples // EXAMPLES_EACH))
    why = "" if count == CLIENTS else f"for {examples} training images"
    return _data(config, clients=count), {"data.clients": why}


def _epochs(config: RunConfig) -> Step:
    """Five local epochs, or as many as keep a round within 7,500 images, but one."""
    if config.train.epochs:
        return config, {}
    examples = len(dataset_of(config).train.y)
    epochs = min(EPOCHS, max(1, IMAGES_A_ROUND // examples))
    why = "" if epochs == EPOCHS else f"for a round of {examples} images to end in seconds"
    return replace(config, train=replace(config.train, epochs=epochs)), {"train.epochs": why}


def _space(config: RunConfig) -> Step:
    """The method's own space, or its sibling for images above 16 pixels."""
    if config.space.name != "auto":
        return config, {}
    name, side = METHODS[config.method].space, facts_of(config).size
    larger = LARGER.get(name, name) if side > SMALL_SIDE else name
    why = "" if larger == name else f"{name} with a stride in its stem, for images of {side} pixels"
    return replace(config, space=replace(config.space, name=larger)), {"space.name": why}


def _budgets(config: RunConfig) -> Step:
    """1M, 2M and max where 1M leaves a choice; else shares of the largest network's MACs, which the smallest keeps."""
    if config.budgets != "auto":
        return config, {}
    space = space_of(config)
    least, most = (space.cost(arch).macs for arch in (space.smallest, space.largest))
    if least <= ROOM:
        return replace(config, budgets=BUDGETS), {}
    phone = max(PHONE, math.ceil(100 * least / most))
    budgets = f"phone={phone}%,tablet={max(TABLET, phone)}%,workstation=max"
    why = f"shares of {most / 1e6:.3g} M MACs, which the largest network takes"
    return replace(config, budgets=budgets), {"budgets": why}


def _of_method(config: RunConfig) -> Step:
    """The method's own layers that stay on clients, search, weights and numbers of candidates."""
    sample, search, contest = config.sample, config.search, config.contest
    if config.personal.layers == "auto":
        config = replace(config, personal=replace(config.personal, layers=METHODS[config.method].personal))
    if by := searched_by(config, space_of(config)):
        search = replace(search, by=by)
    supernet = config.method in ("superfednas", "deepfednas")
    if sample.weigh == "auto":
        sample = replace(sample, weigh="uniform" if supernet else "examples")
    if sample.between == "auto" and supernet:
        sample = replace(sample, between="path" if config.method == "deepfednas" else "uniform")
    if config.method in COMPETING:
        own = fednas if config.method == "fednas" else ddc
        contest = replace(contest, iterations=contest.iterations or own.ITERATIONS)
    if config.method == "ddc":
        contest = replace(contest, candidates=contest.candidates or ddc.STUDENTS)
    config = replace(config, sample=sample, search=search, contest=contest)
    return replace(config, evaluate_clients=testers(config)), {}


def _refuse_what_cannot_be(config: RunConfig) -> None:
    """Raise `FednasError` for images that do not go round, and for budgets below the smallest network."""
    split_of(config)
    space = space_of(config)
    least, most = (space.cost(arch).macs for arch in (space.smallest, space.largest))
    for budget in parse_budgets(config.budgets, most):
        if budget.macs < least and searched_by(config, space):
            raise InfeasibleError(
                f"setting 'budgets': device '{budget.device}' is to take {budget.macs:,.0f} MACs at most, but the "
                f"smallest network of space '{space.name}' on images of {space.signature.inputs[-1]} pixels takes "
                f"{least:,}, {math.ceil(100 * least / most)}% of the largest: allowed are budgets from that, smaller "
                "images (data.image-size) or another space.name"
            )
