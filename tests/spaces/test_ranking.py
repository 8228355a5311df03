"""Ranking filters by norm: the function stays, the first filters are those of largest norm, in any network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from contracts.chains import CHAINS, toy_chain
from contracts.mobile import toy_mobile
from contracts.samples import random_tensors, toy_space
from torch import Tensor

from fednas_core.base.values import Arch
from fednas_core.spaces.chain import ChainSpace
from fednas_core.spaces.sorting import rank_filters, sort_channels
from fednas_core.subnets.networks import calibrate, network
from fednas_core.subnets.packing import extract, nested, views

NORMS = ["none", "group", "batch", "parametric"]


def outputs(space: ChainSpace, arch: Arch, tensors: dict[str, Tensor]) -> Tensor:
    images = torch.randn(4, 2, 9, 9, generator=torch.Generator().manual_seed(5))
    module = network(space, arch, tensors).eval()
    calibrate(module, [images])
    with torch.no_grad():
        return module(images)  # type: ignore[no-any-return]


def archs_of(space: ChainSpace) -> list[Arch]:
    """The largest network, one of fewer filters, and two without some of the layers."""
    top = space.gene_choices - 1
    shrunken = np.concatenate([np.maximum(top[: len(space.groups)] - 1, 0), top[len(space.groups) :]])
    fewer = top.copy()
    fewer[len(space.groups) :: 2] = 0
    return [space.largest, space.decode(shrunken), space.decode(fewer), space.sample(np.random.default_rng(3))]


@pytest.mark.parametrize("units", CHAINS)
@pytest.mark.parametrize("norm", NORMS)
def test_ranking_preserves_what_a_network_computes(units: str, norm: Any) -> None:
    space = toy_chain(units, norm=norm)
    for arch in archs_of(space):
        tensors = {name: tensor / 2 for name, tensor in random_tensors(space.plan(arch), 2).items()}
        before = {name: tensor.clone() for name, tensor in tensors.items()}
        wanted = outputs(space, arch, before)
        rank_filters(space, arch, tensors)
        found = outputs(space, arch, tensors)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * max(1.0, float(wanted.abs().max())))
        once = {name: tensor.clone() for name, tensor in tensors.items()}
        rank_filters(space, arch, tensors)
        assert all(torch.equal(once[name], tensor) for name, tensor in tensors.items())
        if arch == space.largest:
            assert sum(not torch.equal(before[name], once[name]) for name in before) > 5


@pytest.mark.parametrize("units", CHAINS)
def test_sort_channels_preserves_what_the_largest_network_computes(units: str) -> None:
    space = toy_chain(units, norm="batch")
    tensors = random_tensors(space.plan(space.largest), 2)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    sort_channels(space, tensors, ("e",))
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors.items())
    sort_channels(space, tensors, ("w",))
    assert not torch.equal(before["head.weight"], tensors["head.weight"])
    assert units != "plain" or (tensors["head.weight"].abs().sum(0).diff() <= 0).all()
    wanted = outputs(space, space.largest, before)
    found = outputs(space, space.largest, tensors)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * max(1.0, float(wanted.abs().max())))


def norms_of(tensors: dict[str, Tensor], *names: str) -> Tensor:
    return sum(tensors[f"{name}.weight"].flatten(1).norm(dim=1) for name in names)  # type: ignore[return-value]


MAKERS = {
    "plain": [("units.0.conv",), ("units.1.conv",), ("units.3.conv",), ("units.5.conv",)],
    "residual": [
        ("units.0.conv", "units.1.conv2"),
        ("units.1.conv1",),
        ("units.2.conv2", "units.2.shortcut"),
        ("units.3.shortcut", "units.3.conv2", "units.4.conv2"),
    ],
    "separable": [("units.0.conv",), ("units.1.pointwise",), ("units.4.pointwise",)],
}


@pytest.mark.parametrize("units", MAKERS)
@pytest.mark.parametrize("group", [1, 8])
def test_the_filters_kept_by_a_smaller_network_are_those_of_largest_norm(units: str, group: int) -> None:
    space = toy_chain(units, norm="group" if group == 8 else "batch")
    tensors = random_tensors(space.plan(space.largest), 4)
    for name in tensors:
        scale = torch.rand(len(tensors[name]), generator=torch.Generator().manual_seed(len(name))) + 0.1
        tensors[name] *= scale.view(-1, *[1] * (tensors[name].dim() - 1))
    before = [norms_of(tensors, *names).view(-1, group).sum(1) for names in MAKERS[units]]
    rank_filters(space, space.largest, tensors)
    small = space.decode(np.concatenate([0 * space.gene_choices[: len(space.groups)], [1] * len(space.removable)]))
    kept = views(tensors, space.plan(small))
    for names, norms in zip(MAKERS[units], before, strict=True):
        after = norms_of(tensors, *names).view(-1, group).sum(1)
        torch.testing.assert_close(after, norms.sort(descending=True).values)
        assert all(len(kept[f"{name}.weight"]) == 8 for name in names)


def test_the_stream_of_a_unit_with_one_convolution_is_ranked_with_it() -> None:
    space = toy_chain("residual", norm="batch")
    k = [int(name != "units.1.conv2") for name in space.removable]
    arch = space.arch({"w": space.largest["w"], "k": k})
    tensors = random_tensors(space.plan(arch), 4)
    rank_filters(space, arch, tensors)
    assert (norms_of(tensors, "units.0.conv", "units.1.conv1").diff() <= 0).all()


def test_a_shrunken_network_is_shrunk_again_within_its_own_tensors() -> None:
    space = toy_chain("residual", norm="batch")
    arch = archs_of(space)[1]
    tensors = random_tensors(space.plan(arch), 6)
    rank_filters(space, arch, tensors)
    child = space.smallest
    found = extract(tensors, nested(space.plan(child), space.plan(arch)))
    assert outputs(space, child, found).shape == (4, 3)


@pytest.mark.parametrize("personal", [("head",), ("units.2",), ("units.0", "head")])
def test_channels_that_private_tensors_have_to_do_with_keep_their_order(personal: tuple[str, ...]) -> None:
    whole = toy_chain("plain", norm="batch")
    space = whole.with_personal(personal)
    everything = random_tensors(whole.plan(whole.largest), 7)
    wanted = outputs(whole, whole.largest, everything)
    shared = {name: everything[name].clone() for name in space.plan(space.largest)}
    rank_filters(space, space.largest, shared)
    assert any(not torch.equal(everything[name], tensor) for name, tensor in shared.items())
    found = outputs(whole, whole.largest, {**everything, **shared})
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("space", [toy_space(), toy_mobile()], ids=["resnet", "mobile"])
def test_other_spaces_sort_the_largest_network_and_leave_others(space: Any) -> None:
    tensors, sorted_ = (random_tensors(space.plan(space.largest), 1) for _ in range(2))
    rank_filters(space, space.largest, tensors)
    sort_channels(space, sorted_)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in sorted_.items())
    small = random_tensors(space.plan(space.smallest), 1)
    rank_filters(space, space.smallest, small)
    again = random_tensors(space.plan(space.smallest), 1)
    assert all(torch.equal(small[name], tensor) for name, tensor in again.items())
