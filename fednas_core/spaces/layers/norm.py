"""Normalisation: none, over groups of channels, over batches, or FedSup's parametric one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, get_args

from fednas_core.base.errors import DataError
from fednas_core.base.values import NormKind, Region
from fednas_core.spaces.layers.base import Layer, first

if TYPE_CHECKING:
    from torch import Tensor, nn

NORMS: tuple[NormKind, ...] = get_args(NormKind)
CHANNELS_PER_GROUP = 8
"""Channels of one normalisation group: a divisor of every width, so that a slice cuts between groups, never in one."""
VECTORS: Mapping[NormKind, tuple[str, ...]] = {
    "none": (),
    "group": ("weight", "bias"),
    "batch": ("weight", "bias"),
    "parametric": ("weight", "bias", "alpha"),
    "parametric-sample": ("weight", "bias", "alpha"),
}
"""The trained vectors of each kind of normalisation, one value a channel."""
EPSILON = 1e-8
"""What parametric normalisation adds to the root mean square."""
NO_SPREAD = 1e-30
"""Mean square up to which a channel counts as equal to α everywhere."""


@dataclass(frozen=True, slots=True)
class Norm(Layer):
    """A normalisation of `channels` channels: none, group (8 channels a group), batch or parametric.

    A `silent` one starts with γ = 0, so that the block it ends starts as its shortcut.
    """

    name: str
    channels: int
    kind: NormKind
    silent: bool = False

    def regions(self) -> dict[str, Region]:
        """Return the regions of its vectors, each of shape (channels,)."""
        return {f"{self.name}.{vector}": (first(self.channels),) for vector in VECTORS[self.kind]}

    def module(self) -> nn.Module:
        """Return the layer's module; batch statistics are buffers of the extracted network, not of the supernet."""
        from torch import nn

        module = self._norm()
        gamma = getattr(module, "weight", None)
        if self.silent and gamma is not None:
            nn.init.zeros_(gamma)
        return module

    def _norm(self) -> nn.Module:
        from torch import nn

        if self.kind == "group":
            return group_norm()(self.channels // CHANNELS_PER_GROUP, self.channels)
        if self.kind == "batch":
            return batch_norm()(self.channels)
        if self.kind in ("parametric", "parametric-sample"):
            return parametric_norm()(self.channels, per_sample=self.kind == "parametric-sample")
        return nn.Identity()


@cache
def group_norm() -> type[nn.GroupNorm]:
    """Return the class that computes in float32: under bf16 torch's own backward pass is four times slower on a CPU."""
    from torch import nn
    from torch.nn import functional

    class GroupNorm(nn.GroupNorm):
        def forward(self, x: Tensor) -> Tensor:
            """(batch, channels, s, s) to the same shape and dtype."""
            weight, bias = self.weight.float(), self.bias.float()
            return functional.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)

    return GroupNorm


@cache
def batch_norm() -> type[nn.BatchNorm2d]:
    """Return the class that says what to do where a batch has no statistics: a single value a channel."""
    from torch import nn

    class BatchNorm(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            """(batch, channels, s, s) to the same shape and dtype; `DataError` for a pixel of one image in training."""
            if self.training and x.numel() == x.shape[1]:
                raise DataError(
                    "batch normalisation has nothing to go by: a batch of a single image, of which the last feature "
                    "maps have a single pixel. Give the client two images or more, or set space.norm = 'group'"
                )
            return super().forward(x)

    return BatchNorm


@cache
def parametric_norm() -> type[nn.Module]:
    """Return the class of FedSup's normalisation (arXiv 2206.01366): learned α for the mean, no running statistics.

    ``x̂ = (x − α)/(RMS(x − α) + ε)``, ``y = γ·x̂ + β`` with γ = `weight`, β = `bias`, α = `alpha`, one a channel. RMS is
    over batch and space as published, so that an output depends on its batch; or, `per_sample`, over the space of each
    image, where it does not. Over a single pixel x̂ is the sign of x − α and hardly anything can be learned: spaces
    refuse ``parametric-sample`` where maps are that small, and a batch of one image is one in both kinds.

    A channel that equals α everywhere, e.g. one that no unit before it activates, gives β and passes no gradient to x
    and α: by the formula that would be 10⁸ times the gradient of y.
    """
    import torch
    from torch import nn
    from torch.autograd.function import once_differentiable

    class _Parametric(torch.autograd.Function):
        """`_parametric` with a backward pass of its own: on a CPU 1.6 to 2.6 times as fast as autograd's."""

        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, alpha: Tensor, dims: tuple[int, ...]) -> Tensor:
            """(batch, channels, s, s) to the same shape; `dims` are those over which the mean square is taken."""
            y, rms, inverse = _parametric(x, weight, bias, alpha, dims)
            ctx.save_for_backward(x, weight, alpha, rms, inverse)
            ctx.dims = dims
            return y

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
            """Gradients of x, weight, bias and alpha, given that of y, (batch, channels, s, s)."""
            x, weight, alpha, rms, inverse = ctx.saved_tensors
            grad, centred = grad.float(), x.float() - _channels(alpha)
            sums = grad.sum(ctx.dims, keepdim=True)
            products = (grad * centred).sum(ctx.dims, keepdim=True)
            scale = _channels(weight) * inverse
            share = scale * inverse * products / (rms * (x.numel() // rms.numel()))
            grad_x = torch.addcmul(-share * centred, grad, scale)
            grad_alpha = -grad_x.sum((0, 2, 3))
            per_channel = ((products * inverse).sum((0, 2, 3)), sums.sum((0, 2, 3)))
            return (grad_x.to(x.dtype), *per_channel, grad_alpha, None)

    class ParametricNorm(nn.Module):
        def __init__(self, channels: int, per_sample: bool) -> None:
            super().__init__()
            self.dims = (2, 3) if per_sample else (0, 2, 3)
            self.weight = nn.Parameter(torch.ones(channels))
            self.bias = nn.Parameter(torch.zeros(channels))
            self.alpha = nn.Parameter(torch.zeros(channels))

        def forward(self, x: Tensor) -> Tensor:
            """(batch, channels, s, s) to the same shape and dtype; computed in float32."""
            if torch.is_grad_enabled():
                y: Tensor = _Parametric.apply(x, self.weight, self.bias, self.alpha, self.dims)
                return y
            return _parametric(x, self.weight, self.bias, self.alpha, self.dims)[0]

    return ParametricNorm


def _parametric(
    x: Tensor, weight: Tensor, bias: Tensor, alpha: Tensor, dims: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the root mean square and its inverse (plus ε; 0 without spread), of sizes 1 along `dims`."""
    import torch

    centred = x.float() - _channels(alpha)
    square = centred.square().mean(dims, keepdim=True)
    rms = square.clamp_min(NO_SPREAD).sqrt()
    inverse = torch.where(square > NO_SPREAD, 1 / (rms + EPSILON), 0.0)
    return torch.addcmul(_channels(bias), centred, _channels(weight) * inverse).to(x.dtype), rms, inverse


def _channels(vector: Tensor) -> Tensor:
    """(channels,) to float32 (channels, 1, 1)."""
    return vector.float().view(-1, 1, 1)
