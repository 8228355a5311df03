from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fednas_core.base.errors import ConfigError
from fednas_core.base.settings import read
from fednas_core.data.partitions import Split
from fednas_core.tasks import bench
from fednas_core.tasks.bench import (
    client_images,
    client_names,
    dataset_of,
    device_of,
    examples_of,
    precision_of,
    preprocessing_of,
    space_of,
    spared,
    split_of,
    validation_images,
)
from fednas_core.tasks.home import Home
from fednas_core.tasks.site import labels_of, site_of


def test_the_space_fits_the_images(tiny_pairs: dict[str, Any]) -> None:
    config = read({**tiny_pairs, "space.name": "deepfednas-cifar", "space.norm": "none"})
    space = space_of(config)
    assert (space.image_size, space.in_channels, space.classes, space.norm) == (8, 1, 10, "none")
    assert space_of(config) is space


def test_clients_and_validation_share_no_image(tiny_pairs: dict[str, Any]) -> None:
    config = read(tiny_pairs)
    parts = split_of(config)
    everything = [*parts.validation.tolist(), *(i for part in parts.clients for i in part.tolist())]
    assert sorted(everything) == list(range(200))
    for index, part in enumerate(parts.clients):
        images = client_images(config, index)
        assert torch.equal(images.x, dataset_of(config).train.x[torch.from_numpy(part)])
        assert len(images.y) == len(part)
    assert len(validation_images(config).y) == len(parts.validation) == 20


@pytest.mark.parametrize(("count", "first", "last"), [(4, "client-00", "client-03"), (120, "client-000", "client-119")])
def test_names_sort_as_numbers_do(tiny_pairs: dict[str, Any], count: int, first: str, last: str) -> None:
    names = client_names(read({**tiny_pairs, "data.clients": count, "data.examples": 1400, "data.partition": "iid"}))
    assert (names[0], names[-1], len(names)) == (first, last, count) and names == sorted(names)


def test_preprocessing_is_that_of_the_data_set(tiny_pairs: dict[str, Any]) -> None:
    x = preprocessing_of(read(tiny_pairs))(dataset_of(read(tiny_pairs)).train.x)
    assert x.dtype == torch.float32 and abs(float(x.mean())) < 0.1 and abs(float(x.std()) - 1) < 0.1


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(read({})) == torch.device("cpu") == device_of(read({"device": "cpu"}))
    with pytest.raises(ConfigError, match="'device' = 'cuda', but .* allowed are auto and cpu"):
        device_of(read({"device": "cuda"}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of(read({})) == torch.device("cuda") == device_of(read({"device": "cuda"}))


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_bf16_only_where_it_is_native(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(bench, "native_bf16", lambda device: native)
    cpu = torch.device("cpu")
    assert precision_of("auto", cpu) == ("bf16" if native else "fp32")
    assert (precision_of("fp32", cpu), precision_of("bf16", cpu)) == ("fp32", "bf16")


def test_labels_are_told_if_the_run_asks_and_the_device_agrees(tiny_pairs: dict[str, Any]) -> None:
    asking = read({**tiny_pairs, "data.disclose": True})
    for index in range(4):
        labels = labels_of(asking, index)
        assert labels == tuple(torch.bincount(client_images(asking, index).y, minlength=10).tolist())
        assert sum(labels) == examples_of(asking, index)
    assert labels_of(asking, 0, Home(disclose=False)) == () == labels_of(read(tiny_pairs), 0)


def test_labels_are_those_of_the_images_that_are_trained_on(tiny_pairs: dict[str, Any]) -> None:
    config = read({**tiny_pairs, "data.disclose": True, "data.holdout": 0.5, "data.only": "3,8,1"})
    labels = labels_of(config, 1)
    assert len(labels) == 3 and sum(labels) == examples_of(config, 1) < len(client_images(config, 1).y)


@pytest.mark.parametrize("testing", [0, 5])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("count", [*range(1, 10), 130])
def test_a_client_holds_images_out_but_one_is_left_to_train_on(
    monkeypatch: pytest.MonkeyPatch, tiny_pairs: dict[str, Any], count: int, share: float, testing: int
) -> None:
    config = read({**tiny_pairs, "data.holdout": share, "evaluate-clients": testing})
    mine = Split(np.arange(0), (np.arange(count),))
    monkeypatch.setattr(bench, "split", lambda dataset, config, seed: mine)
    site = site_of.__wrapped__(config, 0)
    train, validation, test = (len(part.y) for part in (site.train, site.validation, site.test))
    if not share:
        assert (train, validation, test, site.held_out) == (count, count, count, False)
        return
    assert site.held_out and train == count - spared(config, count) >= 1
    if testing:
        assert train + validation + test == count and abs(test - validation) <= 1, "choose by some, report others"
        assert (validation == 0) == (count < 3)
    else:
        assert train + test == count and validation == test
    assert (test == 0) == (count == 1)


def test_no_share_held_out_means_none_where_layers_are_personal_too(tiny_pairs: dict[str, Any]) -> None:
    site = site_of(read({**tiny_pairs, "personal.layers": "head", "data.holdout": 0.0}), 1)
    assert not site.held_out and site.train is site.test is site.validation
