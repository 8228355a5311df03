"""A space of another family, defined outside fednas: 1-D convolutions over series, elastic in width and depth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from fednas_core.base.values import Arch, NormKind, Region
from fednas_core.spaces.layers import Charge, Layer, Linear, Make, Norm, first, own_module
from fednas_core.spaces.space import Elastic, Signature


@dataclass(frozen=True, slots=True)
class Filter(Layer):
    """A convolution of width 3 without bias over series of `length` values a channel."""

    name: str
    c_in: int
    c_out: int
    length: int

    @property
    def macs(self) -> int:
        return 3 * self.c_in * self.c_out * self.length

    @property
    def outputs(self) -> int:
        return self.c_out * self.length

    @property
    def charges(self) -> tuple[Charge, ...]:
        return ("filters", self.length, 1), ("macs", self.length, self.macs)

    def regions(self) -> dict[str, Region]:
        return {f"{self.name}.weight": (first(self.c_out), first(self.c_in), first(3))}

    def module(self) -> nn.Module:
        return nn.Conv1d(self.c_in, self.c_out, 3, padding=1, bias=False)


@dataclass(frozen=True)
class SeriesSpace(Elastic):
    """Genes: ``d``, how many of `depth` layers there are less one, and ``w``, the index into `widths` of each."""

    name: str
    widths: tuple[int, ...]
    depth: int = 3
    channels: int = 6
    length: int = 12
    labels: int = 4
    norm: NormKind = "group"
    personal: tuple[str, ...] = ()

    kind: ClassVar[str] = "series"

    @property
    def signature(self) -> Signature:
        return Signature((self.channels, self.length), self.labels)

    @property
    def blocks(self) -> tuple[str, ...]:
        return tuple(f"layers.{2 * i}" for i in range(self.depth))

    @property
    def size(self) -> int:
        return sum(len(self.widths) ** depth for depth in range(1, self.depth + 1))

    @property
    def choices(self) -> Mapping[str, tuple[int, ...]]:
        return {"d": (self.depth,), "w": (len(self.widths),) * self.depth}

    def arch(self, genes: Mapping[str, Any]) -> Arch:
        found = self._indices(genes)
        used = enumerate(found["w"])
        return Arch((("d", found["d"]), ("w", tuple(w if i <= found["d"][0] else 0 for i, w in used))))

    def describe(self, arch: Arch) -> str:
        return " · ".join(str(layer.c_out) for layer in self.layers(arch) if isinstance(layer, Filter))

    def layers(self, arch: Arch) -> Iterator[Layer]:
        c = self.channels
        for i in range(int(arch["d"][0]) + 1):
            width = self.widths[int(arch["w"][i])]
            yield Filter(f"layers.{2 * i}", c, width, self.length)
            yield Norm(f"layers.{2 * i + 1}", width, self.norm)
            c = width
        yield Linear("head", c, self.labels)

    def build(self, arch: Arch, make: Make = own_module) -> nn.Module:
        return SeriesNet(*map(make, self.layers(arch)))

    def for_data(self, signature: Signature) -> SeriesSpace:
        channels, length = signature.inputs
        return replace(self, channels=channels, length=length, labels=signature.outputs)


class SeriesNet(nn.Module):
    """(batch, channels, length) to logits (batch, labels)."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.layers, self.head = nn.Sequential(*modules[:-1]), modules[-1]

    def forward(self, x: Any) -> Any:
        return self.head(self.layers(x).relu().mean(2))
