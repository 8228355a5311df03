"""Parametric normalisation: the formula in NumPy, its gradient, and where it has nothing to go by."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from contracts.samples import toy_space
from torch import Tensor

from fednas_core.base.errors import ConfigError
from fednas_core.spaces.layers import Norm
from fednas_core.spaces.layers.norm import parametric_norm

BOTH = pytest.mark.parametrize("per_sample", [False, True], ids=["batch", "sample"])


def made(channels: int, per_sample: bool) -> Any:
    """A norm with random vectors."""
    norm, generator = parametric_norm()(channels, per_sample), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(channels, generator=generator))
    return norm


def formula(x: np.ndarray, norm: Any, per_sample: bool) -> np.ndarray:
    """``γ·(x − α)/(RMS(x − α) + 1e-8) + β`` in float64."""
    gamma, beta, alpha = (v.detach().double().numpy()[:, None, None] for v in (norm.weight, norm.bias, norm.alpha))
    centred = x.astype(np.float64) - alpha
    rms = np.sqrt((centred**2).mean((2, 3) if per_sample else (0, 2, 3), keepdims=True))
    return gamma * centred / (rms + 1e-8) + beta  # type: ignore[no-any-return]


@BOTH
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("recorded", [False, True])
def test_the_formula(per_sample: bool, batch: int, recorded: bool) -> None:
    norm, x = made(6, per_sample), 2 + 3 * torch.randn(batch, 6, 4, 3)
    with torch.set_grad_enabled(recorded):
        y = norm(x.to(memory_format=torch.channels_last))
    assert y.shape == x.shape and y.requires_grad == recorded
    np.testing.assert_allclose(y.detach().numpy(), formula(x.numpy(), norm, per_sample), rtol=1e-4, atol=1e-5)


@BOTH
@pytest.mark.parametrize("batch", [1, 5])
def test_gradients_are_those_that_autograd_derives_from_the_formula(per_sample: bool, batch: int) -> None:
    norm = made(6, per_sample)
    x, grad = torch.randn(batch, 6, 4, 3, requires_grad=True), torch.randn(batch, 6, 4, 3)
    found = torch.autograd.grad(norm(x), [x, norm.weight, norm.bias, norm.alpha], grad)
    exact = [t.detach().double().requires_grad_() for t in (x, norm.weight, norm.bias, norm.alpha)]
    centred = exact[0] - exact[3].view(-1, 1, 1)
    rms = centred.square().mean((2, 3) if per_sample else (0, 2, 3), keepdim=True).sqrt()
    y = exact[1].view(-1, 1, 1) * centred / (rms + 1e-8) + exact[2].view(-1, 1, 1)
    wanted = torch.autograd.grad(y, exact, grad.double())
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)


@BOTH
def test_a_channel_that_equals_alpha_everywhere_passes_no_gradient(per_sample: bool) -> None:
    norm = made(6, per_sample)
    x = torch.randn(3, 6, 4, 4)
    x[:, 2] = norm.alpha.detach()[2]
    x.requires_grad_()
    y = norm(x)
    y.square().sum().backward()
    assert torch.equal(y[:, 2], norm.bias[2].expand(3, 4, 4))
    assert x.grad is not None and not x.grad[:, 2].any() and x.grad[:, 1].any()
    assert norm.alpha.grad is not None and norm.alpha.grad[2] == 0 and norm.alpha.grad[1] != 0
    assert norm.bias.grad is not None and norm.bias.grad[2] != 0
    assert all(torch.isfinite(p.grad).all() for p in (x, *norm.parameters()) if p.grad is not None)
    with torch.no_grad():
        assert torch.equal(norm(x), y)


def test_outputs_depend_on_the_batch_or_not() -> None:
    x = torch.randn(4, 6, 5, 5) * torch.tensor([1.0, 2.0, 3.0, 4.0]).view(-1, 1, 1, 1)
    batch, sample = made(6, False), made(6, True)
    assert not torch.allclose(batch(x)[:1], batch(x[:1]), atol=0.1)
    torch.testing.assert_close(sample(x)[:1], sample(x[:1]))
    torch.testing.assert_close(sample(x[:1]), batch(x[:1]), msg="of one image both are the same")


@BOTH
def test_a_narrower_one_is_a_part_of_the_wider_one(per_sample: bool) -> None:
    wide, narrow, x = made(6, per_sample), parametric_norm()(4, per_sample), torch.randn(3, 6, 5, 5)
    narrow.load_state_dict({name: tensor[:4] for name, tensor in wide.state_dict().items()})
    torch.testing.assert_close(wide(x)[:, :4], narrow(x[:, :4]))


@BOTH
def test_a_single_pixel_is_only_a_sign(per_sample: bool) -> None:
    norm, x = parametric_norm()(2, per_sample), torch.tensor([[[[3.0]], [[-0.2]]]])
    torch.testing.assert_close(norm(x), x.sign())


@BOTH
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_it_computes_in_float32_whatever_comes(per_sample: bool, weights: torch.dtype) -> None:
    norm = parametric_norm()(16, per_sample).to(weights)
    x = (100 + torch.randn(2, 16, 4, 4)).bfloat16().requires_grad_()
    found = norm(x)
    found.sum().backward()
    assert found.dtype == torch.bfloat16 and x.grad is not None and x.grad.dtype == torch.bfloat16
    exact = formula(x.detach().float().numpy(), norm.float(), per_sample)
    torch.testing.assert_close(found.detach().double(), torch.from_numpy(exact), rtol=0.01, atol=0.01)


def test_second_derivatives_are_refused_rather_than_wrong() -> None:
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(parametric_norm()(3, False)(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("kind", ["parametric", "parametric-sample"])
def test_the_layer_has_three_vectors_a_channel(kind: str) -> None:
    norm = Norm("n", 16, kind)  # type: ignore[arg-type]
    module: dict[str, Tensor] = dict(norm.module().named_parameters())
    assert norm.macs == 0 and list(norm.regions()) == ["n.weight", "n.bias", "n.alpha"]
    assert {name: tuple(p.shape) for name, p in module.items()} == dict.fromkeys(("weight", "bias", "alpha"), (16,))
    assert module["weight"].eq(1).all() and not module["bias"].any() and not module["alpha"].any()


def test_maps_of_a_single_pixel_are_refused_for_one_image_alone() -> None:
    space = toy_space(image_size=2).with_norm("parametric")
    with pytest.raises(ConfigError, match=r"'toy'.*parametric-sample.*images of 2 pixels.*single one.*larger images"):
        space.with_norm("parametric-sample")
    assert toy_space(image_size=3).with_norm("parametric-sample").norm == "parametric-sample"
