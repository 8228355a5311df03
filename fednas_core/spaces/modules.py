"""The networks that descriptions turn into. Only this file and `sorting` need torch: cost and search do without it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from fednas_core.base.errors import DataError
from fednas_core.spaces.layers import centre

if TYPE_CHECKING:
    from fednas_core.base.values import Arch
    from fednas_core.spaces.chainspec import ChainSpec, UnitSpec
    from fednas_core.spaces.layers import Depthwise, Layer, Make, SqueezeExcite
    from fednas_core.spaces.mobilespec import MobileBlockSpec, MobileNetSpec
    from fednas_core.spaces.resnet import BlockSpec, ResNetSpec
    from fednas_core.spaces.space import SearchSpace

EPSILON = 1e-8
"""What parametric normalisation adds to the root mean square."""
NO_SPREAD = 1e-30
"""Mean square up to which a channel counts as equal to α everywhere."""
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"relu": functional.relu, "h-swish": functional.hardswish}
"""Activation functions by name: ReLU, and h-swish of MobileNetV3 (arXiv 1905.02244)."""


# -- layers --------------------------------------------------------------------------------------------------------


class GroupNorm(nn.GroupNorm):
    """Group normalisation computed in float32: under bf16 torch's own backward pass is four times slower on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, s, s) to the same shape and dtype."""
        weight, bias = self.weight.float(), self.bias.float()
        return functional.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that says what to do where a batch has no statistics: a single value a channel."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, s, s) to the same shape and dtype; `DataError` for one image of one pixel in training."""
        if self.training and x.numel() == x.shape[1]:
            raise DataError(
                "batch normalisation has nothing to go by: a batch of a single image, of which the last feature maps "
                "have a single pixel. Give the client two images or more, or set space.norm = 'group'"
            )
        return super().forward(x)


class ParametricNorm(nn.Module):
    """FedSup's parametric normalisation (arXiv 2206.01366): learned α for the mean, no running statistics.

    ``x̂ = (x − α)/(RMS(x − α) + ε)``, ``y = γ·x̂ + β`` with γ = `weight`, β = `bias`, α = `alpha`, one a channel. RMS is
    over batch and space as published, so that an output depends on its batch; or, `per_sample`, over the space of each
    image, where it does not. Over a single pixel x̂ is the sign of x − α and hardly anything can be learned: spaces
    refuse ``parametric-sample`` where maps are that small, and a batch of one image is one in both kinds.

    A channel that equals α everywhere, e.g. one that no unit before it activates, gives β and passes no gradient to x
    and α: by the formula that would be 10⁸ times the gradient of y.
    """

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


def _parametric(
    x: Tensor, weight: Tensor, bias: Tensor, alpha: Tensor, dims: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the root mean square and its inverse (plus ε; 0 without spread), of sizes 1 along `dims`."""
    centred = x.float() - _channels(alpha)
    square = centred.square().mean(dims, keepdim=True)
    rms = square.clamp_min(NO_SPREAD).sqrt()
    inverse = torch.where(square > NO_SPREAD, 1 / (rms + EPSILON), 0.0)
    return torch.addcmul(_channels(bias), centred, _channels(weight) * inverse).to(x.dtype), rms, inverse


class _Parametric(torch.autograd.Function):
    """`_parametric` with a backward pass of its own: 1.6 to 2.6 times faster on a CPU than what autograd derives."""

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


def _channels(vector: Tensor) -> Tensor:
    """(channels,) to float32 (channels, 1, 1)."""
    return vector.float().view(-1, 1, 1)


class DepthwiseConv(nn.Conv2d):
    """A depthwise convolution, whose kernel learned matrices may compute from a larger one (see `Depthwise`).

    It computes in its weights' own precision: on a CPU the backward pass of kernels above 3×3 takes up to three and a
    half times as long under bf16 as in float32.
    """

    def __init__(self, layer: Depthwise) -> None:
        c, k = layer.channels, layer.kernel
        super().__init__(c, c, layer.owned, layer.stride, k // 2, groups=c, bias=False)
        self.kernel_size = (k, k)
        self.steps = layer.steps
        for size in layer.matrices:
            self.register_parameter(f"transform{size}", nn.Parameter(torch.eye(size * size)))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, s, s) to (batch, channels, ⌈s/stride⌉, ⌈s/stride⌉)."""
        device = x.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self._convolved(x.to(self.weight.dtype))
        return self._convolved(x)

    def _convolved(self, x: Tensor) -> Tensor:
        kernel = self.weight
        for size in self.steps:
            part, matrix = centre(size, kernel.shape[-1]), getattr(self, f"transform{size}")
            # products of copies: their last bits depend on where in memory a tensor, or the view of one, begins
            flat = functional.linear(kernel[:, :, part, part].flatten(1).clone(), matrix.clone())
            kernel = flat.view(-1, 1, size, size)
        return functional.conv2d(x, kernel, self.bias, self.stride, self.padding, groups=self.groups)


class SqueezeExcitation(nn.Module):
    """Multiplies each channel by a gate: mean, fully connected, ReLU, fully connected, hard sigmoid (MobileNetV3)."""

    def __init__(self, layer: SqueezeExcite) -> None:
        super().__init__()
        self.reduce, self.expand = (part.module() for part in layer.parts)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, s, s) to the same shape."""
        gates = functional.hardsigmoid(self.expand(functional.relu(self.reduce(x.mean((2, 3))))))
        return x * gates[:, :, None, None]


# -- networks ------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """conv–norm–ReLU–conv–norm plus shortcut, then ReLU; a strided shortcut averages before it projects."""

    def __init__(self, spec: BlockSpec, make: Make) -> None:
        super().__init__()
        self.stride = spec.conv1.stride
        self.conv1, self.norm1 = make(spec.conv1), make(spec.norm1)
        self.conv2, self.norm2 = make(spec.conv2), make(spec.norm2)
        self.shortcut = make(spec.shortcut) if spec.shortcut else nn.Identity()
        self.shortcut_norm = make(spec.shortcut_norm) if spec.shortcut_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, c_in, s, s) to (batch, c_out, ⌈s/stride⌉, ⌈s/stride⌉)."""
        y = functional.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.stride > 1:
            x = functional.avg_pool2d(x, self.stride, ceil_mode=True)
        return functional.relu(y + self.shortcut_norm(self.shortcut(x)))


class ResNet(nn.Module):
    """A static network of the space: tensor names are the supernet's."""

    def __init__(self, spec: ResNetSpec, make: Make) -> None:
        super().__init__()
        self.stem, self.stem_norm = make(spec.stem), make(spec.stem_norm)
        self.stages = nn.ModuleList(nn.Sequential(*(Block(block, make) for block in blocks)) for blocks in spec.stages)
        self.head = make(spec.head)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, size, size) to logits (batch, classes)."""
        x = functional.relu(self.stem_norm(self.stem(x)))
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class MobileBlock(nn.Module):
    """An inverted residual block (see `fednas_core.spaces.mobilenet`); a strided shortcut averages first."""

    def __init__(self, spec: MobileBlockSpec, make: Make) -> None:
        super().__init__()
        self.expands, self.adds = spec.expand is not None, spec.adds
        self.stride, self.act = spec.depthwise.stride, ACTIVATIONS[spec.activation]
        if spec.expand and spec.expand_norm:
            self.expand, self.expand_norm = make(spec.expand), make(spec.expand_norm)
        self.depthwise, self.depthwise_norm = make(spec.depthwise), make(spec.depthwise_norm)
        self.squeeze = make(spec.squeeze) if spec.squeeze else nn.Identity()
        self.project, self.project_norm = make(spec.project), make(spec.project_norm)
        self.shortcut = make(spec.shortcut) if spec.shortcut else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, c_in, s, s) to (batch, c_out, ⌈s/stride⌉, ⌈s/stride⌉)."""
        y = self.act(self.expand_norm(self.expand(x))) if self.expands else x
        y = self.squeeze(self.act(self.depthwise_norm(self.depthwise(y))))
        y = self.project_norm(self.project(y))
        if not self.adds:
            return y  # type: ignore[no-any-return]
        if self.stride > 1:
            x = functional.avg_pool2d(x, self.stride, ceil_mode=True)
        return y + self.shortcut(x)  # type: ignore[no-any-return]


class MobileNet(nn.Module):
    """A static network of the space: tensor names are the supernet's. It brings images to its resolution itself."""

    def __init__(self, spec: MobileNetSpec, make: Make) -> None:
        super().__init__()
        self.resolution, self.act = spec.resolution, ACTIVATIONS[spec.activation]
        self.stem, self.stem_norm = make(spec.stem), make(spec.stem_norm)
        self.stages = nn.ModuleList(
            nn.Sequential(*(MobileBlock(block, make) for block in blocks)) for blocks in spec.stages
        )
        self.has_tail = spec.tail is not None
        if spec.tail and spec.tail_norm and spec.mix:
            self.tail, self.tail_norm, self.mix = make(spec.tail), make(spec.tail_norm), make(spec.mix)
        self.head = make(spec.head)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, size, size) to logits (batch, classes)."""
        if x.shape[-1] != self.resolution:
            x = functional.interpolate(x, (self.resolution, self.resolution), mode="bilinear", align_corners=False)
        x = self.act(self.stem_norm(self.stem(x)))
        for stage in self.stages:
            x = stage(x)
        if self.has_tail:
            x = self.act(self.tail_norm(self.tail(x)))
        x = x.mean((2, 3))
        if self.has_tail:
            x = self.act(self.mix(x))
        logits: Tensor = self.head(x)
        return logits


class ChainUnit(nn.Module):
    """A unit of a chain (see `fednas_core.spaces.chainspec`); a strided shortcut averages first."""

    def __init__(self, spec: UnitSpec, make: Make) -> None:
        super().__init__()
        self.adds, self.stride, self.pools = spec.adds, spec.stride, spec.pool
        self.steps = [(_part(layer), _part(norm)) for layer, norm in spec.steps]
        for layer in itertools.chain(*spec.steps):
            self.add_module(_part(layer), make(layer))
        self.shortcut = make(spec.shortcut[0]) if spec.shortcut else nn.Identity()
        self.shortcut_norm = make(spec.shortcut[1]) if spec.shortcut else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, c_in, s, s) to (batch, c_out, ⌈s/stride⌉, ⌈s/stride⌉), halved once more by pooling."""
        y = x
        for number, (layer, norm) in enumerate(self.steps, start=1):
            y = getattr(self, norm)(getattr(self, layer)(y))
            if not self.adds or number < len(self.steps):
                y = functional.relu(y)
        if self.adds:
            if self.stride > 1:
                x = functional.avg_pool2d(x, self.stride, ceil_mode=True)
            x = self.shortcut_norm(self.shortcut(x))
            y = functional.relu(y + x if self.steps else x)
        return functional.max_pool2d(y, 2, ceil_mode=True) if self.pools else y


def _part(layer: Layer) -> str:
    """Return the name of a layer within its block."""
    return layer.name.rpartition(".")[2]


class Chain(nn.Module):
    """A static network of the space: tensor names are the supernet's. Units without layers hand on what they get."""

    def __init__(self, spec: ChainSpec, make: Make) -> None:
        super().__init__()
        self.units = nn.Sequential(*(ChainUnit(unit, make) for unit in spec.units))
        self.head = make(spec.head)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, size, size) to logits (batch, classes)."""
        logits: Tensor = self.head(self.units(x).mean((2, 3)))
        return logits


def initial_weights(space: SearchSpace, seed: int, arch: Arch | None = None) -> dict[str, Tensor]:
    """Return the tensors of a network, of the supernet if none is named, at initial values drawn from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parameters = dict(space.build(arch or space.largest).named_parameters())
    return {name: parameter.detach() for name, parameter in parameters.items()}
