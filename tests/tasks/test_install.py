from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import DataError, ReplyError, RoomError
from fednas_core.base.settings import read
from fednas_core.data.augment import Preprocessing
from fednas_core.exchange.orders import WEIGHTS, Order
from fednas_core.exchange.results import Installed
from fednas_core.export.bundle import load_bundle
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.networks import subnet
from fednas_core.subnets.packing import views
from fednas_core.tasks import personal, registry
from fednas_core.tasks.bench import client_images, examples_of, facts_of, space_of
from fednas_core.tasks.home import Home
from fednas_core.tasks.install import Handover
from fednas_core.tasks.personal import Adaptation
from fednas_core.tasks.registry import clients_of, perform
from fednas_core.tasks.site import site_of
from fednas_core.training.settings import TrainSettings

HANDOVER = Handover(Adaptation(TrainSettings(), calibrate=False), forget=False, trained="deepfednas, 2 rounds")
SIMULATED = Home()


@pytest.fixture
def config(tiny_pairs: dict[str, Any]) -> RunConfig:
    return read(tiny_pairs)


def order_of(config: RunConfig, **changes: Any) -> Order:
    """An order to install the smallest network, or with `task` = ``subnet`` one to train it."""
    space = space_of(config)
    tensors = views(initial_weights(space, 1), space.plan(space.smallest))
    params = TrainSettings() if changes.get("task") == "subnet" else HANDOVER
    return replace(Order("client-01", 2, "install", space.smallest, {WEIGHTS: tensors}, params, 0), **changes)


def installed(order: Order, config: RunConfig, index: int = 1, home: Home = SIMULATED) -> Installed:
    """What a device finds that is given a model."""
    report = perform(order, config, index, home)
    assert isinstance(report.result, Installed)
    return report.result


def test_the_answer_holds_a_result_and_no_tensor(config: RunConfig) -> None:
    report = perform(order_of(config), config, 1)
    assert report.channels == {} and report.bytes_up == 0
    found = report.result
    assert isinstance(found, Installed)
    assert found.latency_ms > 0 and found.fits
    assert (found.held_out, found.stored) == (False, False)
    assert found.tested == len(client_images(config, 1).y)


def test_accuracy_is_that_of_the_network_on_the_clients_images(config: RunConfig) -> None:
    order, images = order_of(config), client_images(config, 1)
    module = subnet(space_of(config), order.arch, initial_weights(space_of(config), 1))
    facts = facts_of(config)
    with torch.inference_mode():
        right = module.eval()(Preprocessing(facts.mean, facts.std)(images.x)).argmax(1) == images.y
    assert installed(order, config).accuracy == pytest.approx(float(right.float().mean()), abs=1e-6)


def test_a_share_held_out_is_never_trained_on_and_tested_on(config: RunConfig) -> None:
    config = replace(config, data=replace(config.data, holdout=0.25))
    whole, site = client_images(config, 1), site_of(config, 1)
    assert site.held_out and len(site.train.y) + len(site.test.y) == len(whole.y)
    train, test = ({tuple(x.flatten().tolist()) for x in part.x} for part in (site.train, site.test))
    assert len(test) >= round(0.25 * len(whole.y)) - 1 and len(train & test) <= 1  # two images may be alike
    assert examples_of(config, 1) == len(site.train.y) == clients_of(config)[1].examples
    found = installed(order_of(config), config)
    assert found.held_out and found.tested == len(site.test.y)
    assert perform(order_of(config, task="subnet"), config, 1).examples == len(site.train.y)


def test_the_model_is_stored_and_proved_where_the_node_says(config: RunConfig, tmp_path: Path) -> None:
    order = order_of(config, run="20261120-000000-deepfednas")
    assert installed(order, config, 1, Home(models=str(tmp_path / "models"))).stored
    folder = tmp_path / "models" / "client-01"
    assert json.loads((folder / "arch.json").read_text())["arch"] == order.arch.to_json()
    model, _ = load_bundle(folder)
    images = client_images(config, 1).x[:8]
    facts = facts_of(config)
    module = subnet(space_of(config), order.arch, initial_weights(space_of(config), 1)).eval()
    with torch.inference_mode():
        wanted = module(Preprocessing(facts.mean, facts.std)(images))
        np.testing.assert_allclose(model(images.float() / 255).numpy(), wanted.numpy(), atol=1e-5)


def test_a_network_beyond_the_devices_own_budget_is_refused_in_every_task(config: RunConfig) -> None:
    for task in ("install", "subnet"):
        with pytest.raises(ReplyError, match=r"refused: a network of .* exceeds this device's budget of 1e-06 M MACs"):
            perform(order_of(config, task=task), config, 1, Home(budget="1"))
        with pytest.raises(ReplyError, match="exceeds this device's budget of 0.001 MB"):
            perform(order_of(config, task=task, budget="1kB"), config, 1)
    assert installed(order_of(config), config, 1, Home(budget="phone")).fits


def test_what_memory_cannot_hold_is_refused_before_it_is_done(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "available_memory", lambda: 1_000_000)
    monkeypatch.setattr(registry, "memory_limit", lambda: 640_000_000)
    batches = TrainSettings(batch=4096)
    told = (
        r"of a network of .* parameters, training it in batches of 4096 takes about .* MB, .* MB more than the 1 MB "
        r"that are free, of 640 MB that its container may use"
    )
    with pytest.raises(RoomError, match=told):
        perform(order_of(config, task="subnet", params=batches), config, 1)
    with pytest.raises(RoomError, match=r"testing and exporting it takes about 5\S* MB"):
        perform(order_of(config), config, 1, Home(models=str(tmp_path)))
    assert list(tmp_path.iterdir()) == []
    assert installed(order_of(config), config).fits, "that much it can hold"
    monkeypatch.setattr(registry, "available_memory", lambda: 0)
    with pytest.raises(RoomError, match=r"takes about \S+ [kM]B, \S+ [kM]B more than the 0 B that are free"):
        perform(order_of(config), config, 1)
    monkeypatch.setattr(registry, "available_memory", lambda: None)
    assert installed(order_of(config), config, 1, Home(models=str(tmp_path))).stored, "unknown memory"


def test_a_network_that_is_too_slow_on_the_device_is_not_kept(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(budget="0.000001ms", models=str(tmp_path))
    found = installed(order_of(config), config, 1, home)
    assert (found.fits, found.stored) == (False, False)
    assert list(tmp_path.iterdir()) == []


def test_batch_statistics_can_be_those_of_the_devices_own_images(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, space=replace(config.space, norm="batch"))
    seen: list[int] = []

    def noted(module: Any, batches: Any) -> None:
        seen.append(sum(len(x) for x in batches))

    monkeypatch.setattr(personal, "calibrate", noted)
    perform(order_of(config), config, 1)
    assert seen == []
    own = replace(HANDOVER, adapt=replace(HANDOVER.adapt, calibrate=True))
    perform(order_of(config, params=own), config, 1)
    assert seen == [len(client_images(config, 1).y)]


def test_a_device_with_data_of_its_own_trains_and_tests_on_those(config: RunConfig, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (30, 8, 8), dtype=np.uint8), rng.integers(0, 3, 30)
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y, x_test=x[:7], y_test=y[:7])
    home = Home(data=str(tmp_path / "own.npz"), facts=facts_of(config))
    report = perform(order_of(config, task="subnet"), config, 0, home)
    assert report.examples == 30
    found = installed(order_of(config), config, 0, home)
    assert (found.held_out, found.tested) == (True, 7)


def test_own_data_are_all_that_such_a_device_reads(config: RunConfig, tmp_path: Path) -> None:
    """The run's data set lies on the server alone."""
    np.savez(tmp_path / "own.npz", x_train=np.zeros((4, 8, 8), np.uint8), y_train=np.array([0, 1, 2, 3]))
    elsewhere = replace(config, data=replace(config.data, source="npz", path="/nowhere/at/all.npz"))
    home = Home(data=str(tmp_path / "own.npz"), facts=facts_of(config))
    order = order_of(config, task="subnet")
    assert perform(order, elsewhere, 0, home).examples == 4
    assert not installed(order_of(config), elsewhere, 0, home).stored
    with pytest.raises(DataError):
        perform(order, elsewhere, 0)
