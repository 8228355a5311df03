from __future__ import annotations

import pytest
import torch
from contracts.samples import toy_space
from torch import nn

from fednas_core.base.errors import DataError
from fednas_core.spaces.networks import initial_weights
from fednas_core.subnets.networks import calibrate, subnet
from fednas_core.training.evaluate import EVAL_BATCH, evaluate, folded


def images(n: int = 40) -> torch.Tensor:
    return torch.randn(n, 2, 6, 6, generator=torch.Generator().manual_seed(4))


def calibrated(norm: str) -> nn.Module:
    """A network whose norms do something: random affine parameters and statistics of other images."""
    space = toy_space(norm=norm)
    module = subnet(space, space.largest, initial_weights(space, 2))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name:
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    calibrate(module, [2 * images() + 1])
    return module.eval()


@pytest.mark.parametrize("norm", ["none", "group", "batch"])
def test_folding_changes_nothing_but_speed(norm: str) -> None:
    module = calibrated(norm)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    network = folded(module)
    torch.testing.assert_close(network(images()), module(images()), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_folding_leaves_no_batch_norm() -> None:
    network = folded(calibrated("batch"))
    assert not any(isinstance(child, nn.BatchNorm2d) for child in network.modules())
    assert all(child.bias is not None for child in network.modules() if isinstance(child, nn.Conv2d))


@pytest.mark.parametrize("norm", ["none", "group", "batch"])
def test_evaluation_by_hand(norm: str) -> None:
    module, x = calibrated(norm), images()
    y = torch.arange(40) % 3
    found = evaluate(module, [(x[:EVAL_BATCH], y[:EVAL_BATCH]), (x[EVAL_BATCH:], y[EVAL_BATCH:])])
    logits = module(x).detach()
    assert found.images == 40
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(logits, y)), rel=1e-3)
    assert found.accuracy == pytest.approx(float((logits.argmax(1) == y).float().mean()))


def test_bf16_evaluates_a_copy() -> None:
    module, x, y = calibrated("group"), images(), torch.arange(40) % 3
    exact, rounded = evaluate(module, [(x, y)]), evaluate(module, [(x, y)], "bf16")
    assert exact.loss != rounded.loss and exact.loss == pytest.approx(rounded.loss, rel=0.05)
    assert next(module.parameters()).dtype == torch.float32


def test_no_accuracy_is_true_of_no_images() -> None:
    with pytest.raises(DataError, match="evaluation: the batches hold no image, at least one is needed"):
        evaluate(calibrated("none"), [])
    read = iter([(images(), torch.arange(40) % 3)])
    evaluate(calibrated("none"), read)
    with pytest.raises(DataError, match="an iterator once read has none left"):
        evaluate(calibrated("none"), read)
