from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.samples import answer, found, supernet_of
from torch import Tensor

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ReplyError, RunError
from fednas_core.base.settings import read
from fednas_core.base.values import Arch, State
from fednas_core.exchange.orders import WEIGHTS, Answer, Order
from fednas_core.exchange.results import Installed
from fednas_core.exchange.wire import Packet, read_answer
from fednas_core.spaces.resnet import ResNetSpace
from fednas_core.subnets.packing import views
from fednas_core.tasks.bench import space_of
from fednas_core.tasks.feedback import PURPOSE, pack_with_feedback
from fednas_core.tasks.home import Home
from fednas_core.tasks.registry import FORMS
from fednas_core.tasks.site import site_of
from fednas_core.tasks.store import store_of
from fednas_core.training.settings import train_settings


@pytest.fixture
def config(tiny_pairs: dict[str, Any]) -> RunConfig:
    return read({**tiny_pairs, "wire.up": "topk", "wire.keep": 0.05})


@pytest.fixture
def space(config: RunConfig) -> ResNetSpace:
    return space_of(config)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(state=str(tmp_path / "state"))


@pytest.fixture
def supernet(space: ResNetSpace) -> dict[str, Tensor]:
    return supernet_of(space)


def order_of(config: RunConfig, supernet: Mapping[str, Tensor], round: int, arch: Arch) -> Order:
    tensors = views(supernet, space_of(config).plan(arch))
    return Order("client-01", round, "subnet", arch, {WEIGHTS: tensors}, train_settings(config.train), 5, run="r")


def trained(order: Order, seed: int) -> Answer:
    noise = torch.Generator().manual_seed(seed)
    return answer(order, {n: t + 0.01 * torch.randn(t.shape, generator=noise) for n, t in order.weights.items()})


def residual(home: Home, round: int) -> Mapping[str, Tensor]:
    kept = store_of(home).load("r", "client-01", PURPOSE, round + 1)
    return {} if kept is None else kept.tensors


def packed(report: Answer, order: Order, config: RunConfig, home: Home) -> Packet:
    return pack_with_feedback(report, order, FORMS[order.task], config.wire, site_of(config, 1, home))


def applied(packet: Packet, order: Order, config: RunConfig) -> dict[str, Tensor]:
    report = read_answer(packet, order, FORMS["subnet"], config.wire)
    return {name: report.weights[name] - tensor for name, tensor in order.weights.items()}


def test_nothing_is_lost_over_rounds_of_other_subnets(
    config: RunConfig, space: ResNetSpace, home: Home, supernet: dict[str, Tensor]
) -> None:
    """What was applied and what is still kept add up, at each coordinate of the supernet, to all that was learned."""
    learned = {name: torch.zeros_like(tensor) for name, tensor in supernet.items()}
    arrived = {name: torch.zeros_like(tensor) for name, tensor in supernet.items()}
    archs = [space.smallest, space.largest, space.smallest, space.decode((space.gene_choices - 1) // 2)]
    for round, arch in enumerate(archs):
        order, plan = order_of(config, supernet, round, arch), space.plan(arch)
        report = trained(order, round)
        packet = packed(report, order, config, home)
        change = applied(packet, order, config)
        for name, region in plan.items():
            learned[name][region] += report.weights[name] - order.weights[name]
            arrived[name][region] += change[name]
    kept = residual(home, 3)
    assert set(kept) == set(supernet) and {n: t.shape for n, t in kept.items()} == {
        n: t.shape for n, t in supernet.items()
    }
    for name in supernet:
        assert torch.allclose(arrived[name] + kept[name], learned[name], atol=1e-6), name
    assert all(bool(tensor.any()) for tensor in kept.values())


def test_a_subnet_leaves_the_residual_of_others_alone(
    config: RunConfig, space: ResNetSpace, home: Home, supernet: dict[str, Tensor]
) -> None:
    first, second = order_of(config, supernet, 0, space.largest), order_of(config, supernet, 4, space.smallest)
    packed(trained(first, 0), first, config, home)
    before = residual(home, 0)
    packed(trained(second, 1), second, config, home)
    after, plan = residual(home, 4), space.plan(space.smallest)
    for name, tensor in before.items():
        same = torch.ones_like(tensor, dtype=torch.bool)
        if name in plan:
            same[plan[name]] = False
            assert not torch.equal(after[name], tensor)
        assert torch.equal(after[name][same], tensor[same])


def test_a_client_starts_without_and_keeps_only_what_it_has_trained(
    config: RunConfig, space: ResNetSpace, home: Home, supernet: dict[str, Tensor]
) -> None:
    order = order_of(config, supernet, 0, space.smallest)
    packet = packed(trained(order, 0), order, config, home)
    assert set(residual(home, 0)) == set(space.plan(space.smallest)) < set(supernet)
    assert packet.size < 0.05 * 4 * sum(t.numel() for t in order.weights.values()) * 2


def test_a_round_that_is_repeated_gives_the_same_answer(
    config: RunConfig, space: ResNetSpace, home: Home, supernet: dict[str, Tensor]
) -> None:
    orders = [order_of(config, supernet, round, space.largest) for round in range(3)]
    packets = [packed(trained(order, order.round), order, config, home) for order in orders]
    kept = residual(home, 2)
    assert packed(trained(orders[2], 2), orders[2], config, home) == packets[2]
    assert all(torch.equal(residual(home, 2)[name], tensor) for name, tensor in kept.items())
    other = replace(orders[2], run="another")
    assert packed(trained(other, 2), other, config, home) != packets[2]


def test_an_asynchronous_client_is_asked_twice_in_a_round(
    config: RunConfig, space: ResNetSpace, home: Home, supernet: dict[str, Tensor]
) -> None:
    config, order = replace(config, loop="async"), order_of(config, supernet, 3, space.largest)
    learned, arrived = (torch.zeros_like(supernet["head.weight"]) for _ in range(2))
    for seed in (0, 1):
        report = trained(order, seed)
        packet = packed(report, order, config, home)
        learned += report.weights["head.weight"] - order.weights["head.weight"]
        arrived += applied(packet, order, config)["head.weight"]
    assert torch.allclose(arrived + residual(home, 3)["head.weight"], learned, atol=1e-6)


@pytest.mark.parametrize(
    "wire", [{}, {"wire.up": "int8"}, {"wire.up": "fp16", "wire.down": "fp16"}], ids=["fp32", "int8", "fp16"]
)
def test_without_topk_nothing_is_kept(
    tiny_pairs: dict[str, Any], space: ResNetSpace, home: Home, supernet: dict[str, Tensor], wire: dict[str, Any]
) -> None:
    config = read({**tiny_pairs, **wire})
    order = order_of(config, supernet, 0, space.largest)
    report = trained(order, 0)
    packet = packed(report, order, config, home)
    change = applied(packet, order, config)
    for name, tensor in order.weights.items():
        assert torch.allclose(change[name], report.weights[name] - tensor, atol=1e-3)
    assert not Path(home.state).exists()


def test_a_result_alone_leaves_no_residual(
    config: RunConfig, space: ResNetSpace, home: Home, supernet: dict[str, Tensor]
) -> None:
    order = replace(order_of(config, supernet, 0, space.largest), task="install")
    result = Installed(1.5, 0.5, tested=10, held_out=True, latency_ms=2.0, fits=True, stored=False)
    packet = packed(found(order, result), order, config, home)
    assert packet.size == 0 and not Path(home.state).exists()
    assert read_answer(packet, order, FORMS["install"], config.wire).result == result


def test_a_residual_that_does_not_fit_is_dropped(
    config: RunConfig, space: ResNetSpace, home: Home, supernet: dict[str, Tensor]
) -> None:
    order = order_of(config, supernet, 1, space.largest)
    fresh = packed(trained(order, 1), order, config, replace(home, state=home.state + "-fresh"))
    wrong = {name: torch.ones(2, 2) for name in supernet}
    store_of(home).save("r", "client-01", PURPOSE, 0, State(wrong))
    assert packed(trained(order, 1), order, config, home) == fresh


def test_training_that_diverged_spoils_no_residual(
    config: RunConfig, space: ResNetSpace, home: Home, supernet: dict[str, Tensor]
) -> None:
    first, second = (order_of(config, supernet, round, space.largest) for round in (0, 1))
    packed(trained(first, 0), first, config, home)
    before, report = residual(home, 0), trained(second, 1)
    report.weights["head.bias"][2] = float("nan")
    with pytest.raises(ReplyError, match="training has diverged"):
        packed(report, second, config, home)
    assert all(torch.equal(residual(home, 1)[name], tensor) for name, tensor in before.items())


def test_a_residual_that_cannot_be_kept_is_said(
    config: RunConfig, space: ResNetSpace, tmp_path: Path, supernet: dict[str, Tensor]
) -> None:
    (tmp_path / "file").write_text("in the way")
    order = order_of(config, supernet, 0, space.largest)
    with pytest.raises(RunError, match="private state cannot be kept in"):
        packed(trained(order, 0), order, config, Home(state=str(tmp_path / "file")))
