"""What a run says in the terminal: its greeting, a line for each round."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fednas_core.base.config import COMPETING, RunConfig
from fednas_core.base.units import cross_entropy, few, share
from fednas_core.base.values import region_shape
from fednas_core.methods import ddc, fednas
from fednas_core.methods.catalogue import METHODS, Search
from fednas_core.runs.folder import RunFolder
from fednas_core.show.search import going_on
from fednas_core.show.tested import brief
from fednas_core.spaces.space import Space
from fednas_core.tasks.bench import dataset_of, space_of, split_of


def greeting(config: RunConfig, run: RunFolder, done: int) -> str:
    """Return what is about to run, in a few lines."""
    data, space, parts = dataset_of(config), space_of(config), split_of(config)
    cost = space.cost(space.supernet)
    sizes = [len(part) for part in parts.clients if len(part)]
    spread = {
        "dirichlet": f"Dirichlet α = {config.data.alpha:g}",
        "classes": f"{config.data.classes_per_client} classes each",
    }
    lines = [
        f"run {run.id}" + (f", resumed after round {done}" if done else ""),
        f"method    {config.method}: {METHODS[config.method].title} ({METHODS[config.method].source})",
        f"space     {space.name}: up to {cost.macs / 1e6:.1f} M MACs, {cost.params / 1e6:.2f} M parameters, "
        f"normalisation '{space.norm}'",
        f"data      {data.name}: {sum(sizes)} training images of {len(data.classes)} classes over "
        f"{len(sizes)} clients "
        f"({spread.get(config.data.partition, config.data.partition)}; {min(sizes)} to {max(sizes)} each), "
        f"{len(parts.validation)} to validate, {len(data.test.y) or 'none'} to test"
        + (f"; each client keeps {config.data.holdout:.0%} of its own to test" if config.data.holdout else ""),
        *_personal(config, space, cost.params),
        *_search(config, len(sizes)),
        f"training  {_rounds(config)}, {config.train.epochs} local epochs, seed {config.seed}",
    ]
    return "\n".join(lines)


def _rounds(config: RunConfig) -> str:
    """Return the rounds that are known: where networks compete, those of their start, unless a run before left one."""
    if config.method not in COMPETING:
        return f"{config.rounds} rounds"
    return f"from run {config.contest.start}" if config.contest.start else f"{config.rounds} rounds of the start"


def _personal(config: RunConfig, space: Space, params: int) -> list[str]:
    """Return the line on what is each client's own, if anything is; `params` are the largest network's."""
    told = []
    if space.personal:
        mine = sum(math.prod(region_shape(region)) for region in space.private(space.supernet).values())
        stay = "stays" if len(space.personal) == 1 else "stay"
        told.append(f"{few(space.personal)} {stay} on the clients ({mine:,} of {params:,} parameters)")
    if config.personal.arch:
        told.append("each client keeps to an architecture of its own")
    return ["personal  " + "; ".join(told)] if told else []


def _search(config: RunConfig, clients: int) -> list[str]:
    """Return the line on networks that compete, if any do: of a method that trains one alone there is none."""
    given = config.contest
    if config.method == "fednas":
        own, most = config.fednas, max(config.fednas.rounds_min, config.fednas.rounds_max)
        span = f"{own.rounds_min} to {most}" if most > own.rounds_min else str(most)
        told = f"{own.search}: up to {given.iterations or fednas.ITERATIONS} iterations of {span} rounds"
        every = "every round" if own.drop_every == 1 else f"every {own.drop_every} rounds"
        told += f", {own.drop:.0%} dropped {every}" if own.drop else ""
    elif config.method == "ddc":
        told = (
            f"{config.ddc.sampler}, reward '{config.ddc.reward}': {given.iterations or ddc.ITERATIONS} iterations of "
        )
        told += f"{given.candidates or ddc.STUDENTS} students and {config.ddc.rounds} rounds"
    else:
        return []
    testers = max(1, clients // round(1 / given.testers))
    told += "; every client trains each candidate" if given.clients == "all" else ""
    return [f"search    {told}; {testers} of {clients} clients test; {given.finish} rounds for what is delivered"]


def searching(config: RunConfig, by: Search) -> str:
    """Return how the networks of a trained supernet are searched."""
    if by == "fitness":
        return "searching by fitness and proportions, without measuring"
    given = config.search
    images = f"{given.images} validation images at most" if given.images else "all validation images"
    generations = "1 generation" if given.generations == 1 else f"{given.generations} generations"
    return (
        f"searching by measured accuracy: {given.population} networks and {generations} of evolution for each limit, "
        f"each network on {images}"
    )


def line(config: RunConfig, event: Mapping[str, Any]) -> str:
    """Return one round in one line; how many there will be is unknown where networks compete."""
    now = going_on(event)
    text = (
        f"round {event['round']:>3}{'' if now else f'/{config.rounds}'}  training loss {cross_entropy(event['loss'])} "
        f"accuracy {share(event['accuracy']):>6}  up {event['bytes_up'] / 1e6:.1f} MB  {event['seconds']:.1f} s"
    )
    text += "".join(f"  {told}" for told in (*brief(event["evaluation"] or ()), now) if told)
    if event["failures"]:
        text += "  failed: " + few([failure["client"] for failure in event["failures"]])
    return text
