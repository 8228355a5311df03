"""Depthwise convolutions, whose kernel may be computed from a larger one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from fednas_core.base.values import Region
from fednas_core.spaces.layers.base import Charge, Layer, centre, first

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Depthwise(Layer):
    """A k×k convolution of each channel by itself, without bias, "same" padding, output of `size` × `size` pixels.

    Its kernel is the centre of the largest of `kernels`, the choices in rising order. With `transforms` (once-for-all,
    ICLR 2020, section 3.2) it is the centre multiplied by a learned k²×k² matrix, step by step: 7 to 5, 5 to 3. Such a
    layer owns the centre of the second largest size and the matrices of the steps it takes; the layer of the largest
    kernel takes none, but owns them all, because the largest network is the supernet.
    """

    name: str
    channels: int
    kernel: int
    stride: int
    size: int
    kernels: tuple[int, ...]
    transforms: bool = False

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image; those of the transforms do not depend on it and are not counted."""
        return self.channels * self.kernel**2 * self.size**2

    @property
    def outputs(self) -> int:
        """See `Layer.outputs`."""
        return self.channels * self.size**2

    @property
    def charges(self) -> tuple[Charge, ...]:
        """By layer and multiply-accumulate of its kind, each of which takes longer, and by value put out."""
        return (
            ("depthwise layers", self.size, 1),
            ("depthwise macs", self.size, self.macs),
            ("activations", self.size, self.outputs),
        )

    @property
    def steps(self) -> tuple[int, ...]:
        """Kernel sizes that the transforms lead to, in falling order down to `kernel`; none if that is the largest."""
        return tuple(k for k in self.kernels[-2::-1] if k >= self.kernel) if self.transforms else ()

    @property
    def matrices(self) -> tuple[int, ...]:
        """Kernel sizes of which the layer owns the matrix, in falling order."""
        return self.kernels[-2::-1] if self.transforms and self.kernel == self.kernels[-1] else self.steps

    @property
    def owned(self) -> int:
        """Height and width of the weight that the layer owns."""
        return self.steps[0] if self.steps else self.kernel

    def regions(self) -> dict[str, Region]:
        """Return the regions of ``weight``, shape (channels, 1, owned, owned), and of ``transform<k>``, (k², k²)."""
        side = centre(self.owned, self.kernels[-1])
        found: dict[str, Region] = {f"{self.name}.weight": (first(self.channels), first(1), side, side)}
        return found | {f"{self.name}.transform{k}": (first(k * k), first(k * k)) for k in self.matrices}

    def module(self) -> nn.Module:
        """Return the layer's module."""
        return depthwise_conv()(self)


@cache
def depthwise_conv() -> type[nn.Module]:
    """Return the class of its modules, which compute in their weights' own precision.

    On a CPU the backward pass of kernels above 3×3 takes up to three and a half times as long under bf16 as in float32.
    """
    import torch
    from torch import Tensor, nn
    from torch.nn import functional

    class DepthwiseConv(nn.Conv2d):
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

    return DepthwiseConv
