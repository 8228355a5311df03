from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.chains import CHAINS, PLAIN, toy_chain
from contracts.samples import random_tensors
from contracts.space import SearchSpaceContract
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fednas_core.base.errors import ArchError, ConfigError
from fednas_core.spaces.capabilities import Descriptor
from fednas_core.spaces.chain import ChainSpace
from fednas_core.spaces.chainspec import Unit
from fednas_core.spaces.networks import initial_weights
from fednas_core.spaces.registry import from_table, load
from fednas_core.spaces.space import Signature
from fednas_core.subnets.networks import network, subnet
from fednas_core.subnets.packing import extract, nested, shapes, views

NORMS = ["none", "group", "batch", "parametric", "parametric-sample"]


class TestPlainCnns(SearchSpaceContract):
    samples = 200

    @pytest.fixture(params=["cnn", "cnn8"])
    def space(self, request: pytest.FixtureRequest) -> ChainSpace:
        return load(request.param)


class TestLargePresets(SearchSpaceContract):
    samples = 30

    @pytest.fixture(params=["vgg11", "resnet18", "mobilenet-v1"])
    def space(self, request: pytest.FixtureRequest) -> ChainSpace:
        return load(request.param)


class TestToys(SearchSpaceContract):
    samples = 60

    @pytest.fixture(params=list(itertools.product(CHAINS, ["batch", "parametric"])), ids="-".join)
    def space(self, request: pytest.FixtureRequest) -> ChainSpace:
        units, norm = request.param
        return toy_chain(units, norm=norm, granularity=4)


def channels(space: ChainSpace, arch: Any) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in shapes(space.plan(arch)).items() if name.endswith(".weight")}


def masked(space: ChainSpace, *removed: str) -> Any:
    """The largest network without the parts of those names."""
    genes = space.largest.to_json()
    assert set(removed) <= set(space.removable)
    return space.arch({"w": genes["w"], "k": [int(name not in removed) for name in space.removable]})


# -- published numbers ---------------------------------------------------------------------------------------------


def test_published_parameter_counts() -> None:
    wanted = {"resnet18": 11_173_962, "mobilenet-v1": 3_217_226}
    for name, params in wanted.items():
        space = load(name).with_norm("batch")
        assert space.cost(space.largest).params == params
        assert sum(p.numel() for p in space.build(space.largest).parameters()) == params


def test_vgg11_is_the_published_one() -> None:
    space = load("vgg11").with_norm("batch")
    layers: list[nn.Module] = []
    c = 3
    for width in (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"):
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(c, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            c = width
    reference = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))
    module = space.build(space.largest)
    assert sum(p.numel() for p in module.parameters()) == space.cost(space.largest).params == 9_228_362
    for mine, theirs in zip(module.parameters(), reference.parameters(), strict=True):
        mine.data.copy_(theirs.data)
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(module(images), reference(images), rtol=1e-4, atol=1e-5)


def test_the_presets_for_fednas_and_ddc() -> None:
    cnn, cnn8 = load("cnn"), load("cnn8")
    assert len(cnn.groups) == 10 and len(cnn8.removable) == 7
    assert cnn.cost(cnn.largest).macs == 10_716_096
    small = cnn.for_data(Signature((3, 16, 16), 10))
    assert small.cost(small.largest).macs == 2_679_744
    assert (cnn8.cost(cnn8.largest).macs, cnn8.cost(cnn8.largest).params) == (1_115_776, 101_610)


# -- width groups and what can be removed --------------------------------------------------------------------------


def test_width_groups_and_removable_parts_of_resnet18() -> None:
    space = load("resnet18")
    assert space.groups == (
        *("units.0", "units.1.conv1", "units.2.conv1", "units.3.conv1", "units.3", "units.4.conv1"),
        *("units.5.conv1", "units.5", "units.6.conv1", "units.7.conv1", "units.7", "units.8.conv1"),
    )
    assert [widths[-1] for widths in space.widths] == [64] * 3 + [128] * 3 + [256] * 3 + [512] * 3
    assert space.widths[0] == (16, 32, 48, 64)
    strided = {f"units.{i}.conv1" for i in (3, 5, 7)}
    every = {f"units.{i}.{conv}" for i in range(1, 9) for conv in ("conv1", "conv2")}
    assert len(space.removable) == 13 and set(space.removable) == every - strided
    assert list(space.removable) == sorted(space.removable)


def test_the_first_layer_strided_layers_and_the_classifier_are_never_removed() -> None:
    assert toy_chain("plain").removable == ("units.1", "units.2", "units.4", "units.5")
    assert toy_chain("separable").removable == ("units.1", "units.2", "units.4")
    for name in ("cnn", "cnn8", "vgg11", "resnet18", "mobilenet-v1"):
        space = load(name)
        assert not any(part.startswith(("units.0", "head")) or "shortcut" in part for part in space.removable)
        left = channels(space, space.smallest)
        assert {"units.0.conv.weight", "head.weight"} <= set(left)
        assert space.descriptors[0].keep is space.descriptors[-1].keep is None


def test_the_stream_of_a_stage_has_one_width() -> None:
    space = toy_chain("residual")
    assert space.groups == ("units.0", "units.1.conv1", "units.2.conv1", "units.2", "units.3.conv1", "units.3",
                            "units.4.conv1")  # fmt: skip
    found = channels(space, space.arch({"w": [0, 1, 2, 1, 1, 0, 0], "k": [1] * len(space.removable)}))
    assert found["units.0.conv.weight"][0] == found["units.1.conv2.weight"][0] == 8
    assert found["units.1.conv1.weight"] == (16, 8, 3, 3) and found["units.2.conv2.weight"] == (16, 24, 3, 3)
    assert found["units.2.shortcut.weight"] == (16, 8, 1, 1) and "units.1.shortcut.weight" not in found
    assert found["units.4.conv2.weight"] == (8, 8, 3, 3) and found["head.weight"] == (3, 8)


def test_a_removed_layer_hands_its_input_on() -> None:
    space = load("vgg11")
    found = channels(space, masked(space, "units.1", "units.4"))
    assert "units.1.conv.weight" not in found and "units.1.norm.weight" not in found
    assert found["units.2.conv.weight"] == (256, 64, 3, 3) and found["units.5.conv.weight"] == (512, 256, 3, 3)
    sizes = [layer.size for layer in space.layers(masked(space, "units.1")) if hasattr(layer, "size")]
    assert sizes == [32, 8, 8, 4, 4, 2, 2], "the pool behind a removed layer stays"


def test_a_residual_unit_without_its_convolutions_is_its_shortcut() -> None:
    space = load("resnet18").with_norm("batch")
    for removed, left in (("conv1", "conv2"), ("conv2", "conv1")):
        found = channels(space, masked(space, f"units.1.{removed}"))
        assert found[f"units.1.{left}.weight"] == (64, 64, 3, 3) and f"units.1.{removed}.weight" not in found
    found = channels(space, masked(space, "units.3.conv2"))
    assert found["units.3.conv1.weight"] == (128, 64, 3, 3)
    unit = space.build(masked(space, "units.2.conv1", "units.2.conv2")).units[2]
    x = torch.rand(2, 64, 5, 5)
    assert torch.equal(unit(x), x) and not list(unit.parameters())


def test_a_residual_unit_computes_resnets_basic_block() -> None:
    space = toy_chain("residual", norm="none")
    unit = space.build(space.largest).units[2]
    x = torch.randn(2, 16, 9, 9)
    branch = unit.conv2(torch.relu(unit.conv1(x)))
    torch.testing.assert_close(unit(x), torch.relu(branch + unit.shortcut(x)))
    one = space.build(masked(space, "units.2.conv2")).units[2]
    torch.testing.assert_close(one(x), torch.relu(one.conv1(x) + one.shortcut(x)))


def test_groups_on_both_sides_of_a_removed_layer_have_the_smaller_width() -> None:
    space = toy_chain("plain")
    arch = space.arch({"w": [1, 0, 1, 2, 0, 1], "k": [0, 1, 0, 0]})
    assert arch["w"] == (0, 0, 1, 0, 0, 0) and space.arch(arch.to_json()) == arch
    assert channels(space, arch) == {
        "units.0.conv.weight": (8, 2, 3, 3), "units.2.conv.weight": (16, 8, 5, 5),
        "units.3.conv.weight": (8, 16, 3, 3), "head.weight": (3, 8),
        **{f"units.{i}.norm.weight": (c,) for i, c in ((0, 8), (2, 16), (3, 8))},
    }  # fmt: skip


@pytest.mark.parametrize("units", CHAINS)
@pytest.mark.parametrize("norm", NORMS)
def test_every_mask_runs_forward(units: str, norm: Any) -> None:
    space = toy_chain(units, norm=norm)
    n = len(space.removable)
    assert n <= 8
    supernet = random_tensors(space.plan(space.largest), 3)
    images = torch.randn(2, 2, 9, 9, generator=torch.Generator().manual_seed(1))
    found, rng = set(), np.random.default_rng(3)
    for mask in itertools.product((0, 1), repeat=n):
        arch = space.decode(np.array([*rng.integers(0, space.gene_choices[:-n]), *mask]))
        assert arch["k"] == mask
        with torch.no_grad():
            logits = subnet(space, arch, supernet)(images)
        assert logits.shape == (2, 3) and torch.isfinite(logits).all()
        found.add(frozenset(space.plan(arch)))
    assert len(found) == 2**n


def test_every_mask_of_ddcs_teacher_runs_forward_and_costs_less() -> None:
    space = load("cnn8")
    teacher = space.cost(space.largest)
    for mask in itertools.product((0, 1), repeat=len(space.removable)):
        arch = space.arch({"w": space.largest["w"], "k": mask})
        with torch.no_grad():
            assert space.build(arch)(torch.randn(1, 1, 8, 8)).shape == (1, 10)
        cost = space.cost(arch)
        assert all(mask) or (cost.macs < teacher.macs and cost.params < teacher.params)


def test_a_block_begins_as_its_shortcut() -> None:
    for removed in ((), ("units.1.conv1",), ("units.1.conv2",)):
        space = toy_chain("residual")
        unit = space.build(masked(space, *removed)).units[1]
        x = torch.rand(2, 16, 5, 5)
        assert torch.equal(unit(x), x)
    weights = initial_weights(toy_chain("plain"), 0)
    assert all((tensor == 1).all() for name, tensor in weights.items() if name.endswith("norm.weight"))


# -- size, order and nesting ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "units",
    [
        PLAIN[:4],
        (Unit("conv", 16), Unit("residual", 16), Unit("conv", 24)),
        (Unit("conv", 8), Unit("residual", 24), Unit("separable", 16)),
        (Unit("conv", 16), Unit("residual", 24, stride=2), Unit("residual", 24)),
        (Unit("conv", 24), Unit("residual", 8), Unit("residual", 8)),
    ],
)
def test_the_size_is_the_number_of_different_architectures(units: tuple[Unit, ...]) -> None:
    space = replace(toy_chain(), units=units)
    rows = itertools.product(*map(range, space.gene_choices))
    assert len({space.decode(np.array(row)) for row in rows}) == space.size < math.prod(space.gene_choices)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(CHAINS)), st.integers(0, 2**32 - 1))
def test_a_network_of_smaller_genes_lies_within_one_of_larger_genes(units: str, seed: int) -> None:
    space, rng = toy_chain(units), np.random.default_rng(seed)
    low = rng.integers(0, space.gene_choices)
    high = rng.integers(low, space.gene_choices)
    small, large = space.decode(low), space.decode(high)
    whole = random_tensors(space.plan(space.largest), 1)
    parent = extract(whole, space.plan(large))
    for name, tensor in views(parent, nested(space.plan(small), space.plan(large))).items():
        assert torch.equal(tensor, whole[name][space.plan(small)[name]])
    assert space.cost(small).macs <= space.cost(large).macs


def test_describe() -> None:
    space = toy_chain("mixed")
    assert space.describe(space.largest) == "16 · 16+16 · 24 · 24 · 24+24"
    assert space.describe(masked(space, "units.1.conv1", "units.3")) == "16 · –+16 · 24 · – · 24+24"


# -- descriptors ---------------------------------------------------------------------------------------------------


def test_descriptors_of_a_known_network() -> None:
    units = (Unit("conv", 16), Unit("conv", 24, 5, pool=True), Unit("residual", 24), Unit("residual", 32, stride=2))
    space = replace(toy_chain(), units=(*units, Unit("separable", 40)))
    assert space.descriptors == (
        Descriptor("conv", 3, 1, 1, 16),
        Descriptor("conv", 5, 1, 2, 24, keep=0),
        Descriptor("pool", 2, 2, 0, 24),
        Descriptor("conv", 3, 1, 1, 24, skip_start=True, keep=1),
        Descriptor("conv", 3, 1, 1, 24, skip_end=True, keep=2),
        Descriptor("conv", 3, 2, 1, 32, skip_start=True),
        Descriptor("conv", 3, 1, 1, 32, skip_end=True, keep=3),
        Descriptor("shortcut", 1, 2, 0, 32),
        Descriptor("depthwise", 3, 1, 1, 32, keep=4),
        Descriptor("conv", 1, 1, 0, 40, keep=4),
        Descriptor("mean", 3, 1, 0, 40),
        Descriptor("linear", 1, 1, 0, 3),
    )
    assert space.removable == ("units.1", "units.2.conv1", "units.2.conv2", "units.3.conv2", "units.4")


@pytest.mark.parametrize("name", ["cnn", "cnn8", "vgg11", "resnet18", "mobilenet-v1"])
def test_descriptors_name_every_removable_part(name: str) -> None:
    space = load(name)
    kept = [layer.keep for layer in space.descriptors if layer.keep is not None]
    assert sorted(set(kept)) == list(range(len(space.removable))) and kept == sorted(kept)
    assert not any(layer.stride > 1 and layer.keep is not None for layer in space.descriptors)


@pytest.mark.parametrize(("size", "strides", "pools"), [(1, [], []), (2, [], [0]), (3, [1], [0]), (5, [1, 2], [0])])
def test_strides_and_pools_halve_no_single_pixel(size: int, strides: list[int], pools: list[int]) -> None:
    units = (Unit("conv", 8, pool=True), Unit("residual", 16, stride=2), Unit("conv", 16, stride=2, pool=True))
    space = replace(toy_chain(), units=units, image_size=size)
    spec = space.spec(space.largest)
    assert [number for number, unit in enumerate(spec.units) if unit.stride > 1] == strides
    assert [number for number, unit in enumerate(spec.units) if unit.pool] == pools
    logits = network(space, space.largest, initial_weights(space, 0))(torch.randn(4, 2, size, size))
    assert logits.shape == (4, 3) and bool(logits.isfinite().all())


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"units": ()}, "units = .*one or more tables"),
        ({"units": (Unit("residual", 16),)}, r"units\[0\]\.kind = 'residual', allowed: conv, for the first layer"),
        ({"granularity": 4}, "granularity = 4, allowed: positive multiples of 8 with norm = 'group'"),
        ({"granularity": 0, "norm": "none"}, "granularity = 0, allowed: positive multiples of 1"),
        ({"norm": "layer"}, "norm = 'layer', allowed: none, group, batch"),
        ({"classes": 1}, "classes = 1, allowed: an integer of at least 2"),
        ({"in_channels": 0}, "in_channels = 0"),
        ({"image_size": 0}, "image_size = 0"),
        ({"image_size": 4, "units": PLAIN[:5], "norm": "parametric-sample"}, "images of 4 pixels .* a single one"),
    ],
)
def test_fields_that_describe_no_network_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        replace(toy_chain(), **changes)
    assert "toy" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "dense"}, r"units\[1\]\.kind = 'dense', allowed: conv, separable, residual"),
        ({"filters": 12}, r"units\[1\]\.filters = 12, allowed: positive multiples of granularity, 8"),
        ({"filters": 0}, r"units\[1\]\.filters = 0"),
        ({"kernel": 4}, r"units\[1\]\.kernel = 4, allowed: odd numbers"),
        ({"stride": 3}, r"units\[1\]\.stride = 3, allowed: 1 or 2"),
    ],
)
def test_units_that_describe_no_network_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(toy_chain(), units=(PLAIN[0], replace(PLAIN[1], **changes)))


@pytest.mark.parametrize(
    ("genes", "words"),
    [
        ({"w": [0] * 6}, "needed are w and k"),
        ({"w": [0] * 5, "k": [1] * 4}, "gene w of space 'toy': .* list of 6 numbers"),
        ({"w": [0, 3, 0, 0, 0, 0], "k": [1] * 4}, r"gene w\[1\] of space 'toy' is 3, allowed: 0 to 2"),
        ({"w": [0] * 6, "k": [1, 1, 2, 1]}, r"gene k\[2\] of space 'toy' is 2, allowed: 0 to 1"),
        ({"w": [0] * 6, "k": [1, True, 1, 1]}, r"gene k\[1\] of space 'toy' is True"),
    ],
)
def test_genes_out_of_range_are_named(genes: Any, words: str) -> None:
    with pytest.raises(ArchError, match=words):
        toy_chain().arch(genes)


def test_a_group_norm_needs_multiples_of_eight() -> None:
    space = toy_chain(norm="batch", granularity=4)
    with pytest.raises(ConfigError, match="granularity = 4"):
        space.with_norm("group")


def test_a_chain_of_a_users_own_toml(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'kind = "chain"\nimage_size = 12\n[[units]]\nkind = "conv"\nfilters = 16\n'
        '[[units]]\nkind = "residual"\nfilters = 16\npool = true\n'
    )
    space = load(str(path))
    assert space == ChainSpace("mine", (Unit("conv", 16), Unit("residual", 16, pool=True)), image_size=12)
    assert network(space, space.largest, initial_weights(space, 0))(torch.randn(2, 3, 12, 12)).shape == (2, 10)
    table = {"kind": "chain", "units": [{"kind": "conv", "filters": 16, "width": 3}]}
    with pytest.raises(ConfigError, match=r"unknown field 'units\[0\]\.width', allowed: kind, filters, kernel"):
        from_table(table, "mine")
