"""Fewer bytes through Flower and in process: the same reports, and as many bytes as are said."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.samples import found
from edges.conftest import make_order_of
from edges.grid import InProcessGrid, simulated

from client_app.app import app as client
from fednas_core.base.config import RunConfig, WireConfig
from fednas_core.base.settings import read
from fednas_core.engine import local
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.run import settle
from fednas_core.exchange import results
from fednas_core.exchange.orders import WEIGHTS, Answer, Failure, Fleet, Order
from fednas_core.exchange.wire import pack_order
from fednas_core.spaces.modules import initial_weights
from fednas_core.subnets.packing import shapes, views
from fednas_core.tasks.bench import client_names, space_of
from fednas_core.tasks.registry import FORMS, perform
from fednas_core.training.settings import train_settings
from server_app.records import Request, request
from server_app.rounds import GridFleet

Answers = dict[str, Answer | Failure]
Fleets = Callable[..., GridFleet]
WIRES = [
    WireConfig(),
    WireConfig(down="fp16", up="fp16"),
    WireConfig(down="bf16", up="bf16"),
    WireConfig(down="int8", up="int8"),
    WireConfig(down="int8"),
    WireConfig(down="fp16", up="topk", keep=0.1),
    WireConfig(up="topk", keep=0.01),
]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDNAS_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def two_rounds(fleet: Any, orders: dict[str, Order], run: str) -> list[Answers]:
    found = []
    for round in (0, 1):
        mine = {name: replace(order, round=round, run=run) for name, order in orders.items()}
        found.append({answer.client: answer for answer in fleet.train(mine)})
    return found


def same(one: list[Answers], two: list[Answers]) -> None:
    for mine, theirs in zip(one, two, strict=True):
        assert sorted(mine) == sorted(theirs)
        for name in mine:
            a, b = mine[name], theirs[name]
            assert isinstance(a, Answer) and isinstance(b, Answer), (a, b)
            assert replace(a, channels={}, seconds=0.0) == replace(b, channels={}, seconds=0.0)
            assert list(a.weights) == list(b.weights)
            assert all(torch.equal(a.weights[key], b.weights[key]) for key in a.weights)


@pytest.mark.parametrize("wire", WIRES, ids=lambda wire: f"{wire.down}-{wire.up}")
def test_both_backends_give_the_same_reports(
    fleet_of: Fleets, config: RunConfig, orders: dict[str, Order], wire: WireConfig
) -> None:
    through = two_rounds(fleet_of(wire=wire), orders, "through")
    same(through, two_rounds(LocalFleet(replace(config, wire=wire)), orders, "here"))
    for name, order in orders.items():
        report, again = through[0][name], through[1][name]
        assert isinstance(report, Answer) and isinstance(again, Answer)
        assert report.bytes_down == pack_order(order, FORMS[order.task], wire).size
        if wire.up == "topk":  # the second round sent what the first had left out
            assert any(not torch.equal(report.weights[key], again.weights[key]) for key in report.weights)


class Inline:
    """A pool whose worker is this process."""

    def __init__(self, workers: int, context: object, initializer: object, initargs: Any) -> None:
        self._given = initargs

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(local, "_given", self._given)
            future.set_result(work(*arguments))
        return future


def test_workers_give_the_same_reports(
    fleet_of: Fleets, config: RunConfig, orders: dict[str, Order], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "ProcessPoolExecutor", Inline)
    wire = WireConfig(down="int8", up="topk")
    fleet = LocalFleet(replace(config, wire=wire, workers=2))
    same(two_rounds(fleet, orders, "pool"), two_rounds(fleet_of(wire=wire), orders, "through"))
    result = results.Tested(1.5, 0.25, 3, True)
    monkeypatch.setattr(local, "perform", lambda order, *_: found(order, result))
    for name in orders:  # what was found alone comes back without tensors
        (answer,) = fleet.train({name: make_order_of("trial", config, name)})
        assert isinstance(answer, Answer) and (dict(answer.channels), answer.result) == ({}, result)
        assert answer.bytes_up == 0 < answer.bytes_down


@pytest.mark.parametrize("where", ["through Flower", "in process", "by workers"])
@pytest.mark.parametrize("task", ["trial", "moments", "teach"])
def test_every_way_gives_the_same_answers_of_networks_that_are_used(
    fleet_of: Fleets, config: RunConfig, monkeypatch: pytest.MonkeyPatch, where: str, task: str
) -> None:
    """They are not of updates: whatever the wire does to these, they come as the task made them."""
    monkeypatch.setattr(local, "ProcessPoolExecutor", Inline)
    space, wire = replace(config.space, norm="batch"), WireConfig(down="int8", up="topk")
    fleets: dict[str, Callable[[], Fleet]] = {
        "through Flower": lambda: fleet_of(space=space, wire=wire),
        "in process": lambda: LocalFleet(replace(config, space=space, wire=wire)),
        "by workers": lambda: LocalFleet(replace(config, space=space, wire=wire, workers=2)),
    }
    plain = replace(config, space=space)
    order = replace(make_order_of(task, plain, client_names(config)[1]), run="run-1")
    direct = perform(order, plain, 1)
    (answer,) = fleets[where]().train({order.client: order})
    assert isinstance(answer, Answer), answer
    assert replace(answer, channels={}, seconds=0.0) == replace(direct, channels={}, seconds=0.0)
    assert list(answer.channels) == list(direct.channels) == list(FORMS[task].returns(order))
    for channel, tensors in direct.channels.items():
        assert tensors and all(torch.equal(answer.channels[channel][key], tensor) for key, tensor in tensors.items())


def test_bytes_are_those_of_the_messages(fleet_of: Fleets, orders: dict[str, Order]) -> None:
    sizes: list[int] = []
    wire = WireConfig(down="fp16", up="int8")
    fleet = fleet_of(
        lambda message, reply: [sizes.append(reply.content.array_records["tensors"].count_bytes()), reply][1:],
        wire=wire,
    )
    reports = [answer for answer in fleet.train(orders) if isinstance(answer, Answer)]
    assert len(reports) == 4
    pushed = [m for m in fleet.grid.pushed if m.metadata.message_type == "train"]  # type: ignore[attr-defined]
    down = [message.content.array_records["tensors"].count_bytes() for message in pushed]
    assert [report.bytes_down for report in reports] == pytest.approx(down, abs=20)  # Flower counts type and shape too
    assert [report.bytes_up for report in reports] == pytest.approx(sizes, abs=20)


def test_an_order_of_the_default_job_is_little_more_than_its_plan(tiny_pairs: dict[str, Any]) -> None:
    """The whole message, settings and all, for a network of 370 kB: within 2 % of what its tensors take."""
    InProcessGrid(client, simulated(1))
    for down, width in (("fp32", 4), ("fp16", 2), ("bf16", 2), ("int8", 1)):
        config = settle(read({"data.clients": 4, "wire.down": down}))
        space = space_of(config)
        arch = space.decode((space.gene_choices - 1) // 2)
        plan = space.plan(arch)
        order = Order(
            client_names(config)[0],
            3,
            "subnet",
            arch,
            {WEIGHTS: views(initial_weights(space, 1), plan)},
            train_settings(config.train),
            2**62,
        )
        message = request(Request(pack_order(order, FORMS[order.task], config.wire), config, 3), 7, "train", 9.0)
        records = message.content
        size = sum(len(array.data) for array in records.array_records["tensors"].values())
        size += len(json.dumps(dict(records.config_records["fednas"])))
        wanted = width * sum(map(prod, shapes(plan).values()))
        assert 300_000 < wanted * 4 / width < 900_000
        assert wanted < size < 1.025 * wanted, (down, size / wanted)
