"""What a chain consists of: a unit of it, the layers of a unit, which layers share their channels, and their number."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fednas_core.spaces.capabilities import Descriptor
from fednas_core.spaces.channels import Channels
from fednas_core.spaces.layers import Conv, Depthwise, Layer, Linear, Norm, stride_at

UnitKind = Literal["conv", "separable", "residual"]


@dataclass(frozen=True)
class Unit:
    """One unit of a chain, as its table in TOML has it.

    ``conv`` is a k×k convolution, ``separable`` a depthwise and a 1×1 convolution (MobileNet-V1, arXiv 1704.04861) and
    ``residual`` two k×k convolutions and a shortcut (ResNet's basic block, arXiv 1512.03385). `filters` are the output
    channels at most, `stride` is that of the first convolution; `pool` puts 2×2 max-pooling behind the unit.
    """

    kind: UnitKind
    filters: int
    kernel: int = 3
    stride: int = 1
    pool: bool = False

    def sizes(self, size: int) -> tuple[int, int]:
        """Height (= width) of its feature maps before and behind the pooling, for an input of that size."""
        own = math.ceil(size / self.stride)
        return own, math.ceil(own / 2) if self.pool else own

    def at(self, size: int) -> Unit:
        """Return the unit as it is over feature maps of that size: stride and pooling halve no single pixel."""
        return replace(self, stride=stride_at(size, self.stride), pool=self.pool and self.sizes(size)[0] > 1)


@dataclass(frozen=True, slots=True)
class UnitSpec:
    """The layers of one unit: steps of convolution and norm, none of them if they were all removed.

    ReLU follows every step. A unit that `adds` ends in its shortcut instead, the ReLU behind the sum; the shortcut is
    an identity where it has no layers.
    """

    steps: tuple[tuple[Conv | Depthwise, Norm], ...]
    shortcut: tuple[Conv, Norm] | None
    adds: bool
    stride: int
    pool: bool

    def layers(self) -> Iterator[Layer]:
        """Yield the unit's layers in order of execution."""
        for step in self.steps:
            yield from step
        if self.shortcut is not None:
            yield from self.shortcut


@dataclass(frozen=True, slots=True)
class ChainSpec:
    """The description of one network: what `build`, `plan` and `cost` are derived from."""

    units: tuple[UnitSpec, ...]
    head: Linear

    def layers(self) -> Iterator[Layer]:
        """Yield every layer in order of execution."""
        for unit in self.units:
            yield from unit.layers()
        yield self.head

    def channels(self) -> list[Channels]:
        """Return the channels that can be put in another order; layers around a removed one share theirs."""
        found: list[Channels] = []

        def fresh() -> Channels:
            found.append(Channels("w"))
            return found[-1]

        stream = Channels("w")  # of the images, whose order is given
        for unit in self.units:
            here = after = stream
            if unit.shortcut is not None:
                stream.read.append((f"{unit.shortcut[0].name}.weight", 1))
                after = fresh()
                after.filtered(*unit.shortcut)
            for step, (layer, norm) in enumerate(unit.steps, start=1):
                if isinstance(layer, Conv):
                    here.read.append((f"{layer.name}.weight", 1))
                    here = after if unit.adds and step == len(unit.steps) else fresh()
                    here.filtered(layer, norm)
                else:
                    here.made.append((f"{layer.name}.weight", 0))
                    here.normed(norm)
            stream = after if unit.adds else here
        stream.read.append((f"{self.head.name}.weight", 1))
        return found


# -- channels that are the same ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wires:
    """The width groups that a unit's convolutions (a ``separable`` counts as one) lead from and to.

    `before` is the group of its input, None for images; `makes` has the group that each makes, and `keeps` the index
    of the gene that keeps each, None where it is never removed.
    """

    before: int | None
    makes: tuple[int, ...]
    keeps: tuple[int | None, ...]

    @property
    def identity(self) -> bool:
        """Whether the unit adds its input to its output as it is."""
        return self.makes[-1] == self.before

    def ties(self) -> Iterator[tuple[int, int, int]]:
        """Yield gene and groups on both sides of every convolution that can be removed."""
        for keep, (left, right) in zip(self.keeps, itertools.pairwise((self.before, *self.makes)), strict=True):
            if keep is not None and left is not None and right is not None:
                yield keep, left, right


@dataclass(frozen=True, slots=True)
class Wiring:
    """The genes of a chain by name: width groups, filters of each at most, what is removable, and each unit's part."""

    groups: tuple[str, ...]
    filters: tuple[int, ...]
    removable: tuple[str, ...]
    units: tuple[Wires, ...]


def wiring(units: Sequence[Unit]) -> Wiring:
    """Return the width groups of a chain and what can be removed from it.

    A residual unit of stride 1 with as many filters as the unit before it adds to the same channels, so that these are
    one group; its inner channels are a group of their own. Never removed are strided convolutions and the first layer.
    """
    groups: list[tuple[str, int]] = []
    removable: list[str] = []

    def group(name: str, filters: int) -> int:
        groups.append((name, filters))
        return len(groups) - 1

    def keep(name: str, free: bool) -> int | None:
        removable.extend([name] if free else [])
        return len(removable) - 1 if free else None

    wires: list[Wires] = []
    for i, unit in enumerate(units):
        name, free = f"units.{i}", unit.stride == 1 and i > 0
        before = wires[-1].makes[-1] if wires else None
        if unit.kind == "residual":
            inner = group(f"{name}.conv1", unit.filters)
            same = before is not None and unit.stride == 1 and unit.filters == units[i - 1].filters
            out = before if same and before is not None else group(name, unit.filters)
            wires.append(Wires(before, (inner, out), (keep(f"{name}.conv1", free), keep(f"{name}.conv2", True))))
        else:
            wires.append(Wires(before, (group(name, unit.filters),), (keep(name, free),)))
    names, filters = zip(*groups, strict=True)
    return Wiring(names, filters, tuple(removable), tuple(wires))


def tied(widths: Sequence[int], ties: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Return the widths of groups, of which tied ones are of the smallest width among them."""
    found = list(widths)
    while any(found[a] != found[b] for a, b in ties):
        for a, b in (*ties, *reversed(ties)):
            found[a] = found[b] = min(found[a], found[b])
    return tuple(found)


def count(wired: Wiring, choices: Sequence[int]) -> int:
    """Return the number of different architectures, given the number of widths of each group.

    Units are gone through in order; `ways` counts the architectures so far by the number of choices that is left to
    the channels at hand, together with all that are tied to them.
    """
    ways = Counter({choices[wired.units[0].makes[-1]]: 1})
    for wires in wired.units[1:]:
        after: Counter[int] = Counter()
        for here, n in ways.items():
            for kept in itertools.product(*((True,) if keep is None else (False, True) for keep in wires.keeps)):
                left, factor = _joined(here, [choices[g] for g in wires.makes], kept, wires.identity)
                after[left] += n * factor
        ways = after
    return sum(left * n for left, n in ways.items())


def _joined(here: int, makes: list[int], kept: tuple[bool, ...], identity: bool) -> tuple[int, int]:
    """Return the choices left to a unit's output, and those of the groups that are complete, multiplied."""
    if identity:
        return (here, makes[0]) if all(kept) else (min(here, makes[0]), 1)
    factor = 1
    for choices, keeps in zip(makes, kept, strict=True):
        if keeps:
            factor, here = factor * here, choices
        else:
            here = min(here, choices)
    return here, factor


# -- layers as a policy sees them ----------------------------------------------------------------------------------


def described(spec: ChainSpec, wired: Wiring) -> Iterator[Descriptor]:
    """Yield the layers of the largest network in order of execution; norms and ReLU belong to their convolution."""
    for unit, wires in zip(spec.units, wired.units, strict=True):
        last = len(unit.steps) - 1
        for i, (layer, _) in enumerate(unit.steps):
            keep = wires.keeps[min(i, len(wires.keeps) - 1)]
            k, start, end = layer.kernel, unit.adds and i == 0, unit.adds and i == last
            if isinstance(layer, Conv):
                yield Descriptor("conv", k, layer.stride, k // 2, layer.c_out, start, end, keep)
            else:
                yield Descriptor("depthwise", k, layer.stride, k // 2, layer.channels, start, end, keep)
        if unit.shortcut is not None:
            yield Descriptor("shortcut", 1, unit.stride, 0, unit.shortcut[0].c_out)
        if unit.pool:
            yield Descriptor("pool", 2, 2, 0, unit.steps[-1][1].channels)
    sized = spec.units[-1].steps[-1][0].size
    size = math.ceil(sized / 2) if spec.units[-1].pool else sized
    yield Descriptor("mean", size, 1, 0, spec.head.c_in)
    yield Descriptor("linear", 1, 1, 0, spec.head.c_out)
