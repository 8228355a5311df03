"""Kinds of space: a table that entry points extend, and capabilities that are asked for by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.series import SeriesSpace
from contracts.space import SearchSpaceContract

from fednas_core.base.errors import ConfigError
from fednas_core.devices.footprint import inference_bytes, training_bytes
from fednas_core.search.fittest import fitness_of, fittest
from fednas_core.spaces.capabilities import elastic, removable, staged
from fednas_core.spaces.registry import from_table, kinds, load, names
from fednas_core.spaces.space import Signature


@pytest.fixture(params=["contracts.series:SeriesSpace"])
def installed(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package that registers kind ``series`` as installed, and ``resnet``, which is taken."""
    folder = tmp_path / "series-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: series\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[fednas.spaces]\nseries = {request.param}\nresnet = {request.param}\n")
    monkeypatch.syspath_prepend(tmp_path)
    kinds.cache_clear()
    yield
    kinds.cache_clear()


@pytest.mark.usefixtures("installed")
class TestAnotherFamily(SearchSpaceContract):
    """A space of series keeps the contract, and comes back from JSON by its kind."""

    samples = 50

    @pytest.fixture
    def space(self) -> Any:
        return SeriesSpace("series-small", (8, 16, 24))


@pytest.mark.usefixtures("installed")
def test_a_preset_of_another_package_is_a_space_like_any() -> None:
    space = elastic(load("series-small"))
    assert space == SeriesSpace("series-small", (8, 16, 24)) and "series-small" in names()
    budget = space.cost(space.largest).macs // 2
    (chosen,) = fittest(space, [budget])
    assert space.cost(chosen).macs <= budget and np.isnan(fitness_of(space, [chosen])).all()
    assert training_bytes(space, chosen, 4) > inference_bytes(space, chosen, 4) > 0
    assert staged(space) is None and removable(space) is None and space.shrinkable == (0, 1, 2, 3)


@pytest.mark.usefixtures("installed")
def test_unknown_names_list_what_is_installed_and_taken_names_stay() -> None:
    with pytest.raises(ConfigError, match="kind = 'vgg', allowed: resnet, mobilenet, chain, series"):
        from_table({"kind": "vgg"}, "mine")
    with pytest.raises(ConfigError, match="use one of .*series-small"):
        load("vgg")
    assert from_table(load("small").to_json(), "small") == load("small")


@pytest.mark.parametrize("installed", ["contracts.series:Nothing", "no_such_package:Space"], indirect=True)
def test_a_kind_that_cannot_be_imported_is_named_when_it_is_asked_for(installed: None) -> None:
    assert "small" in names()
    with pytest.raises(ConfigError, match="entry point 'series' in group 'fednas.spaces' cannot be imported"):
        from_table({"kind": "series", "widths": [8]}, "mine")


def test_capabilities_are_those_that_spaces_have() -> None:
    assert staged(load("small")) is not None and removable(load("small")) is None
    assert staged(load("cnn8")) is None and removable(load("cnn8")) is not None
    assert removable(from_table({"kind": "chain", "units": [{"kind": "conv", "filters": 8}]}, "one")) is None


def test_a_space_without_an_order_is_refused_where_one_is_needed() -> None:
    class Unordered:
        name = "cells"

    with pytest.raises(ConfigError, match="space 'cells': its choices have no order"):
        elastic(Unordered())  # type: ignore[arg-type]


def test_images_are_told_from_other_data() -> None:
    size = load("small").signature.inputs[1]
    assert load("small").for_data(Signature((1, size, size), 4)).signature.outputs == 4
    for shape in ((6, 12), (3, 32, 16)):
        with pytest.raises(ConfigError, match="take square images"):
            load("small").for_data(Signature(shape, 4))
