"""Training inside a supernet: the sandwich rule with in-place distillation.

For every batch the largest network learns the labels, and random networks and the smallest one, which share its
weights, learn what it says; the gradients of all add up to one step (Yu and Huang, ICCV 2019; on clients: FedSup,
arXiv 2206.01366, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from fednas_core.base.values import Arch, Plan, Region
from fednas_core.spaces.layers import Layer
from fednas_core.spaces.space import Space
from fednas_core.subnets.networks import network
from fednas_core.subnets.packing import nested
from fednas_core.training.loop import Batch, Outcome, autocast, descend
from fednas_core.training.settings import TrainSettings

Draw = Callable[[], Sequence[Arch]]
"""A way to draw the networks that a batch trains besides the largest: random ones, then the smallest."""

READY = 4
"""Subnets that are kept ready: the smallest comes back with every batch; of random ones only their layers do."""


class Sandwich:
    """A network and its subnets, which share its weights and train in each step together.

    `largest` is the network of `arch`, holding a copy of `tensors`, which are all that it has, private ones included.
    Every architecture that is drawn must lie within `arch`. With `distill` the subnets learn what the largest says,
    else the labels. Without `ends` the largest is trained only where it is drawn: plain random subnets.
    """

    def __init__(
        self,
        space: Space,
        arch: Arch,
        tensors: Mapping[str, Tensor],
        device: torch.device | str = "cpu",
        distill: bool = True,
        ends: bool = True,
    ) -> None:
        self.largest = network(space, arch, tensors, device).train()
        self.forward_macs = 0
        """MACs of the forward passes so far, of all networks and images."""
        self._space, self._arch, self._distill, self._ends = space, arch, distill and ends, ends
        self._parameters = dict(self.largest.named_parameters())
        layers = _Layers(self._parameters, space.whole(arch))
        self._subnet = lru_cache(maxsize=READY)(partial(space.build, make=layers))

    def train(
        self,
        epochs: Iterable[Iterable[Batch]],
        draw: Draw,
        settings: TrainSettings,
        precision: str = "fp32",
        until: float = float("inf"),
    ) -> Outcome:
        """Train over `epochs` of batches, each with networks freshly drawn; return what the largest saw.

        Without `ends` it is what the first network drawn saw. See `fednas_core.training.loop.train` for `until`.
        """

        def gradients(x: Tensor, y: Tensor) -> Tensor:
            return self.gradients((x, y), draw(), precision, settings.label_smoothing)

        return descend(list(self._parameters.values()), gradients, epochs, settings, until)

    def gradients(
        self, batch: Batch, archs: Iterable[Arch], precision: str = "fp32", label_smoothing: float = 0.0
    ) -> Tensor:
        """Leave the sum of all gradients in the largest network's parameters, which have none yet.

        Returns the logits of the first, the largest. A network that is drawn twice is trained once. The
        divergence KL(softmax(z_max) ‖ softmax(z_sub)) is cross-entropy to soft labels, less a constant; z_max counts
        as given: no gradient flows to it.
        """
        x, y = batch
        soft: Tensor | None = None
        seen: Tensor | None = None
        for arch in dict.fromkeys([self._arch, *archs] if self._ends else archs):
            subnet = self.largest if arch == self._arch else self._subnet(arch)
            with autocast(x.device, precision):
                logits = subnet(x).float()
            if soft is None:
                loss = functional.cross_entropy(logits, y, label_smoothing=label_smoothing)
            else:
                loss = functional.cross_entropy(logits, soft)
            loss.backward()  # type: ignore[no-untyped-call]
            self.forward_macs += len(y) * sum(layer.macs for layer in self._space.layers(arch))
            seen = logits.detach() if seen is None else seen
            if self._distill and soft is None:
                soft = seen.softmax(1)
        assert seen is not None
        return seen


class _Layers:
    """Makes layers whose parameters are regions of a network's, given with its plan; equal layers are one module."""

    def __init__(self, parameters: Mapping[str, Tensor], plan: Plan) -> None:
        self._parameters, self._plan = parameters, plan
        self._made: dict[Layer, nn.Module] = {}

    def __call__(self, layer: Layer) -> nn.Module:
        if layer not in self._made:
            self._made[layer] = self._new(layer)
        return self._made[layer]

    def _new(self, layer: Layer) -> nn.Module:
        with torch.device("meta"):
            module = layer.module()
        for name, region in nested(layer.regions(), self._plan).items():
            part = nn.Parameter(self._parameters[name].detach()[region])
            hook = _hand_over(self._parameters[name], region)
            part.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
            parent, _, key = name.removeprefix(f"{layer.name}.").rpartition(".")
            setattr(module.get_submodule(parent), key, part)
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False  # of a network that is never used by itself
        return module


def _hand_over(outer: Tensor, region: Region) -> Callable[[Tensor], None]:
    """Return a hook that adds a parameter's new gradient to that of the tensor it is a region of."""

    def add(part: Tensor) -> None:
        if outer.grad is None:
            outer.grad = torch.zeros_like(outer)
        gradient, part.grad = part.grad, None
        assert gradient is not None
        outer.grad[region].add_(gradient)

    return add
