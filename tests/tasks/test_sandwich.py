from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from contracts.mobile import toy_mobile

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import DeadlineError
from fednas_core.base.settings import read
from fednas_core.base.values import TRAINING_FACTOR, Arch
from fednas_core.exchange.orders import WEIGHTS, Answer, Order
from fednas_core.exchange.results import Trained
from fednas_core.methods.fedsup import sandwiches
from fednas_core.spaces.networks import initial_weights
from fednas_core.spaces.space import Elastic
from fednas_core.subnets.packing import nested, views
from fednas_core.tasks.bench import client_images, space_of
from fednas_core.tasks.home import Home
from fednas_core.tasks.registry import TASKS, perform
from fednas_core.tasks.sandwich import draws, train_sandwich
from fednas_core.training.sandwich import Draw
from fednas_core.training.settings import SandwichSettings, TrainSettings

SETTINGS = TrainSettings(lr=0.02, precision="fp32")


@pytest.fixture
def config(tiny_pairs: dict[str, Any]) -> RunConfig:
    return read({**tiny_pairs, "method": "fedsup"})


def order_of(config: RunConfig, arch: Arch | None = None, **changes: Any) -> Order:
    space = space_of(config)
    arch = arch or space.largest
    tensors = views(initial_weights(space, 1), space.plan(arch))
    params = sandwiches(config, space)(changes.get("round", 2))
    order = Order("client-01", 2, "sandwich", arch, {WEIGHTS: tensors}, replace(params, train=SETTINGS), 9)
    return replace(order, **changes)


def draw_of(order: Order, space: Elastic) -> Draw:
    assert isinstance(order.params, SandwichSettings)
    return draws(order, order.params, space)


def longer(order: Order, settings: TrainSettings) -> Order:
    """The same order with other settings of its training."""
    assert isinstance(order.params, SandwichSettings)
    return replace(order, params=replace(order.params, train=settings))


def same(one: Answer, two: Answer) -> bool:
    return all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)


def test_a_report_says_what_was_done(config: RunConfig) -> None:
    order, space = longer(order_of(config), TrainSettings(epochs=2, lr=0.02)), space_of(config)
    before = {name: tensor.clone() for name, tensor in order.weights.items()}
    report = perform(order, config, 1)
    images = len(client_images(config, 1).y)
    largest, smallest = space.cost(space.largest).macs, space.cost(space.smallest).macs
    assert TASKS["sandwich"].perform is train_sandwich and report.examples == images
    least = TRAINING_FACTOR * 2 * images * (largest + smallest)
    assert least < report.macs <= least + TRAINING_FACTOR * 2 * images * 2 * largest
    assert list(report.weights) == list(before) and report.bytes_up == report.bytes_down
    for name, tensor in report.weights.items():
        assert torch.equal(order.weights[name], before[name]), "the order's own tensors changed"
        assert not tensor.requires_grad and torch.isfinite(tensor).all() and not torch.equal(tensor, before[name])


def test_the_macs_are_those_of_the_networks_drawn(config: RunConfig) -> None:
    order, space = order_of(config), space_of(config)
    draw, images, macs = draw_of(order, space), len(client_images(config, 1).y), 0
    sizes = [32] * (images // 32) + ([images % 32] if images % 32 else [])
    for size in sizes:
        macs += size * sum(space.cost(arch).macs for arch in {space.largest, *draw()})
    assert perform(order, config, 1).macs == TRAINING_FACTOR * macs


def test_the_seed_decides_the_result_to_the_bit(config: RunConfig) -> None:
    order = order_of(config)
    assert same(perform(order, config, 1), perform(order, config, 1))
    assert not same(perform(order, config, 1), perform(replace(order, seed=10), config, 1))


def test_the_largest_alone_is_plain_training(tiny_pairs: dict[str, Any]) -> None:
    """A space of one network: nothing is drawn that is not the largest."""
    space = {"space.name": tiny_pairs["space.name"], "sample.inner": 0, "sample.shrink": "d,e,w", "rounds": 40}
    config = read({**tiny_pairs, **space, "method": "fedsup"})
    order = order_of(config, round=0)
    assert draw_of(order, space_of(config))() == [space_of(config).largest]
    assert same(perform(order, config, 1), perform(replace(order, task="subnet", params=SETTINGS), config, 1))


@pytest.mark.parametrize("inner", [0, 1, 4])
def test_every_batch_draws_anew_and_ends_with_the_smallest(config: RunConfig, inner: int) -> None:
    config = replace(config, sample=replace(config.sample, inner=inner))
    space, order = space_of(config), order_of(config)
    draw = draw_of(order, space)
    batches = [draw() for _ in range(30)]
    assert all(len(archs) == inner + 1 and archs[-1] == space.smallest for archs in batches)
    assert len({arch for archs in batches for arch in archs[:-1]}) >= 10 * inner
    again = draw_of(order, space)
    assert [again() for _ in range(30)] == batches
    other = draw_of(replace(order, seed=1), space)
    assert not inner or [other() for _ in range(30)] != batches


def test_a_narrowed_client_trains_what_lies_within_its_network(config: RunConfig) -> None:
    space = space_of(config)
    top = space.decode((space.gene_choices - 1) // 2)
    order = order_of(config, top)
    draw = draw_of(order, space)
    for arch in (arch for _ in range(20) for arch in draw()):
        assert (space.encode(arch) <= space.encode(top)).all()
    report = perform(order, config, 1)
    assert set(report.weights) == set(space.plan(top))


def test_a_narrowed_client_whose_kernels_are_transformed() -> None:
    """A 3×3 kernel owns a transform that a 5×5 one lacks: such a draw takes the larger kernels."""
    space = toy_mobile(transforms=True)
    top = space.arch({**space.largest.to_json(), "k": [1, 1, 1, 1]})
    config = read({"method": "fedsup"})
    order = Order("a", 0, "sandwich", top, {}, sandwiches(config, space)(0), 3)
    draw, found = draw_of(order, space), set()
    for arch in (arch for _ in range(20) for arch in draw()):
        nested(space.plan(arch), space.plan(top))
        found.add(arch)
    assert len(found) > 20


def test_shrinking_raises_what_is_drawn_to_the_floor_of_the_round(tiny_pairs: dict[str, Any]) -> None:
    config = read({**tiny_pairs, "method": "fedsup", "rounds": 10, "sample.shrink": "d"})
    space = space_of(config)
    for round, least in ((0, 1), (1, 1), (2, 0), (9, 0)):  # half of the summed rate is spent in the third
        draw = draw_of(order_of(config, round=round), space)
        archs = [arch for _ in range(20) for arch in draw()]
        assert min(min(arch["d"]) for arch in archs) == least
        assert min(min(arch["w"]) for arch in archs) == 0
    narrow = order_of(config, space.smallest, round=0)
    assert draw_of(narrow, space)()[0] == space.smallest, "the order's network is the limit"


def test_distillation_and_labels_differ(config: RunConfig) -> None:
    labels = replace(config, sample=replace(config.sample, distill=False))
    assert not same(perform(order_of(config), config, 1), perform(order_of(labels), config, 1))


def test_private_layers_are_kept_and_do_not_travel(tiny_pairs: dict[str, Any], tmp_path: Any) -> None:
    config = read({**tiny_pairs, "method": "fedsup", "personal.layers": "head"})
    space, home = space_of(config), Home(state=str(tmp_path / "state"))
    order = order_of(config, run="r")
    assert set(space.private(space.largest)) == {"head.weight", "head.bias"}
    first = perform(order, config, 1, home)
    assert set(first.weights) == set(space.plan(space.largest)) and "head.weight" not in first.weights
    later = perform(replace(order, round=3), config, 1, home)
    assert not same(first, later), "the head of the first round was not kept"


@pytest.mark.parametrize("norm", ["none", "group", "batch", "parametric"])
def test_every_norm_trains(tiny_pairs: dict[str, Any], norm: str) -> None:
    config = read({**tiny_pairs, "method": "fedsup", "space.norm": norm})
    report = perform(order_of(config), config, 2)
    assert set(report.weights) == set(space_of(config).plan(space_of(config).largest))
    assert all(torch.isfinite(tensor).all() for tensor in report.weights.values())
    assert isinstance(report.result, Trained)
    assert np.isfinite(report.result.loss) and 0 <= report.result.accuracy <= 1


def test_the_deadline_of_the_run_holds(config: RunConfig) -> None:
    order = longer(order_of(config), TrainSettings(epochs=100_000))
    with pytest.raises(DeadlineError):
        perform(order, replace(config, deadline=0.2), 1)
