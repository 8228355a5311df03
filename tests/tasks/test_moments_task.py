from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import DeadlineError
from fednas_core.base.settings import read
from fednas_core.exchange.orders import WEIGHTS, Order
from fednas_core.exchange.results import Summed
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.moments import moment_shapes, whole
from fednas_core.subnets.networks import shapes_of, subnet
from fednas_core.tasks.bench import examples_of, facts_of, space_of
from fednas_core.tasks.home import Home
from fednas_core.tasks.moments import MOMENTS, TASK, send_moments
from fednas_core.tasks.site import site_of
from fednas_core.tasks.task import NoParams, Work

FOREVER = float("inf")
HERE = Home()


@pytest.fixture
def config(tiny_pairs: dict[str, Any]) -> RunConfig:
    return read({**tiny_pairs, "space.norm": "batch", "calibrate": "federated"})


def order_of(config: RunConfig) -> Order:
    space = space_of(config)
    state = subnet(space, space.smallest, initial_weights(space, 1)).state_dict()
    tensors = {name: state[name] for name in shapes_of(space, space.smallest, statistics=True)}
    return Order("client-01", 2, "moments", space.smallest, {WEIGHTS: tensors}, NoParams(), 0)


def sent(config: RunConfig, index: int = 1, home: Home = HERE, until: float = FOREVER) -> Work[Summed]:
    return send_moments(order_of(config), NoParams(), site_of(config, index, home), until)


def test_the_answer_holds_the_moments_of_every_norm_and_the_number_of_images(config: RunConfig) -> None:
    order, work = order_of(config), sent(config)
    there = {name: tuple(tensor.shape) for name, tensor in order.weights.items()}
    (channel,) = work.channels
    found = {name: tuple(tensor.shape) for name, tensor in work.channels[channel].items()}
    assert channel == MOMENTS and found == moment_shapes(there)
    assert TASK.schema.returns(order) == {MOMENTS: found}
    assert work.result == Summed(examples_of(config, 1))
    assert work.macs == examples_of(config, 1) * space_of(config).cost(order.arch).macs


def test_images_are_those_of_training_as_they_are(config: RunConfig) -> None:
    """Not augmented, and none that is held out."""
    config = replace(config, data=replace(config.data, holdout=0.25), train=replace(config.train, augment="crop-flip"))
    order, site, work = order_of(config), site_of(config, 1), sent(config)
    assert work.result.images == len(site.train.y) == examples_of(config, 1)
    module = subnet(site.space, order.arch, initial_weights(site.space, 1))
    with torch.inference_mode():
        x = module.get_submodule("stem")(site.prepare(site.train.x)).double()
    sums, squares = (whole(work.channels[MOMENTS][f"stem_norm.{kind}"]) for kind in ("sum", "squares"))
    torch.testing.assert_close(sums, x.mean((2, 3)).sum(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(squares, (x**2).mean((2, 3)).sum(0), rtol=1e-6, atol=0)


def test_every_answer_to_an_order_is_the_same(config: RunConfig) -> None:
    first, second = (sent(config).channels[MOMENTS] for _ in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_device_with_data_of_its_own_uses_those(config: RunConfig, tmp_path: Any) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", x_train=rng.integers(0, 256, (30, 8, 8), np.uint8), y_train=rng.integers(0, 3, 30))
    home = Home(data=str(tmp_path / "own.npz"), facts=facts_of(config))
    assert sent(config, 0, home).result == Summed(30)


def test_it_ends_when_the_deadline_passes(config: RunConfig) -> None:
    with pytest.raises(DeadlineError, match="after 0 batches"):
        sent(config, until=0.0)
