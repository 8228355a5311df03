"""Channel sorting: the function stays, the order becomes that of importance, private tensors are left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from contracts.mobile import toy_mobile
from contracts.samples import supernet_of, toy_space
from torch import Tensor

from fednas_core.spaces.mobilespec import Stage
from fednas_core.spaces.registry import load
from fednas_core.spaces.sorting import sort_channels
from fednas_core.spaces.space import Signature
from fednas_core.subnets.networks import calibrate, subnet

NORMS = ["none", "group", "batch", "parametric", "parametric-sample"]
SPACES = {
    "resnet": toy_space(image_size=9, widths=(0.5, 1.0, 2.0), extra_blocks=2),
    "mobile": toy_mobile(),
    "mobile-transforms": toy_mobile(transforms=True, granularity="stage"),
    "mobile-projection": toy_mobile(shortcuts="projection"),
    "mobile-tail": toy_mobile(tail=(24, 32), stem=8, stages=(Stage((8,), (1,)), Stage((16,), (1, 3), 1, (3,), (4.0,)))),
    "fedsup": load("fedsup").for_data(Signature((2, 17, 17), 3)),
}


def outputs(space: Any, arch: Any, supernet: dict[str, Tensor]) -> Tensor:
    images = torch.randn(4, 2, space.image_size, space.image_size, generator=torch.Generator().manual_seed(5))
    module = subnet(space, arch, supernet).eval()
    calibrate(module, [images])
    with torch.no_grad():
        return module(images)  # type: ignore[no-any-return]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", SPACES)
def test_networks_of_full_width_and_expansion_compute_the_same(name: str, norm: str) -> None:
    space = SPACES[name].with_norm(norm)  # type: ignore[arg-type]
    supernet = {key: tensor / 3 for key, tensor in supernet_of(space).items()}
    archs = [space.largest]
    if norm != "none":
        shallow = space.largest.to_json() | {"d": [0] * len(space.largest["d"])}
        archs.append(space.arch(shallow))
    before = {key: tensor.clone() for key, tensor in supernet.items()}
    wanted = [outputs(space, arch, before) for arch in archs]
    sort_channels(space, supernet)
    moved = [key for key in before if not torch.equal(before[key], supernet[key])]
    assert len(moved) > 5
    for arch, logits in zip(archs, wanted, strict=True):
        found = outputs(space, arch, supernet)
        assert (found - logits).abs().max() < 1e-5 * max(1.0, float(logits.abs().max()))


def importance(weight: Tensor, group: int) -> np.ndarray[Any, Any]:
    """The L1 norm of each group of input channels of a weight, in order."""
    return weight.abs().sum((0, 2, 3)).view(-1, group).sum(1).numpy()


@pytest.mark.parametrize(("norm", "group"), [("group", 8), ("batch", 1), ("parametric", 1), ("none", 1)])
def test_the_most_important_come_first(norm: str, group: int) -> None:
    for space, read in ((SPACES["resnet"], "stages.1.0.conv2.weight"), (SPACES["mobile"], "stages.1.0.project.weight")):
        supernet = supernet_of(space.with_norm(norm))  # type: ignore[arg-type]
        before = importance(supernet[read], group)
        sort_channels(space.with_norm(norm), supernet)  # type: ignore[arg-type]
        after = importance(supernet[read], group)
        assert (np.diff(after) <= 0).all() and (np.diff(before) > 0).any()
        np.testing.assert_allclose(after, np.sort(before)[::-1], rtol=1e-5)


@pytest.mark.parametrize("name", SPACES)
def test_sorting_twice_is_sorting_once(name: str) -> None:
    supernet = supernet_of(SPACES[name])
    sort_channels(SPACES[name], supernet)
    once = {key: tensor.clone() for key, tensor in supernet.items()}
    sort_channels(SPACES[name], supernet)
    moved = [key for key, tensor in once.items() if not torch.equal(tensor, supernet[key])]
    assert not moved


def test_genes_choose_what_is_sorted() -> None:
    for space in (SPACES["resnet"], SPACES["mobile"]):
        before, supernet = supernet_of(space), supernet_of(space)
        sort_channels(space, supernet, ())
        assert all(torch.equal(before[key], supernet[key]) for key in before)
        sort_channels(space, supernet, ("e",))
        moved = {key for key in before if not torch.equal(before[key], supernet[key])}
        assert moved and not {"stem.weight", "head.weight"} & moved
        sort_channels(space, supernet, ("w",))
        assert not torch.equal(before["stem.weight"], supernet["stem.weight"])


@pytest.mark.parametrize("personal", [("head",), ("head", "stages.1"), ("stages.0.0",), ("stages.1.0.squeeze",)])
def test_channels_that_private_tensors_have_to_do_with_keep_their_order(personal: tuple[str, ...]) -> None:
    for whole in (SPACES["mobile"], SPACES["resnet"]):
        if personal == ("stages.1.0.squeeze",) and whole is SPACES["resnet"]:
            continue
        space = whole.with_personal(personal).with_norm("batch")
        everything = supernet_of(whole.with_norm("batch"))
        wanted = outputs(whole.with_norm("batch"), whole.largest, everything)
        shared = {key: everything[key].clone() for key in space.plan(space.largest)}
        sort_channels(space, shared)
        assert any(not torch.equal(everything[key], tensor) for key, tensor in shared.items())
        together = {**everything, **shared}
        found = outputs(whole.with_norm("batch"), whole.largest, together)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
