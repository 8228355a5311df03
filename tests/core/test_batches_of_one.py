"""Batch normalisation over a single pixel of a single image: no statistics, and no traceback."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.records import recorded

from fednas_core.base.config import RunConfig
from fednas_core.base.errors import ConfigError
from fednas_core.base.settings import read
from fednas_core.devices.info import ClientInfo
from fednas_core.engine.collect import completed
from fednas_core.engine.evaluation import Judge
from fednas_core.engine.local import LocalFleet
from fednas_core.engine.rounds import run_round
from fednas_core.exchange.orders import WEIGHTS, Answer, Failure, Order
from fednas_core.methods.method import request
from fednas_core.methods.registry import make
from fednas_core.methods.setup import Setup
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.packing import views
from fednas_core.tasks.bench import refuse_batches_of_one, space_of
from fednas_core.training.settings import SandwichSettings, train_settings

ALONE, MANY = "client-00", "client-01"


def lonely(folder: Path, **changes: Any) -> RunConfig:
    """Settings of two clients with images of one pixel, the first with a single one, the second with 33."""
    owners = np.repeat([0, 1], [1, 37])
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (38, 1, 1, 3), dtype=np.uint8), np.arange(38) % 2
    np.savez(folder / "few.npz", x_train=x, y_train=y, x_test=x[:4], y_test=y[:4], owner=owners)
    given = {
        "data.source": "npz",
        "data.path": str(folder / "few.npz"),
        "data.partition": "column",
        "data.column": "owner",
        "data.clients": 2,
        "budgets": "phone=1M,server=max",
        "space.name": "cnn8",
        "space.norm": "batch",
        "train.epochs": 1,
        "workers": 1,
        "device": "cpu",
    }
    return read({**given, **changes})


def answers_of(config: RunConfig, task: str) -> dict[str, Answer | Failure]:
    """What both clients answer to an order of a task."""
    space = space_of(config)
    tensors = initial_weights(space, 1)
    shared = views(tensors, space.plan(space.largest))
    judge, orders = Judge(config, lambda arch: shared), dict[str, Order]()
    for client in (ALONE, MANY):
        if task in ("moments", "trial", "install"):
            info, model = ClientInfo(client, 10), judge.model(space.largest)
            orders[client] = completed(request(1, client, task, space.largest), config, info, model, "run")
        else:
            settings = train_settings(config.train)
            params = SandwichSettings(settings, 2, True, True, ()) if task == "sandwich" else settings
            orders[client] = Order(client, 1, task, space.largest, {WEIGHTS: shared}, params, 0, run="run")
    with closing(LocalFleet(config)) as fleet:
        return {answer.client: answer for answer in fleet.train(orders)}


@pytest.mark.parametrize(
    ("task", "changes", "fails"),
    [
        ("subnet", {}, True),
        ("sandwich", {"method": "fedsup", "space.name": "small"}, True),
        ("subnet", {"personal.layers": "head"}, True),
        ("trial", {"personal.layers": "head"}, True),
        ("trial", {"calibrate": "client"}, True),
        ("trial", {}, False),
        ("install", {"calibrate": "client"}, True),
        ("moments", {"calibrate": "federated"}, False),
    ],
)
def test_a_client_with_one_image_says_why_it_cannot_and_others_go_on(
    task: str, changes: dict[str, Any], fails: bool, tmp_path: Path
) -> None:
    found = answers_of(lonely(tmp_path, **changes), task)
    alone, many = found[ALONE], found[MANY]
    assert isinstance(many, Answer)
    assert isinstance(alone, Failure) == fails
    if isinstance(alone, Failure):
        assert "a batch of a single image" in alone.reason or "single image" in alone.reason


def test_a_round_goes_on_without_the_client_that_has_one_image(tmp_path: Path) -> None:
    config = lonely(tmp_path, method="fedavg")
    space = space_of(config)
    method = make(Setup(config, space, (), initial_weights(space, 1)))
    with closing(LocalFleet(config)) as fleet:
        event = recorded(run_round(config, method, fleet, 0))
    assert [row["client"] for row in event["clients"]] == [MANY]
    ((failure),) = event["failures"]
    assert failure["client"] == ALONE and "two images or more" in failure["reason"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train.batch": 1}, r"train\.batch = 1: .* allowed is 2 or more"),
        ({"data.validation": 0.02}, r"data\.validation = 0\.02 leaves the server a single image"),
        ({}, None),
        ({"train.batch": 1, "space.norm": "group"}, None),
    ],
)
def test_settings_that_leave_batch_norm_single_images_are_refused_by_name(
    changes: dict[str, Any], words: str | None, tmp_path: Path
) -> None:
    config = lonely(tmp_path, **changes)
    if words is None:
        refuse_batches_of_one(config)
        return
    with pytest.raises(ConfigError, match=words):
        refuse_batches_of_one(config)


def test_one_image_of_more_pixels_has_statistics() -> None:
    refuse_batches_of_one(read({"space.name": "cnn8", "space.norm": "batch", "train.batch": 1}))
