"""Batch norm folds into the convolutions of mobile networks, kernel transforms and all."""

from __future__ import annotations

import pytest
import torch
from contracts.mobile import toy_mobile
from torch import nn

from fednas_core.spaces.layers.depthwise import depthwise_conv
from fednas_core.spaces.mobilenet import MobileNetSpace
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.networks import calibrate, subnet
from fednas_core.training.evaluate import evaluate, folded

SPACES = {
    "plain": toy_mobile(norm="batch"),
    "transforms": toy_mobile(norm="batch", transforms=True),
    "projection": toy_mobile(norm="batch", shortcuts="projection"),
    "tail": toy_mobile(norm="batch", tail=(32, 40)),
}


def images(n: int = 40) -> torch.Tensor:
    return torch.randn(n, 2, 9, 9, generator=torch.Generator().manual_seed(4))


def calibrated(space: MobileNetSpace, smallest: bool) -> nn.Module:
    """A network whose norms and transforms do something, calibrated on other images."""
    supernet, generator = initial_weights(space, 2), torch.Generator().manual_seed(3)
    for tensor in supernet.values():
        tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
    module = subnet(space, space.smallest if smallest else space.largest, supernet)
    calibrate(module, [2 * images() + 1])
    return module.eval()


@pytest.mark.parametrize("smallest", [False, True], ids=["largest", "smallest"])
@pytest.mark.parametrize("name", SPACES)
def test_folding_changes_nothing_but_speed(name: str, smallest: bool) -> None:
    module = calibrated(SPACES[name], smallest)
    network = folded(module)
    assert not any(isinstance(child, nn.BatchNorm2d) for child in network.modules())
    depthwise = [child for child in network.modules() if isinstance(child, depthwise_conv())]
    assert depthwise and all(layer.bias is not None for layer in depthwise)
    wanted = module(images())
    assert wanted.std() > 0.01
    torch.testing.assert_close(network(images()), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("norm", ["batch", "group", "parametric", "parametric-sample"])
def test_mobile_networks_are_evaluated_in_either_precision(norm: str, precision: str) -> None:
    space, y = toy_mobile(norm=norm, transforms=True), torch.arange(40) % 3
    module = calibrated(space, smallest=True)
    logits = module(images()).detach()
    found = evaluate(module, [(images(), y)], precision)
    exact = float(nn.functional.cross_entropy(logits, y))
    assert found.loss == pytest.approx(exact, rel=1e-3 if precision == "fp32" else 0.1)
