"""Chains of layers: plain CNNs, VGG, ResNet of basic blocks, MobileNet-V1. The space of FedNAS and DDC.

A chain is a list of units (`chainspec.Unit`), a mean over space and a linear classifier. Elastic are the filters of
every layer (FedNAS, arXiv 2002.06352, with the proposals of NetAdapt, ECCV 2018) and whether a layer is there at all
(DDC, arXiv 1911.12740).

Layers whose channels must be the same make up one *width group*: all that adds to the stream of a residual stage, for
instance. A layer that is removed hands its input on, so **the groups on its two sides are tied: both have the smaller
of the two widths**. Whoever follows is resized by that, and every network lies within each of whose genes none is
smaller: its filters are the first ones of the larger network's, and it costs no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from fednas_core.base.values import Arch, NormKind
from fednas_core.spaces.capabilities import Descriptor, Removable
from fednas_core.spaces.chainspec import (
    ChainSpec,
    Unit,
    UnitKind,
    UnitSpec,
    Wires,
    Wiring,
    count,
    described,
    tied,
    wiring,
)
from fednas_core.spaces.channels import Channels
from fednas_core.spaces.images import ImageSpace
from fednas_core.spaces.layers import (
    CHANNELS_PER_GROUP,
    NORMS,
    Conv,
    Depthwise,
    Layer,
    Linear,
    Make,
    Norm,
    own_module,
)

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ChainSpace(ImageSpace, Removable):
    """A chain of units; read one from TOML with `fednas_core.spaces.registry.load`.

    Genes of an `Arch`: ``w``, for each of `groups` an index into its `widths`, the multiples of `granularity` up to its
    filters; ``k``, 1 or 0 for each of `removable`: whether it is kept. In the canonical form tied groups have the same
    index. Never removed are the first layer, the classifier, pooling, strided convolutions and shortcuts; of a residual
    unit each convolution is removed by itself, and a unit without both is its shortcut.
    """

    name: str
    units: tuple[Unit, ...]
    granularity: int = CHANNELS_PER_GROUP
    image_size: int = 32
    in_channels: int = 3
    classes: int = 10
    norm: NormKind = "group"
    personal: tuple[str, ...] = ()

    kind: ClassVar[str] = "chain"

    def __post_init__(self) -> None:
        """Refuse fields that describe no network."""
        self._must(bool(self.units), "units", self.units, "one or more tables")
        self._must(self.norm in NORMS, "norm", self.norm, ", ".join(NORMS))
        step = CHANNELS_PER_GROUP if self.norm == "group" else 1
        reason = f"positive multiples of {step}" + (" with norm = 'group'" if step > 1 else "")
        self._must(self.granularity > 0 and self.granularity % step == 0, "granularity", self.granularity, reason)
        self._check_images()
        for number, unit in enumerate(self.units):
            self._check_unit(unit, f"units[{number}].")
        first = self.units[0].kind
        self._must(first == "conv", "units[0].kind", first, "conv, for the first layer reads the images")
        self._check_sizes()

    def _check_unit(self, unit: Unit, where: str) -> None:
        kinds, step = get_args(UnitKind), self.granularity
        multiple = unit.filters > 0 and unit.filters % step == 0
        self._must(unit.kind in kinds, f"{where}kind", unit.kind, ", ".join(kinds))
        self._must(multiple, f"{where}filters", unit.filters, f"positive multiples of granularity, {step}")
        self._must(unit.kernel > 0 and unit.kernel % 2 == 1, f"{where}kernel", unit.kernel, "odd numbers")
        self._must(unit.stride in (1, 2), f"{where}stride", unit.stride, "1 or 2")

    def _check_sizes(self) -> None:
        """Refuse images so small that the norm has nothing to go by."""
        size = smallest = self.image_size
        for unit in self.units:
            smallest, size = unit.sizes(size)
        self._check_norm(smallest)

    # -- genes by name ---------------------------------------------------------------------------------------------

    @cached_property
    def wiring(self) -> Wiring:
        """Which layers share their channels, and which can be removed."""
        return wiring(self.units)

    @property
    def groups(self) -> tuple[str, ...]:
        """The width groups, in the order of the gene ``w``: each by the name of what makes it first."""
        return self.wiring.groups

    @cached_property
    def widths(self) -> tuple[tuple[int, ...], ...]:
        """The filter counts of each group in rising order."""
        step = self.granularity
        return tuple(tuple(range(step, filters + 1, step)) for filters in self.wiring.filters)

    @property
    def removable(self) -> tuple[str, ...]:
        """What can be removed, in the order of the gene ``k``: units, and single convolutions of residual ones."""
        return self.wiring.removable

    @cached_property
    def descriptors(self) -> tuple[Descriptor, ...]:
        """The layers of the largest network in order of execution, as a policy sees them."""
        return tuple(described(self.spec(self.largest), self.wiring))

    @property
    def shrinkable(self) -> tuple[int, ...]:
        """The width groups: NetAdapt removes filters, no layers."""
        return tuple(range(len(self.groups)))

    def masked(self, keep: Sequence[int]) -> Arch:
        """Return the network of full width without what is not kept (see `Removable.masked`)."""
        return self.arch({"w": [len(choices) - 1 for choices in self.widths], "k": list(keep)})

    # -- architectures ---------------------------------------------------------------------------------------------

    @cached_property
    def choices(self) -> Mapping[str, tuple[int, ...]]:
        """Number of choices of each entry of each gene: w and k, as an architecture is encoded."""
        return {"w": tuple(map(len, self.widths)), "k": (2,) * len(self.removable)}

    @cached_property
    def _ties(self) -> tuple[tuple[int, int, int], ...]:
        return tuple(tie for wires in self.wiring.units for tie in wires.ties())

    def arch(self, genes: Mapping[str, Any]) -> Arch:
        """Check ``{"w": …, "k": …}`` and return the canonical `Arch`, in which tied groups have the smallest index."""
        widths, kept = self._indices(genes).values()
        ties = [(left, right) for keep, left, right in self._ties if not kept[keep]]
        return Arch((("w", tied(widths, ties)), ("k", kept)))

    @cached_property
    def size(self) -> int:
        """Number of different architectures."""
        return count(self.wiring, [len(choices) for choices in self.widths])

    # -- the description -------------------------------------------------------------------------------------------

    def spec(self, arch: Arch) -> ChainSpec:
        """Return the description that everything about a network is derived from."""
        return _spec(self, arch)

    def layers(self, arch: Arch) -> Iterable[Layer]:
        """Return every layer of an architecture in order of execution."""
        return self.spec(arch).layers()

    def movable(self, arch: Arch) -> Iterable[Channels]:
        """See `Elastic.movable`."""
        return self.spec(arch).channels()

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """The names of the largest network's units in order of execution."""
        return tuple(f"units.{number}" for number in range(len(self.units)))

    def describe(self, arch: Arch) -> str:
        """Return the filters of each unit, those of both convolutions of a residual one, – for a removed layer."""
        parts = []
        for wires in self.wiring.units:
            made = [
                "–" if keep is not None and not arch["k"][keep] else str(self.widths[group][int(arch["w"][group])])
                for group, keep in zip(wires.makes, wires.keeps, strict=True)
            ]
            parts.append("+".join(made))
        return " · ".join(parts)

    def build(self, arch: Arch, make: Make = own_module) -> nn.Module:
        """Return the static network of `arch` (see `Space.build`)."""
        from fednas_core.spaces.networks import Chain

        return Chain(self.spec(arch), make)


@lru_cache(maxsize=4096)
def _spec(space: ChainSpace, arch: Arch) -> ChainSpec:
    widths = [choices[int(i)] for choices, i in zip(space.widths, arch["w"], strict=True)]
    c, size, units = space.in_channels, space.image_size, []
    for number, (table, wires) in enumerate(zip(space.units, space.wiring.units, strict=True)):
        unit = table.at(size)
        own, size = unit.sizes(size)
        kept = [keep is None or bool(arch["k"][keep]) for keep in wires.keeps]
        channels = [c, *(widths[group] for group in wires.makes)]
        name = f"units.{number}"
        if unit.kind == "residual":
            units.append(_residual(unit, name, channels, own, (kept, wires), space.norm))
        else:
            make = _separable if unit.kind == "separable" else _conv
            steps = make(unit, name, channels, own, space.norm) if kept[0] else ()
            units.append(UnitSpec(steps, None, False, unit.stride, unit.pool))
        c = channels[-1]
    return ChainSpec(tuple(units), Linear("head", c, space.classes))


Steps = tuple[tuple[Conv | Depthwise, Norm], ...]


def _conv(unit: Unit, name: str, channels: list[int], size: int, norm: NormKind) -> Steps:
    c_in, c_out = channels
    return ((Conv(f"{name}.conv", c_in, c_out, unit.kernel, unit.stride, size), Norm(f"{name}.norm", c_out, norm)),)


def _separable(unit: Unit, name: str, channels: list[int], size: int, norm: NormKind) -> Steps:
    c_in, c_out = channels
    depthwise = Depthwise(f"{name}.depthwise", c_in, unit.kernel, unit.stride, size, (unit.kernel,))
    pointwise = Conv(f"{name}.pointwise", c_in, c_out, 1, 1, size)
    depthwise_norm, pointwise_norm = Norm(f"{name}.depthwise_norm", c_in, norm), Norm(f"{name}.norm", c_out, norm)
    return (depthwise, depthwise_norm), (pointwise, pointwise_norm)


def _residual(
    unit: Unit, name: str, channels: list[int], size: int, wired: tuple[list[bool], Wires], norm: NormKind
) -> UnitSpec:
    """Return a residual unit; `wired` says which of its convolutions are kept, and how it is wired."""
    (kept, wires), (c_in, mid, c_out) = wired, channels
    steps: list[tuple[Conv, Norm]] = []
    if kept[0]:
        conv1 = Conv(f"{name}.conv1", c_in, mid, unit.kernel, unit.stride, size)
        steps.append((conv1, Norm(f"{name}.norm1", mid, norm, silent=not kept[1])))
    if kept[1]:
        conv2 = Conv(f"{name}.conv2", mid, c_out, unit.kernel, 1, size)
        steps.append((conv2, Norm(f"{name}.norm2", c_out, norm, silent=True)))
    shortcut = None
    if not wires.identity:
        conv = Conv(f"{name}.shortcut", c_in, c_out, 1, 1, size)
        shortcut = conv, Norm(f"{name}.shortcut_norm", c_out, norm)
    return UnitSpec(tuple(steps), shortcut, True, unit.stride, unit.pool)
