"""Clients that never train test on all their images, whichever way their orders go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from edges.grid import InProcessGrid, simulated

from client_app.app import app as client
from fednas_core.base.config import RunConfig
from fednas_core.base.seeding import stream
from fednas_core.base.settings import read
from fednas_core.engine.cohort import Crew
from fednas_core.engine.collect import answered
from fednas_core.engine.evaluation import Judge
from fednas_core.engine.local import LocalFleet
from fednas_core.exchange import results
from fednas_core.exchange.orders import Fleet
from fednas_core.methods.method import request
from fednas_core.methods.registry import make
from fednas_core.methods.setup import Setup
from fednas_core.spaces.modules import initial_weights
from fednas_core.tasks.bench import client_images, client_names, space_of
from server_app.roster import Roster
from server_app.rounds import GridFleet


@pytest.fixture
def config(tiny_pairs: dict[str, Any]) -> RunConfig:
    return read({**tiny_pairs, "method": "fednas", "data.holdout": 0.3, "data.clients": 5, "deadline": 60.0})


@pytest.fixture(params=["in process", "lossy", "by two workers", "through Flower"])
def fleet(config: RunConfig, request: pytest.FixtureRequest) -> Iterator[tuple[RunConfig, Fleet]]:
    if request.param == "lossy":
        config = replace(config, wire=replace(config.wire, down="fp16", up="fp16"))
    if request.param == "through Flower":
        grid = InProcessGrid(client, simulated(2))
        found: Fleet = GridFleet(grid, config, Roster(grid, config, lambda text: None, nodes_s=0.0), grace_s=0.1)
    else:
        found = LocalFleet(replace(config, workers=2 if request.param == "by two workers" else 1))
    yield config, found
    found.close()


def test_who_never_trains_tests_on_all_its_images(fleet: tuple[RunConfig, Fleet]) -> None:
    config, inner = fleet
    space = space_of(config)
    method = make(Setup(config, space, (), initial_weights(space, 1)))
    crew = Crew(inner, config, [space.smallest], lambda text: None)
    crew.settle(method.trains)
    method.ask(0, 0, crew.clients(), stream(1, "plan"))
    names = client_names(config)
    requests = [request(0, name, "trial", space.largest) for name in names]
    reports, failures = answered(config, crew, requests, Judge(config, method.network).model, "run-1")
    assert not failures
    for index, (name, report) in enumerate(zip(names, reports, strict=True)):
        images = len(client_images(config, index).y)
        wanted = round(0.3 * images) if method.trains(name) else images
        assert report.client == name and isinstance(report.result, results.Tested)
        assert (report.result.tested, report.result.held_out) == (wanted, True)
    assert [method.trains(name) for name in names] == [True] * 4 + [False]
