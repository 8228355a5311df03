from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ConfigError
from fednas_core.base.settings import read
from fednas_core.methods.setup import closed_rounds, growing, scheduled
from fednas_core.search.shrinking import Curriculum, parse_order, places
from fednas_core.spaces.registry import load, names
from fednas_core.spaces.space import Elastic

LEAST = 0.4
"""Share of the summed learning rate in rounds in which everything is open."""


def rates(config: RunConfig) -> list[float]:
    settings = scheduled(config)
    return [settings(round).lr for round in range(config.rounds)]


def orders(space: Elastic) -> list[str]:
    """Return every gene of a space forwards, backwards and alone."""
    genes = list(places(space))
    return [",".join(genes), ",".join(reversed(genes)), *genes]


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_two_fifths_of_the_summed_rate_fall_on_rounds_in_which_all_is_open(name: str, schedule: str) -> None:
    space = load(name)
    for rounds, warmup, until in ((280, 0, 0.5), (300, 10, 0.5), (260, 259, 0.6)):
        pairs = {"rounds": rounds, "train.warmup": warmup, "train.schedule": schedule, "sample.shrink-until": until}
        for order in orders(space):
            config = read({"method": "fedsup", **pairs, "sample.shrink": order})
            curriculum, spent = growing(config, space), np.array(rates(config))
            floors = [tuple(curriculum.floor(round)) for round in range(rounds)]
            complete = [not any(floor) for floor in floors]
            assert complete == sorted(complete), "what was open is closed again"
            assert spent[complete].sum() >= max(LEAST, 0.999 * (1 - until)) * spent.sum()
            assert len(set(floors)) == curriculum.phases, "a phase has no round"


def test_the_smallest_network_of_a_short_run_is_there_while_there_is_something_to_learn() -> None:
    """Fifteen rounds over kernels, depths and widths along a cosine: the last gene opens in the fifth."""
    space = load("mobilenet")
    config = read({"method": "fedsup", "rounds": 15, "train.warmup": 2, "sample.shrink": "k,d,w"})
    curriculum, spent = growing(config, space), rates(config)
    first = next(round for round in range(15) if curriculum.complete(round))
    assert curriculum.raised(space.smallest, first) == space.smallest != curriculum.raised(space.smallest, first - 1)
    assert sum(spent[first:]) >= 0.5 * sum(spent) and spent[first] > 0.8 * config.train.lr


@pytest.mark.parametrize(
    ("schedule", "until", "rounds"), [("constant", 0.5, 5), ("constant", 0.6, 6), ("cosine", 0.5, 2)]
)
def test_closed_rounds_by_hand(schedule: str, until: float, rounds: int) -> None:
    """Of ten rounds. Cosine: rates 1, 0.976, 0.905, … that add up to 5.5; the third round passes half of that."""
    config = read({"rounds": 10, "train.schedule": schedule, "train.warmup": 0, "sample.shrink-until": until})
    assert closed_rounds(config) == rounds
    assert closed_rounds(replace(config, rounds=1)) == 0


def test_rounds_in_which_some_genes_would_open_too_late_are_refused() -> None:
    space, pairs = load("mobilenet"), {"method": "fedsup", "sample.shrink": "k,d,e,w"}
    with pytest.raises(
        ConfigError, match=r"'k,d,e,w'.* open in 7 phases, .* 50% .* allowed are rounds from \d+, a la"
    ) as e:
        growing(read({**pairs, "rounds": 7}), space)
    enough = int(str(e.value).partition("rounds from ")[2].partition(",")[0])
    assert growing(read({**pairs, "rounds": enough}), space).closed == 6
    with pytest.raises(ConfigError, match=f"rounds from {enough},"):
        growing(read({**pairs, "rounds": enough - 1}), space)


def test_without_genes_to_open_all_is_open_at_once() -> None:
    space = load("small")
    assert growing(read({"rounds": 1}), space).complete(0)
    assert parse_order("") == () and Curriculum(space, (), 0).phases == 1
