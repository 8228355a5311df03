"""A tiny run behind an in-process grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from edges.grid import InProcessGrid, Spoil, simulated

from client_app.app import app as client
from fednas_core.base.config import RunConfig
from fednas_core.base.settings import read
from fednas_core.devices.info import ClientInfo
from fednas_core.exchange.orders import WEIGHTS, Order, Scalars
from fednas_core.tasks.bench import client_names, space_of
from fednas_core.tasks.install import Handover
from fednas_core.tasks.personal import Adaptation
from fednas_core.tasks.registry import FORMS
from fednas_core.tasks.task import NoParams
from fednas_core.training.settings import DistilSettings, SandwichSettings, TrainSettings, train_settings
from server_app.roster import Roster
from server_app.rounds import GridFleet


@pytest.fixture
def config(tiny_pairs: dict[str, Any]) -> RunConfig:
    return read(tiny_pairs)


@pytest.fixture
def order(config: RunConfig) -> Order:
    return make_order(config, client_names(config)[0])


@pytest.fixture
def orders(config: RunConfig) -> dict[str, Order]:
    return {name: make_order(config, name) for name in client_names(config)}


TRAIN = TrainSettings(epochs=2, lr=0.05, augment="shift")
ADAPT = Adaptation(TRAIN, calibrate=True)
PARAMS: dict[str, Scalars] = {
    "subnet": TRAIN,
    "sandwich": SandwichSettings(TRAIN, inner=2, ends=True, distill=False, floor=(0, 1, 2)),
    "moments": NoParams(),
    "trial": ADAPT,
    "teach": NoParams(),
    "distil": DistilSettings(TRAIN, soft=0.5, temperature=2.0),
    "install": Handover(ADAPT, forget=True, trained="fedavg, 2 rounds"),
}
"""Parameters of every task, with values of every kind."""


def make_order(config: RunConfig, client: str) -> Order:
    """An order of the largest network, its tensors drawn anew."""
    return replace(make_order_of("subnet", config, client), params=train_settings(config.train))


def make_order_of(task: str, config: RunConfig, client: str) -> Order:
    """An order of any task about the largest network, its tensors drawn anew."""
    space = space_of(config)
    generator = torch.Generator().manual_seed(1)
    channels: dict[str, dict[str, torch.Tensor]] = {}
    for channel, wanted in FORMS[task].sends(space, space.largest).items():
        channels[channel] = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in wanted.items()}
    for name, tensor in channels[WEIGHTS].items():
        if name.endswith("running_var"):
            tensor.abs_().add_(0.5)
    return Order(client, 0, task, space.largest, channels, PARAMS[task], 5)


@pytest.fixture
def fleet_of(config: RunConfig) -> Callable[..., GridFleet]:
    """A fleet on two nodes whose replies pass through `spoil`; every wait is short."""

    def make(spoil: Spoil | None = None, nodes: int = 2, **settings: Any) -> GridFleet:
        grid = InProcessGrid(client, simulated(nodes))
        mine = replace(config, **settings)
        roster = Roster(grid, mine, lambda text: None, nodes_s=0.0)
        fleet = GridFleet(grid, mine, roster, grace_s=0.1)
        infos = fleet.clients()
        assert [type(info) for info in infos] == [ClientInfo] * mine.data.clients
        grid.spoil = spoil or grid.spoil
        fleet.grid = grid  # type: ignore[attr-defined]
        return fleet

    return make
