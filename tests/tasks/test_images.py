from __future__ import annotations

from typing import Any

import pytest
import torch

from fednas_core.base.errors import DataError
from fednas_core.base.settings import read
from fednas_core.data.sources import Images
from fednas_core.tasks.images import epochs_of, prepared
from fednas_core.tasks.site import site_of
from fednas_core.training.evaluate import EVAL_BATCH
from fednas_core.training.settings import TrainSettings


def raw(images: torch.Tensor) -> torch.Tensor:
    return images.float()


def sorted_images(count: int) -> Images:
    return Images(torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1), torch.arange(count) // 10)


def test_all_images_in_order() -> None:
    batches = list(prepared(sorted_images(100), raw))  # type: ignore[arg-type]
    assert torch.cat([y for _, y in batches]).tolist() == [i // 10 for i in range(100)]
    assert [len(y) for _, y in batches] == [EVAL_BATCH] * 3 + [4]


def test_prepared_images_are_there_as_often_as_they_are_asked_for() -> None:
    images = prepared(sorted_images(40), raw)  # type: ignore[arg-type]
    assert [len(y) for _, y in images] == [len(y) for _, y in images] == [EVAL_BATCH, 8]


def test_no_images_are_refused() -> None:
    with pytest.raises(DataError, match="the split holds no image, at least one is needed"):
        prepared(sorted_images(0), raw)  # type: ignore[arg-type]


def test_some_of_sorted_images_are_of_every_class() -> None:
    (batch,) = prepared(sorted_images(100), raw, 20)  # type: ignore[arg-type]
    assert batch[1].bincount().tolist() == [2] * 10
    (few,) = prepared(sorted_images(7), raw, 20)  # type: ignore[arg-type]
    assert len(few[1]) == 7


def test_epochs_are_shuffled_by_the_orders_seed(tiny_pairs: dict[str, Any]) -> None:
    site = site_of(read(tiny_pairs), 0)

    def seen(seed: int) -> list[list[int]]:
        epochs = epochs_of(TrainSettings(epochs=2, batch=8), seed, site)
        return [torch.cat([y for _, y in epoch]).tolist() for epoch in epochs]

    first, second = seen(1)
    assert first != second and sorted(first) == sorted(second) == sorted(site.train.y.tolist())
    assert seen(1) == [first, second] != seen(2)
