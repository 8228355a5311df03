from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.mobile import STAGES, toy_mobile
from contracts.space import SearchSpaceContract
from torch import nn
from torch.nn import functional

from fednas_core.base.errors import ArchError, ConfigError
from fednas_core.spaces.layers.depthwise import depthwise_conv
from fednas_core.spaces.mobilenet import MobileNetSpace
from fednas_core.spaces.mobilespec import MobileBlockSpec, Stage
from fednas_core.spaces.networks import initial_weights
from fednas_core.spaces.registry import from_table, load
from fednas_core.spaces.space import Signature
from fednas_core.subnets.networks import subnet
from fednas_core.subnets.packing import shapes

NORMED = ["group", "batch", "parametric", "parametric-sample"]


class TestSmall(SearchSpaceContract):
    @pytest.fixture
    def space(self) -> MobileNetSpace:
        return load("mobilenet")


class TestSmallWithOtherNorms(SearchSpaceContract):
    samples = 30

    @pytest.fixture(params=["none", "batch", "parametric", "parametric-sample"])
    def space(self, request: pytest.FixtureRequest) -> MobileNetSpace:
        return load("mobilenet").with_norm(request.param)


class TestFedSup(SearchSpaceContract):
    samples = 60

    @pytest.fixture(params=["none", *NORMED])
    def space(self, request: pytest.FixtureRequest) -> MobileNetSpace:
        return load("fedsup").with_norm(request.param)


class TestOnceForAll(SearchSpaceContract):
    samples = 40

    @pytest.fixture
    def space(self) -> MobileNetSpace:
        return load("once-for-all")


class TestOddSpaces(SearchSpaceContract):
    samples = 60

    @pytest.fixture(
        params=[
            {},
            {"granularity": "stage", "norm": "parametric"},
            {"shortcuts": "projection"},
            {"tail": (32, 40), "activation": "h-swish"},
            {"stem_stride": 2, "image_size": 1, "resolutions": ()},
            {"stem": 8, "stages": (Stage((8,), (1, 3, 4), 1, (3, 5)),)},
            {"stages": (Stage((8, 24), (2, 4), 2, (5, 7), (1.25, 2.5)),), "norm": "none"},
        ],
        ids=lambda changes: ",".join(changes) or "toy",
    )
    def space(self, request: pytest.FixtureRequest) -> MobileNetSpace:
        return toy_mobile(**request.param)


class TestTransforms(SearchSpaceContract):
    samples = 60
    slack = 3**4 + 5**4 + 3**4

    @pytest.fixture(params=["batch", "group"])
    def space(self, request: pytest.FixtureRequest) -> MobileNetSpace:
        return toy_mobile(transforms=True, norm=request.param)

    def macs_beside(self, network: nn.Module) -> int:
        layers = [layer for layer in network.modules() if isinstance(layer, depthwise_conv())]
        return sum(layer.in_channels * size**4 for layer in layers for size in layer.steps)


def blocks_of(space: MobileNetSpace, arch: Any) -> list[MobileBlockSpec]:
    return [block for blocks in space.spec(arch).stages for block in blocks]


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with every parameter moved at random, so that no norm is silent."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module


# -- published numbers ---------------------------------------------------------------------------------------------


def test_the_published_space_of_fedsup() -> None:
    space = load("fedsup").with_norm("parametric")
    assert space.size == 10_368
    assert space.cost(space.largest).params == 2_989_322
    rows = itertools.product(*map(range, space.gene_choices))
    assert len({space.decode(np.array(row)) for row in rows}) == 10_368


def test_every_parameter_of_fedsups_supernet_does_something() -> None:
    space = load("fedsup").with_norm("parametric")
    module = randomised(space.build(space.largest))
    module(torch.randn(4, 3, 32, 32)).square().sum().backward()
    silent = [name for name, parameter in module.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert silent == []


def test_the_published_space_of_once_for_all() -> None:
    space = load("once-for-all").with_norm("batch")
    assert space.size == 25 * (9**2 + 9**3 + 9**4) ** 5 == 25 * 21_758_655_492_572_485_851
    largest = space.spec(space.largest)
    widths = [(blocks[0].depthwise.channels, blocks[-1].project.c_out, len(blocks)) for blocks in largest.stages]
    assert widths == [(16, 16, 1), (96, 24, 4), (144, 40, 4), (240, 80, 4), (480, 112, 4), (672, 160, 4)]
    assert [block.squeeze.reduced if block.squeeze else 0 for block in blocks_of(space, space.largest)] == (
        [0] * 5 + [40] + [64] * 3 + [0] * 4 + [120] + [168] * 3 + [168] + [240] * 3
    )
    assert [blocks[0].adds for blocks in largest.stages] == [True, False, False, False, False, False]
    assert all(block.adds for blocks in largest.stages for block in blocks[1:])
    assert space.sizes(224) == (112, 112, 56, 28, 14, 14, 7)
    assert (space.cost(space.largest).macs, space.cost(space.largest).params) == (566_170_656, 7_664_760)


@pytest.mark.parametrize("name", ["fedsup", "once-for-all", "mobilenet"])
def test_the_largest_is_the_largest_and_the_smallest_the_smallest_in_every_stage(name: str) -> None:
    space = load(name)
    for arch, at in ((space.largest, -1), (space.smallest, 0)):
        spec = space.spec(arch)
        assert spec.resolution == space.resolutions[at] and len(spec.stages) == len(space.stages)
        for j, (blocks, stage) in enumerate(zip(spec.stages, space.stages, strict=True)):
            assert len(blocks) == stage.depths[at]
            for b, block in enumerate(blocks):
                assert block.project.c_out == stage.widths[at] and block.depthwise.kernel == stage.kernels[at]
                assert space.chosen(arch, j, b) == (stage.kernels[at], stage.expansions[at])


# -- the network ---------------------------------------------------------------------------------------------------


def test_smaller_kernels_are_the_centre_of_the_largest() -> None:
    space = toy_mobile()
    genes = space.largest.to_json()
    plan = space.plan(space.arch({**genes, "k": [0, 1, 1, 0]}))
    name = "stages.{}.{}.depthwise.weight".format
    assert plan[name(0, 0)][2:] == (slice(1, 4), slice(1, 4)) and plan[name(0, 1)][2:] == (slice(0, 5), slice(0, 5))
    assert plan[name(1, 0)][2:] == (slice(1, 6), slice(1, 6)) and plan[name(1, 1)][2:] == (slice(2, 5), slice(2, 5))


@pytest.mark.parametrize("norm", NORMED)
def test_a_block_with_a_shortcut_starts_as_its_shortcut(norm: str) -> None:
    space = load("mobilenet").with_norm(norm)
    module = space.build(space.largest).eval()
    x = torch.randn(2, 24, 8, 8)
    assert torch.equal(module.stages[0][1](x), x)
    weights = initial_weights(space, 1)
    silent = [name for name, tensor in weights.items() if name.endswith("norm.weight") and not tensor.any()]
    assert silent == [f"{block}.project_norm.weight" for block in space.blocks if not block.endswith(".0")]
    assert all((weights[f"{block}.depthwise_norm.weight"] == 1).all() for block in space.blocks)


def test_a_strided_projection_averages_first() -> None:
    space = load("fedsup")
    block = space.build(space.largest).eval().stages[1][0]
    x = torch.randn(2, 64, 16, 16)
    torch.testing.assert_close(block(x), block.shortcut(functional.avg_pool2d(x, 2)))


def test_a_network_brings_images_to_its_resolution() -> None:
    space = toy_mobile()
    small = space.arch({**space.largest.to_json(), "r": [0]})
    assert space.cost(small).params == space.cost(space.largest).params
    assert space.cost(small).macs < space.cost(space.largest).macs
    module, images = space.build(small).eval(), torch.randn(3, 2, 9, 9)
    by_hand = functional.interpolate(images, (6, 6), mode="bilinear")
    assert torch.equal(module(images), module(by_hand))


def test_squeeze_excite_by_hand() -> None:
    module = randomised(toy_mobile().build(toy_mobile().largest))
    layer, x = module.stages[1][0].squeeze, torch.randn(2, 48, 5, 5)
    inner = torch.relu(x.mean((2, 3)) @ layer.reduce.weight.T + layer.reduce.bias)
    gates = (inner @ layer.expand.weight.T + layer.expand.bias + 3).clamp(0, 6) / 6
    torch.testing.assert_close(layer(x), x * gates[:, :, None, None])


def test_depthwise_convolutions_keep_float32_under_bf16() -> None:
    space = toy_mobile(transforms=True)
    layer, x = space.build(kernel_genes(space, 3)).stages[1][0].depthwise, torch.randn(2, 48, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x.bfloat16())
    assert found.dtype == torch.float32 and torch.equal(found, layer(x.bfloat16().float()))
    assert layer.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16


# -- kernel transforms ---------------------------------------------------------------------------------------------


def kernel_genes(space: MobileNetSpace, kernel: int) -> Any:
    """The largest architecture but for the kernel of block stages.1.0."""
    genes = space.largest.to_json()
    return space.arch({**genes, "k": [1, 1, (3, 5, 7).index(kernel), 2]})


@pytest.mark.parametrize(
    ("kernel", "side", "matrices"), [(7, 7, {25: 5, 9: 3}), (5, 5, {25: 5}), (3, 5, {25: 5, 9: 3})]
)
def test_what_a_layer_with_transforms_owns(kernel: int, side: int, matrices: dict[int, int]) -> None:
    space = toy_mobile(transforms=True)
    found = shapes(space.plan(kernel_genes(space, kernel)))
    name = "stages.1.0.depthwise."
    wanted = {f"{name}weight": (48, 1, side, side), **{f"{name}transform{k}": (n, n) for n, k in matrices.items()}}
    assert {key: shape for key, shape in found.items() if key.startswith(name)} == wanted


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_identity_transforms_are_exactly_the_centre_crop(kernel: int) -> None:
    plain, learned = toy_mobile(), toy_mobile(transforms=True)
    supernet = initial_weights(learned, 3)
    for name, tensor in supernet.items():
        if ".transform" in name:
            assert torch.equal(tensor, torch.eye(len(tensor)))
        elif "norm.weight" in name:
            supernet[name] = torch.rand(tensor.shape) + 0.5
    arch, images = kernel_genes(plain, kernel), torch.randn(3, 2, 9, 9)
    one, other = (subnet(space, arch, supernet).eval() for space in (plain, learned))
    assert torch.equal(one(images), other(images))


def test_transforms_by_hand() -> None:
    space = toy_mobile(transforms=True)
    module = randomised(space.build(kernel_genes(space, 3)))
    layer, x = module.stages[1][0].depthwise, torch.randn(2, 48, 9, 9)
    weight, to5, to3 = (t.detach().double().numpy() for t in (layer.weight, layer.transform5, layer.transform3))
    five = np.einsum("ij,cj->ci", to5, weight.reshape(48, 25)).reshape(48, 5, 5)
    three = np.einsum("ij,cj->ci", to3, five[:, 1:4, 1:4].reshape(48, 9)).reshape(48, 1, 3, 3)
    wanted = functional.conv2d(x, torch.from_numpy(three).float(), None, 2, 1, groups=48)
    torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-5)
    layer(x).sum().backward()
    assert layer.transform5.grad.abs().sum() > 0 and layer.transform3.grad.abs().sum() > 0
    assert (layer.weight.grad != 0).any((0, 1)).all(), "a 3×3 kernel learns from the whole 5×5 centre"


# -- architectures -------------------------------------------------------------------------------------------------


def test_genes_of_inactive_blocks_do_not_distinguish_architectures() -> None:
    space = toy_mobile()
    genes = {"d": [0, 1], "e": [1, 1, 0, 1], "k": [1, 1, 2, 2], "r": [1], "w": [1, 1]}
    arch = space.arch(genes)
    assert arch["e"] == (1, 0, 0, 1) and arch["k"] == (1, 0, 2, 2)
    assert arch == space.arch({**genes, "e": [1, 0, 0, 1]}) and arch != space.arch({**genes, "e": [0, 1, 0, 1]})


def test_number_of_architectures_of_a_toy_space() -> None:
    for space, size in (
        (toy_mobile(), 2 * 2 * (4 + 16) * 2 * (6 + 36)),
        (toy_mobile(granularity="stage"), 2 * 16 * 24),
    ):
        rows = itertools.product(*map(range, space.gene_choices))
        assert len({space.decode(np.array(row)) for row in rows}) == space.size == size


def test_description_names_resolution_stages_kernel_and_expansion() -> None:
    space = toy_mobile()
    assert space.describe(space.largest) == "9px · 16×2 · 24×2  k 6.0 e 2.50"
    assert space.describe(space.smallest) == "6px · 8×1 · 16×1  k 3.0 e 1.50"


@pytest.mark.parametrize(
    ("genes", "words"),
    [
        ({"d": [0, 2]}, r"gene d\[1\] .* is 2, allowed: 0 to 1"),
        ({"k": [0, 0, 0, 3]}, r"gene k\[3\] .* is 3, allowed: 0 to 2"),
        ({"e": [0, 0, 0]}, r"gene e .* needed is a list of 4 numbers"),
        ({"r": [2]}, r"gene r\[0\] .* is 2, allowed: 0 to 1"),
        ({"w": [0, 0.5]}, r"gene w\[1\] .* is 0\.5, allowed: 0 to 1"),
        ({"x": [0]}, r"found d, e, k, r, w, x, needed are d, e, k, r and w"),
    ],
)
def test_wrong_genes_are_refused_with_gene_and_choices(genes: dict[str, Any], words: str) -> None:
    with pytest.raises(ArchError, match=words):
        toy_mobile().arch({**toy_mobile().smallest.to_json(), **genes})


# -- fields --------------------------------------------------------------------------------------------------------


def test_resolutions_follow_the_data_in_proportion() -> None:
    images = Signature((3, 32, 32), 10)
    assert load("once-for-all").for_data(images).resolutions == tuple(range(18, 33))
    assert load("mobilenet").for_data(images).resolutions == (24, 28, 32)
    assert load("mobilenet").for_data(Signature((1, 2, 2), 10)).resolutions == (2,)
    assert load("fedsup").for_data(Signature((1, 9, 9), 10)).resolutions == (9,)
    assert load("fedsup").resolutions == (32,)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": ()}, "stages = .*one or more tables"),
        ({"stem": 12}, "stem = 12, allowed: multiples of 8"),
        ({"stem_stride": 3}, "stem_stride = 3, allowed: 1 or 2"),
        ({"tail": (32,)}, "tail = .*nothing or two multiples of 8"),
        ({"tail": (32, 33)}, "tail = .*nothing or two multiples of 8"),
        ({"activation": "gelu"}, "activation = 'gelu', allowed: relu, h-swish"),
        ({"granularity": "layer"}, "granularity = 'layer', allowed: stage, block"),
        ({"shortcuts": "none"}, "shortcuts = 'none', allowed: projection, identity"),
        ({"norm": "layer"}, "norm = 'layer', allowed: none, group, batch, parametric, parametric-sample"),
        ({"classes": 1}, "classes = 1, allowed: an integer of at least 2"),
        ({"resolutions": (9, 6)}, "resolutions = .*rising order, the last being image_size, 9"),
        ({"resolutions": (4, 6)}, "resolutions = .*the last being image_size, 9"),
        ({"resolutions": (0, 9)}, "resolutions = .*rising order"),
        ({"norm": "parametric-sample", "image_size": 2, "resolutions": (1, 2)}, "images of 2 pixels .* a single one"),
    ],
)
def test_fields_that_describe_no_network_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        toy_mobile(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"widths": (16, 12)}, r"stages\[1\]\.widths = .*multiples of 8 in rising order"),
        ({"widths": ()}, r"stages\[1\]\.widths = .*one or more"),
        ({"depths": (0, 1)}, r"stages\[1\]\.depths = .*numbers of blocks in rising order"),
        ({"kernels": (3, 4)}, r"stages\[1\]\.kernels = .*odd numbers in rising order"),
        ({"expansions": (0.5, 1.0)}, r"stages\[1\]\.expansions = .*1 to 16 in rising order"),
        ({"expansions": (float("nan"),)}, r"stages\[1\]\.expansions"),
        ({"stride": 3}, r"stages\[1\]\.stride = 3, allowed: 1 or 2"),
        ({"activation": "tanh"}, r"stages\[1\]\.activation = 'tanh', allowed: relu, h-swish"),
    ],
)
def test_stages_that_describe_no_network_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        toy_mobile(stages=(STAGES[0], replace(STAGES[1], **changes)))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"stages": 3}, "stages = 3, allowed: tables"),
        ({"stages": [3]}, r"stages\[0\] holds 3, allowed: a table"),
        ({"stages": [{"widths": [8]}]}, r"field 'stages\[0\]\.depths' is missing"),
        ({"stages": [{"widths": [8], "depths": [1], "kernel": [3]}]}, r"unknown field 'stages\[0\]\.kernel', allowed"),
        ({"stages": [{"widths": 8, "depths": [1]}]}, r"stages\[0\]\.widths = 8, allowed: a list of numbers"),
        ({"stages": [{"widths": ["x"], "depths": [1]}]}, r"stages\[0\]\.widths holds 'x', allowed: a number"),
        ({"transforms": 1}, "transforms holds 1, allowed: true or false"),
        ({"kind": "vgg"}, "kind = 'vgg', allowed: resnet, mobilenet"),
        ({"kind": []}, r"kind = \[\], allowed: resnet, mobilenet"),
    ],
)
def test_wrong_tables_are_refused_naming_the_field(table: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_table({**json.loads(json.dumps(toy_mobile().to_json())), **table}, "toy")


def test_a_space_of_a_users_own_toml(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'kind = "mobilenet"\nstem = 8\nimage_size = 12\n[[stages]]\nwidths = [8]\ndepths = [2]\nexpansions = [3]\n'
    )
    space = load(str(path))
    assert space.name == "mine" and space.stages == (Stage((8,), (2,), expansions=(3.0,)),) and space.size == 1
    assert space.build(space.largest)(torch.randn(2, 3, 12, 12)).shape == (2, 10)
