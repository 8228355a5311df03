from __future__ import annotations

import pytest
import torch

from fednas_core.base.values import Cost, region_shape
from fednas_core.spaces.layers import CHANNELS_PER_GROUP, Conv, Linear, Norm, cost_of, first, plan_of
from fednas_core.spaces.layers.norm import group_norm

LAYERS = (Conv("a", 3, 8, 3, 2, 5), Norm("n", 8, "group"), Linear("h", 8, 4))


def test_cost_and_plan_come_from_the_same_layers() -> None:
    plan = plan_of(LAYERS)
    assert {name: region_shape(region) for name, region in plan.items()} == {
        "a.weight": (8, 3, 3, 3), "n.weight": (8,), "n.bias": (8,), "h.weight": (4, 8), "h.bias": (4,),
    }  # fmt: skip
    params = 8 * 27 + 16 + 36
    assert cost_of(LAYERS) == Cost(8 * 27 * 25 + 32, params, 4 * params)
    assert cost_of(()) == Cost(0, 0, 0) and first(3) == slice(0, 3)


@pytest.mark.parametrize(("kind", "tensors"), [("none", 0), ("group", 2), ("batch", 2)])
def test_norms_are_free_and_none_has_no_tensors(kind: str, tensors: int) -> None:
    norm = Norm("n", 16, kind)  # type: ignore[arg-type]
    assert norm.macs == 0 and len(norm.regions()) == tensors


def test_a_narrower_group_norm_is_a_part_of_the_wider_one() -> None:
    torch.manual_seed(1)
    wide, narrow = group_norm()(4, 4 * CHANNELS_PER_GROUP), group_norm()(2, 2 * CHANNELS_PER_GROUP)
    x = torch.randn(3, 32, 5, 5)
    torch.testing.assert_close(wide(x)[:, :16], narrow(x[:, :16]))


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_group_norm_computes_in_float32_whatever_comes(weights: torch.dtype) -> None:
    norm = group_norm()(2, 16).to(weights)
    x = (100 + torch.randn(2, 16, 4, 4)).bfloat16()
    exact = torch.nn.functional.group_norm(x.float(), 2)
    found = norm(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=0.01, atol=0.01)
