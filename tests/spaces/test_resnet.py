from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.samples import toy_space
from contracts.space import SearchSpaceContract, real_cost

from fednas_core.base.errors import ArchError, ConfigError
from fednas_core.spaces.networks import initial_weights
from fednas_core.spaces.registry import load, names
from fednas_core.spaces.resnet import ResNetSpace, make_divisible
from fednas_core.subnets.packing import shapes

GOLDENS = json.loads((Path(__file__).parent.parent / "golden" / "deepfednas_golden.json").read_text())


class TestPreset(SearchSpaceContract):
    @pytest.fixture(params=[name for name in names() if load(name).kind == "resnet"])
    def space(self, request: pytest.FixtureRequest) -> ResNetSpace:
        return load(request.param)


class TestOddSpaces(SearchSpaceContract):
    samples = 60

    @pytest.fixture(
        params=[
            {"image_size": 7},
            {"image_size": 9, "strides": (2, 2)},
            {"image_size": 5, "strides": (2, 2), "stem_stride": 2},
            {"image_size": 1, "strides": (2, 2), "stem_stride": 2},
            {"stem_stride": 2, "image_size": 13, "in_channels": 3, "classes": 7},
            {"norm": "none"},
            {"norm": "batch"},
            {"norm": "parametric"},
            {"norm": "parametric-sample"},
            {"extra_blocks": 0},
            {"stages": (8,), "strides": (2,), "widths": (0.7, 1.3, 2.0), "extra_blocks": 3},
        ],
        ids=lambda changes: ",".join(f"{k}={v}" for k, v in changes.items()).replace(" ", ""),
    )
    def space(self, request: pytest.FixtureRequest) -> ResNetSpace:
        return toy_space(**{"widths": (0.5, 1.0, 1.5), "expansions": (0.25, 0.5, 1.0), **request.param})


# -- published numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("golden", GOLDENS, ids=[row["name"] for row in GOLDENS])
def test_published_costs(golden: dict[str, Any]) -> None:
    space = load("deepfednas-cifar")
    assert space.norm == "group"
    cost = space.cost(space.arch({gene: golden[gene] for gene in "dew"}))
    assert (cost.macs, cost.params) == (golden["macs"], golden["params"])


def test_bounds_of_the_published_spaces() -> None:
    assert len(GOLDENS) == 10
    elastic, fixed = load("deepfednas-cifar"), load("superfednas-cifar")
    assert elastic.cost(elastic.smallest).macs == 7_545_888
    assert elastic.cost(elastic.largest).macs == 3_403_370_496
    assert fixed.cost(fixed.smallest).macs == 458_969_088
    assert fixed.cost(fixed.largest) == elastic.cost(elastic.largest)


def test_number_of_distinct_choices_of_the_published_space() -> None:
    space = load("superfednas-cifar")
    a_stage = {
        space.arch({"d": [d, 0, 0, 0], "e": [*e, *[0.1] * 9], "w": [0] * 5})
        for d in range(3)
        for e in itertools.product(space.expansions, repeat=3)
    }
    assert len(a_stage) == 5 + 25 + 125
    assert len(a_stage) ** 4 == 577_200_625


def test_number_of_distinct_architectures_of_a_toy_space() -> None:
    space = toy_space()
    every = {space.decode(np.array(row)) for row in itertools.product(*map(range, space.gene_choices))}
    assert len(every) == (2 + 4) ** 2 * 2**3


def test_channels_after_rounding() -> None:
    channels = load("deepfednas-cifar").channels
    assert channels[0].tolist() == [8, 16, 24, 24, 32, 40, 48, 48, 56, 64]
    assert channels[1].tolist() == [24, 48, 80, 104, 128, 152, 176, 208, 232, 256]
    assert channels[2].tolist() == [48, 104, 152, 208, 256, 304, 360, 408, 464, 512]
    assert channels[3].tolist() == [104, 208, 304, 408, 512, 616, 720, 816, 920, 1024]
    assert channels[4].tolist() == [208, 408, 616, 816, 1024, 1232, 1432, 1640, 1840, 2048]


@pytest.mark.parametrize(
    ("value", "rounded"), [(0.1, 8), (8, 8), (11.9, 16), (12, 16), (19.2, 24), (20, 24), (35, 32), (36, 40), (3.0, 8)]
)
def test_rounding_rule(value: float, rounded: int) -> None:
    assert make_divisible(value) == rounded
    assert rounded >= 0.9 * value


def test_the_first_block_of_a_stage_always_projects_and_no_other_does() -> None:
    space = toy_space(stem=16, stages=(16, 16), strides=(1, 1))
    plan = space.plan(space.largest)
    projections = [name for name in plan if name.endswith(".shortcut.weight")]
    assert projections == ["stages.0.0.shortcut.weight", "stages.1.0.shortcut.weight"]


# -- architectures -------------------------------------------------------------------------------------------------


def test_inactive_genes_do_not_distinguish_architectures() -> None:
    space = toy_space()
    one = space.arch({"d": [0, 1], "e": [1.0, 1.0, 0.5, 1.0], "w": [1, 1, 1]})
    other = space.arch({"d": [0, 1], "e": [1.0, 0.5, 0.5, 1.0], "w": [1, 1, 1]})
    assert one == other and one["e"] == (1.0, 0.5, 0.5, 1.0)
    active = space.arch({"d": [0, 1], "e": [0.5, 0.5, 0.5, 1.0], "w": [1, 1, 1]})
    assert active != one


def test_genes_may_be_numpy_numbers() -> None:
    space = toy_space()
    genes = {"d": list(np.array([1, 1])), "e": list(np.array([0.5, 1, 1, 1])), "w": list(np.array([1, 0, 1]))}
    assert json.loads(str(space.arch(genes)))["d"] == [1, 1]


@pytest.mark.parametrize(
    ("genes", "words"),
    [
        ({"d": [0, 2]}, r"gene d\[1\] .* is 2, allowed: 0 to 1"),
        ({"d": [0, -1]}, r"gene d\[1\] .* is -1, allowed: 0 to 1"),
        ({"d": [True, 0]}, r"gene d\[0\] .* is True, allowed: 0 to 1"),
        ({"d": [0.0, 0]}, r"gene d\[0\] .* is 0\.0, allowed: 0 to 1"),
        ({"d": [0]}, r"gene d .* list of 2 numbers"),
        ({"d": "01"}, r"gene d .* found '01', needed is a list of 2 numbers"),
        ({"d": 1}, r"gene d .* found 1, needed is a list of 2 numbers"),
        ({"w": [0, 1, 2]}, r"gene w\[2\] .* is 2, allowed: 0 to 1"),
        ({"w": [0, None, 1]}, r"gene w\[1\] .* is None, allowed: 0 to 1"),
        ({"e": [0.5, 0.5, 0.7, 0.5]}, r"gene e\[2\] .* is 0\.7, allowed: 0\.5, 1\.0"),
        ({"e": [0.5, 0.5, "1.0", 0.5]}, r"gene e\[2\] .* is '1\.0', allowed: 0\.5, 1\.0"),
        ({"e": [float("nan")] * 4}, r"gene e\[0\] .* is nan, allowed: 0\.5, 1\.0"),
        ({"x": [1]}, r"found d, e, w, x, needed are d, e and w"),
    ],
)
def test_wrong_genes_are_refused_with_gene_and_choices(genes: dict[str, Any], words: str) -> None:
    good = {"d": [0, 0], "e": [0.5] * 4, "w": [0, 0, 0]}
    with pytest.raises(ArchError, match=words):
        toy_space().arch({**good, **genes})


def test_missing_gene_is_refused_by_the_value_too() -> None:
    with pytest.raises(ArchError, match="no gene 'k'; it has d, e, w"):
        toy_space().largest["k"]


# -- fields, TOML and JSON -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": ()}, "stages = .*allowed: a list of one or more positive"),
        ({"stages": (16, 0)}, "stages = .*positive base widths"),
        ({"strides": (1,)}, "strides = .*2 values"),
        ({"strides": (1, 3)}, "strides = .*each 1 or 2"),
        ({"widths": (1.0, 0.5)}, "widths = .*rising order"),
        ({"widths": (0.0, 0.5)}, r"widths = .*\(0, 8\]"),
        ({"expansions": ()}, "expansions = .*one or more distinct"),
        ({"expansions": (0.5, 0.5)}, "expansions = .*distinct"),
        ({"stem": 0}, "stem = 0, allowed: an integer of at least 1"),
        ({"extra_blocks": -1}, "extra_blocks = -1, allowed: an integer of at least 0"),
        ({"classes": 1}, "classes = 1, allowed: an integer of at least 2"),
        ({"stem_stride": 3}, "stem_stride = 3, allowed: 1 or 2"),
        ({"norm": "layer"}, "norm = 'layer', allowed: none, group, batch"),
    ],
)
def test_fields_that_describe_no_network_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        toy_space(**changes)


def test_a_space_of_a_users_own_toml(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("stem = 8\nstages = [8]\nstrides = [1]\nwidths = [1]\nexpansions = [1]\nstem_stride = 2\n")
    space = load(str(path))
    assert space.name == "mine" and space.widths == (1.0,) and space.stem_stride == 2 and space.norm == "group"
    cost, tensors = real_cost(space, space.largest)
    assert cost == space.cost(space.largest) and tensors == shapes(space.plan(space.largest))


# -- initial values ------------------------------------------------------------------------------------------------


def test_initial_weights_come_from_the_seed_alone() -> None:
    space = toy_space()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, two, three = (initial_weights(space, seed) for seed in (4, 4, 5))
    assert (torch.get_rng_state() == before).all()
    assert {n: tuple(t.shape) for n, t in one.items()} == shapes(space.plan(space.largest))
    assert all((one[n] == two[n]).all() for n in one)
    assert any((one[n] != three[n]).any() for n in one)
    assert not any(tensor.requires_grad for tensor in one.values())


def test_forward_of_odd_images_with_strided_stem() -> None:
    space = toy_space(image_size=7, stem_stride=2, strides=(2, 2))
    network = space.build(space.largest)
    logits = network(torch.randn(3, 2, 7, 7))
    assert logits.shape == (3, 3) and torch.isfinite(logits).all()
