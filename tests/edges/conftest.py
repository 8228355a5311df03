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
from fednas_core.exchange.orders import WEIGHTS, Order
from fednas_core.tasks.bench import client_names, space_of
from fednas_core.training.settings import train_settings
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


def make_order(config: RunConfig, client: str) -> Order:
    """An order of the largest network, its tensors drawn anew."""
    space = space_of(config)
    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: torch.randn(tensor.shape, generator=generator) * 0.1
        for name, tensor in space.build(space.largest).state_dict().items()
    }
    return Order(client, 0, "subnet", space.largest, {WEIGHTS: tensors}, train_settings(config.train), 5)


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
