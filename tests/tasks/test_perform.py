from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ConfigError, DeadlineError
from fednas_core.base.settings import read
from fednas_core.base.values import TRAINING_FACTOR
from fednas_core.exchange.orders import WEIGHTS, Answer, Order
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.packing import views
from fednas_core.tasks.bench import client_images, client_names, space_of
from fednas_core.tasks.registry import TASKS, clients_of, index_of, perform
from fednas_core.tasks.subnet import train_subnet
from fednas_core.training.settings import TrainSettings


@pytest.fixture
def config(tiny_pairs: dict[str, Any]) -> RunConfig:
    return read(tiny_pairs)


def order_of(config: RunConfig, **changes: Any) -> Order:
    space = space_of(config)
    tensors = views(initial_weights(space, 1), space.plan(space.smallest))
    return replace(Order("client-01", 2, "subnet", space.smallest, {WEIGHTS: tensors}, TrainSettings(), 9), **changes)


def equal(one: Answer, two: Answer) -> bool:
    return all(torch.equal(one.weights[n], two.weights[n]) for n in one.weights)


def test_a_report_says_what_was_done(config: RunConfig) -> None:
    order = order_of(config, params=TrainSettings(epochs=3))
    report = perform(order, config, 1)
    images = len(client_images(config, 1).y)
    assert (report.client, report.round, report.arch, report.examples) == ("client-01", 2, order.arch, images)
    assert report.macs == TRAINING_FACTOR * 3 * images * space_of(config).cost(order.arch).macs
    assert report.bytes_up == report.bytes_down == space_of(config).cost(order.arch).bytes
    assert list(report.weights) == list(order.weights) and not any(t.requires_grad for t in report.weights.values())


def test_the_seed_decides_the_result_to_the_bit(config: RunConfig) -> None:
    order = order_of(config, params=TrainSettings(augment="crop", precision="fp32"))
    assert equal(perform(order, config, 1), perform(order, config, 1))
    assert not equal(perform(order, config, 1), perform(replace(order, seed=10), config, 1))


def test_each_client_trains_on_images_of_its_own(config: RunConfig) -> None:
    order = order_of(config)
    assert not equal(perform(order, config, 0), perform(order, config, 1))


def test_augmentation_takes_effect(config: RunConfig) -> None:
    plain = perform(order_of(config), config, 1)
    assert not equal(plain, perform(order_of(config, params=TrainSettings(augment="crop-flip-cutout")), config, 1))


@pytest.mark.parametrize("norm", ["none", "group", "batch"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_norm_and_precision_trains(tiny_pairs: dict[str, Any], norm: str, precision: str) -> None:
    config = read({**tiny_pairs, "space.norm": norm})
    settings = TrainSettings(lr=0.05, precision=precision, epochs=2)
    report = perform(order_of(config, params=settings), config, 2)
    assert all(torch.isfinite(t).all() and t.dtype == torch.float32 for t in report.weights.values())
    assert set(report.weights) == set(space_of(config).plan(space_of(config).smallest))


def test_the_deadline_of_the_run_holds(config: RunConfig) -> None:
    order = order_of(config, params=TrainSettings(epochs=100_000))
    with pytest.raises(DeadlineError):
        perform(order, replace(config, deadline=0.1), 1)


def test_a_task_that_does_not_exist_is_refused(config: RunConfig) -> None:
    with pytest.raises(ConfigError, match="task 'dance' is not known here: allowed are subnet"):
        perform(order_of(config, task="dance"), config, 1)
    assert TASKS["subnet"].perform is train_subnet


def test_clients_of_a_simulated_run(config: RunConfig) -> None:
    clients = clients_of(config)
    assert [client.name for client in clients] == client_names(config)
    assert [client.examples for client in clients] == [len(client_images(config, i).y) for i in range(4)]
    assert [index_of(client.name) for client in clients] == [0, 1, 2, 3]
    assert index_of("client-0117") == 117
